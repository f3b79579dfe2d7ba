#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "kvtransfer/agent.h"
#include "kvtransfer/transfer_agent.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

struct AgentThreadConfig {
  size_t max_commands = 65536;
  size_t max_events = 65536;
  absl::Duration spin = absl::Microseconds(50);  // before it sleeps
  std::function<void()> on_start{};              // the thread's first act; may be empty
};

// The transfer thread: a queue of commands in, a queue of events out, and one TransferAgent in
// between. Agent and transport belong to this thread from Create to destruction.
class AgentThread {
 public:
  // Starts the thread. `on_events` (may be empty) runs on it after events were queued. kInternal:
  // no file descriptor.
  static absl::StatusOr<std::unique_ptr<AgentThread>> Create(const AgentThreadConfig& config,
                                                             TransferAgent& agent,
                                                             Transport& transport,
                                                             const Clock& clock,
                                                             std::function<void()> on_events);
  // Stops and joins; commands not yet executed are dropped.
  ~AgentThread();

  // Any thread, never waits. kResourceExhausted: the queue is full.
  absl::Status Execute(AgentCommand command);
  // One consumer: the engine thread.
  BoundedQueue<AgentEvent>& events() { return events_; }

 private:
  AgentThread(const AgentThreadConfig& config, TransferAgent& agent, Transport& transport,
              const Clock& clock);

  absl::Status OpenDescriptors();
  void Loop();
  // Each returns how much it moved.
  int DrainCommands();
  int PushEvents();
  void Sleep();
  void Wake();

  const AgentThreadConfig config_;
  TransferAgent& agent_;
  Transport& transport_;
  const Clock& clock_;
  std::function<void()> on_events_;
  BoundedQueue<AgentCommand> commands_;
  BoundedQueue<AgentEvent> events_;
  std::atomic<bool> is_sleeping_ = false;
  std::atomic<bool> is_stopping_ = false;
  int wake_fd_ = -1;   // eventfd: commands
  int epoll_fd_ = -1;  // wake_fd_ and the transport's
  std::vector<AgentCommand> batch_;
  std::deque<AgentEvent>
      backlog_;  // events the queue had no room for; while any waits, no command is taken
  std::thread thread_;
};

}  // namespace baton::kvtransfer
