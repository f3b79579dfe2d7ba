#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/rng.h"
#include "proto/wire.h"
#include "router/plan/core.h"
#include "router/plan/outbox.h"
#include "router/plan/request.h"

namespace baton::router {

struct SessionUp {
  wire::WorkerHello hello;
  std::string address;  // as connected
};
struct SessionDown {
  absl::Status status;
};
using WorkerEvent = std::variant<SessionUp, wire::WorkerMessage, SessionDown>;

// The sessions as the planner sees them (router/net). Called on the planner thread; must only
// queue.
class WorkerLinks {
 public:
  virtual ~WorkerLinks() = default;
  // In order per worker. Dropped if the worker has no session.
  virtual void Send(WorkerId worker, wire::RouterMessage message) = 0;
  // The planner missed events of this session: end it and connect again.
  virtual void Close(WorkerId worker, const absl::Status& status) = 0;
};

struct PlannerThreadConfig {
  size_t max_inputs = 65'536;  // requests, cancels and worker messages waiting for the thread
  size_t max_batch = 1'024;    // taken per turn
  absl::Duration idle_wait = absl::Milliseconds(50);
};

// The production Dispatcher: one thread that owns RouterCore, executes its actions and publishes
// views. Public functions: any thread, unless they say otherwise.
class PlannerThread final : public Dispatcher {
 public:
  // All references outlive the object.
  PlannerThread(const PlanConfig& plan, const PlannerThreadConfig& config, const Clock& clock,
                Rng& rng, WorkerLinks& links);
  ~PlannerThread() override;  // stops

  void Start();
  void Stop();  // live requests end with kUnavailable

  RequestKey Submit(GenerateRequest request, RequestSink sink) override;
  void Cancel(RequestKey request, std::optional<int> choice, const std::string& reason) override;
  void Control(OperatorCommand command) override;
  std::shared_ptr<const ClusterView> View() const override;
  std::shared_ptr<const RouterFacts> Facts() const;  // published with the view

  // A worker to connect to; its id is the same for all its sessions.
  WorkerId AddWorker(const std::string& address);
  // In order per worker. Should the thread be so far behind that an event is lost, the session
  // counts as down and WorkerLinks::Close follows.
  void OnWorkerEvent(WorkerId worker, WorkerEvent event);

  // One turn without the thread (tests): inputs that wait, timers that are due, views. Waits up to
  // `max_wait` for the first input. Returns how many inputs were taken.
  size_t RunOnce(absl::Duration max_wait);

 private:
  struct SubmitInput {
    RequestKey key;
    GenerateRequest request;
    RequestSink sink;
  };
  struct CoreInput {
    CoreEvent event;
  };
  struct SessionLost {  // an event of it did not fit
    WorkerId worker;
  };
  struct OperatorInput {
    OperatorCommand command;
  };
  using Input = std::variant<SubmitInput, CoreInput, SessionLost, OperatorInput>;
  struct Client {
    std::string request_id;
    RequestSink sink;
    std::vector<RequestEvent> events;  // of this turn
  };

  void Loop();
  void PushUrgent(Input input);
  void TakeUrgent(std::vector<Input>& out);
  void Apply(Input& input);
  void Obey(const DropCaches& command);
  void Obey(const AbortRequests& command);
  void Feed(CoreEvent event);
  void FireTimers();
  void Execute();
  void Publish();
  absl::Duration WaitFor(absl::Duration max_wait) const;
  void EndAll();

  const PlanConfig plan_;
  const PlannerThreadConfig config_;
  const Clock& clock_;
  WorkerLinks& links_;

  // Planner thread.
  RouterCore core_;
  Outbox outbox_;
  std::vector<Input> inputs_;
  std::vector<CoreAction> actions_;
  std::unordered_map<RequestKey, Client> clients_;
  std::vector<RequestKey> touched_;  // clients with events of this turn
  std::multimap<absl::Time, TimerId> timers_;
  absl::Time published_at_ = absl::InfinitePast();
  uint64_t published_version_ = 0;

  std::atomic<uint64_t> next_key_{1};
  std::atomic<uint32_t> next_worker_{1};
  BoundedQueue<Input> queue_;
  std::thread thread_;

  // What must not be lost when the queue is full (cancels, lost sessions): few, so a locked vector;
  // the queue itself has one limit for all. The published snapshots are swapped under the same
  // lock, since g++ 12's atomic shared_ptr is a data race to TSan.
  mutable Mutex mutex_;
  std::vector<Input> urgent_ GUARDED_BY(mutex_);
  std::shared_ptr<const ClusterView> view_ GUARDED_BY(mutex_);
  std::shared_ptr<const RouterFacts> published_facts_ GUARDED_BY(mutex_);
};

}  // namespace baton::router
