#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "worker/session_service.h"

namespace baton::bench {

// A worker that speaks the session's protocol and computes nothing: it books whatever it is asked
// to, and from a prompt's last chunk on gives each sequence one token of `text` per step.
class FakeWorker {
 public:
  // `interval`: between steps; zero: as fast as it goes.
  FakeWorker(std::vector<int32_t> text, absl::Duration interval);
  ~FakeWorker();
  int port() const { return service_->port(); }

 private:
  struct Sequence {
    SequenceHandle handle;
    uint32_t position = 0;
    int64_t left = 0;  // tokens
  };
  struct Transfer {
    wire::Run run;
    bool is_running = false;
  };
  struct Session {
    std::map<TransferId, Transfer> transfers;
    std::map<TransferId, std::vector<Sequence>> running;
  };

  void Loop();
  void SayLoad();
  void Apply(SessionId id, const wire::RouterMessage& message);
  void Begin(SessionId id, Session& session, const TransferId& transfer);
  void Step(SessionId id, Session& session);
  TokenRecord TokenAt(uint32_t position) const;

  const std::vector<int32_t> text_;
  const absl::Duration interval_;
  const SteadyClock clock_;
  BoundedQueue<worker::SessionEvent> events_{1 << 16};
  std::unique_ptr<worker::SessionService> service_;
  std::map<SessionId, Session> sessions_;
  uint64_t num_steps_ = 0;
  std::atomic<bool> is_stopping_ = false;
  std::thread thread_;
};

}  // namespace baton::bench
