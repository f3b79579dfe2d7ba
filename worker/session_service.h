#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "worker/session.h"

namespace baton::worker {

struct SessionServiceOptions {
  std::string listen_address = "0.0.0.0:0";  // gRPC; port 0: any
  absl::Duration beat_interval = absl::Milliseconds(500);
  absl::Duration silence = absl::Seconds(2);  // then the session is dead
  int max_sessions = 64;
  // A fuller outbox closes its session. The bytes are for reports on prompts, which are large: 64
  // MiB are about 80 of the largest messages (4,096 positions of 20 entries, 0.8 MB in memory), far
  // more than a router that reads lets wait, and 4 GiB with every session full.
  size_t max_outbox_messages = 8192;
  size_t max_outbox_bytes = size_t{64} << 20;
};

// What every hello and beat says; both are called on threads of the service.
struct SessionFacts {
  wire::WorkerHello hello;
  std::function<wire::Beat()>
      engine_beat;  // engine_steps, since_step_us, is_wedged; the service fills the numbers
};

// The worker's gRPC edge (contracts.md 5): accepts Session streams, checks and converts their
// messages, answers beats away from the engine thread, judges silence, and hands everything else to
// the engine as SessionEvents. Start and stop: one thread; Send and Close: any.
class SessionService final : public SessionSender {
 public:
  // `events` outlives the service. Errors name the address that could not be listened on.
  static absl::StatusOr<std::unique_ptr<SessionService>> Start(SessionServiceOptions options,
                                                               SessionFacts facts,
                                                               const Clock& clock,
                                                               BoundedQueue<SessionEvent>& events);
  ~SessionService() override;  // ends every stream

  void Send(SessionId session, wire::WorkerMessage message) override;
  void Close(SessionId session, const absl::Status& status) override;

  // Nothing waits to be written, nothing is being written.
  bool IsFlushed() const;
  // Ends every stream with that status, after what is being written.
  void EndAll(const absl::Status& status);
  int port() const;
  int num_sessions() const;

 private:
  class Impl;
  explicit SessionService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::worker
