#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "kvtransfer/inproc/network.h"
#include "router/plan/core.h"
#include "router/plan/outbox.h"
#include "tests/sim/event_queue.h"
#include "tests/sim/scenario.h"
#include "tests/sim/sim_clients.h"
#include "tests/sim/sim_worker.h"

namespace baton::sim {

struct SimResult {
  std::vector<std::string> violations;  // empty: every invariant of contracts.md 7 held
  std::map<absl::StatusCode, int> ends;
  uint64_t tokens = 0, rounds = 0;
  absl::Duration virtual_time;
  int kills = 0, stops = 0, lost_sessions = 0, drains = 0;
  uint64_t moved = 0;  // sequences handed on by draining workers
  uint64_t parked = 0, replayed_tokens = 0, digest_failures = 0, cache_hits = 0, retargets = 0;
  std::string Summary() const;
};

// One router's core and all its workers in one thread and virtual time. Deterministic
// for a scenario and a seed.
class Cluster final : private worker::SessionSender {
 public:
  // `trace` prints what happens to stderr.
  Cluster(const Scenario& scenario, uint64_t seed, bool trace);
  ~Cluster() override;

  SimResult Run();

 private:
  // A worker's address: the process that is there, and the router's session with it.
  struct Place {
    WorkerId id;
    std::string address;
    bool serves_prefill = false, serves_decode = false;
    std::unique_ptr<SimWorker> worker;  // null: dead
    bool is_stopped = false;
    bool is_draining = false;
    SessionId session;          // 0: none
    bool is_lost = false;       // the session is over, which the router may not know yet
    bool is_router_up = false;  // the router believes in `session`
    absl::Time last_to_worker = absl::InfinitePast(), last_to_router = absl::InfinitePast();
    std::deque<worker::SessionEvent> held;  // came while it was stopped
  };
  enum class Role { kPrefill, kDecode, kAny };
  static constexpr char kDrained[] = "drained";  // why a session has ended

  // worker::SessionSender
  void Send(SessionId session, wire::WorkerMessage message) override;
  void Close(SessionId session, const absl::Status& status) override;

  // cluster.cc: time and the router.
  void Advance();
  void RunWorkers(bool is_network_due);
  void Feed(router::CoreEvent event);
  void Execute();
  void NoteTold(const router::SendToWorker& send);
  void NoteLoss(const Place& place);
  void NoteFault(const Place& place);
  void StartLoad();
  bool IsOver();
  bool IsQuiet() const;
  void Report(const std::string& what);
  void CheckWorkers();
  SimResult Result() const;
  void Trace(const std::string& what) const;
  void TraceMessage(const std::string& who, const std::string& items) const;

  // cluster_sessions.cc: sessions as queues with delay.
  Place* FindSession(SessionId session);
  absl::Duration Delay();
  void SendToWorker(Place& place, wire::RouterMessage message);
  void Deliver(Place& place, worker::SessionEvent event);
  void Connect(Place& place);
  void Beat(Place& place, SessionId session, uint64_t number);
  // That the router gave up and replays elsewhere.
  uint64_t NumMovesRecovered() const { return core_.Facts(clock_.Now()).moves.recovered; }
  // The router learns after `router_delay` that the session is gone, the worker after
  // `worker_delay`.
  void EndSession(Place& place, absl::Duration router_delay, absl::Duration worker_delay,
                  const std::string& why);

  // cluster_faults.cc
  void AddPlaces();
  void StartWorker(Place& place);
  void ScheduleFaults();
  Place* PickVictim(Role role);
  void Kill(Role role);
  void KillPlace(Place& place, absl::Duration restart);
  void EndWorker(Place& place, absl::Duration restart);
  void StopWorker();
  void ContinueWorker(Place& place);
  void LoseSession();
  void DrainWorker();
  void WatchDrain(Place& place);
  void SpoilPage();

  const Scenario& scenario_;
  const bool trace_;
  ManualClock clock_;
  SeededRng network_rng_, core_rng_, session_rng_, fault_rng_, worker_rng_;
  kvtransfer::InprocNetwork network_;
  EventQueue queue_;
  SimClients clients_;
  router::RouterCore core_;
  router::Outbox outbox_;
  std::vector<router::CoreAction> actions_;
  std::map<TransferId, router::RequestKey> transfers_;  // whose each one is
  std::map<WorkerId, std::set<TransferId>> told_;       // and not cancelled
  std::vector<std::unique_ptr<Place>> places_;
  uint64_t next_session_ = 1, next_incarnation_ = 1;
  absl::Time ended_at_ = absl::InfiniteFuture();
  SimResult result_;
};

}  // namespace baton::sim
