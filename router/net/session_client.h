#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "router/plan/planner_thread.h"

namespace baton::router {

struct SessionPoolOptions {
  std::string router_id = "router";
  Incarnation incarnation;
  // "host:port", or "dns:host:port": every address the name resolves to, asked again each
  // `resolve_interval`.
  std::vector<std::string> workers;
  absl::Duration beat_interval = absl::Milliseconds(500);
  absl::Duration silence = absl::Seconds(2);
  absl::Duration reconnect_interval = absl::Milliseconds(500);
  absl::Duration resolve_interval = absl::Seconds(5);
  size_t max_outbox_messages = 65'536;
};

// The router's side of all sessions (contracts.md 5): one stream per worker address, opened again
// when it ends; beats and silence on a thread of its own, everything else goes to the planner. DNS
// only adds addresses. Start and stop: one thread; Send: any.
class SessionPool final : public WorkerLinks {
 public:
  SessionPool(SessionPoolOptions options, const Clock& clock);
  ~SessionPool() override;  // Stop

  // Connects; `planner` outlives the sessions. Errors name a worker entry that cannot be parsed.
  absl::Status Start(PlannerThread& planner);
  void Stop();  // ends every stream and waits for it
  // Dropped when that worker has no session: the planner has heard or will hear SessionDown.
  void Send(WorkerId worker, wire::RouterMessage message) override;
  void Close(WorkerId worker, const absl::Status& status) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::router
