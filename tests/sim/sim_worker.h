#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "engine/loop.h"
#include "engine/planning/mixed_planner.h"
#include "kvtransfer/digester.h"
#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"
#include "kvtransfer/transfer_agent.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/scenario.h"
#include "worker/worker_core.h"

namespace baton::sim {

// A worker's own time: the cluster's, or ahead of it while a step runs.
class WorkerClock final : public Clock {
 public:
  explicit WorkerClock(const Clock& cluster) : cluster_(cluster) {}
  absl::Time Now() const override { return std::max(cluster_.Now(), ahead_); }
  void Spend(absl::Duration duration) { ahead_ = Now() + duration; }

 private:
  const Clock& cluster_;
  absl::Time ahead_ = absl::InfinitePast();
};

struct SimWorkerOptions {
  std::string name;
  Incarnation incarnation;
  bool serves_prefill = false, serves_decode = false;
  int pages = 0;
  uint64_t seed = 0;
};

// One worker process: production core, engine loop, planner, pool and transfer agent over the hash
// model. Destroying it is kill -9.
class SimWorker final : private worker::AgentLink {
 public:
  SimWorker(const SimWorkerOptions& options, const WorkersSpec& spec,
            kvtransfer::InprocNetwork& network, const Clock& clock, worker::SessionSender& sender);
  ~SimWorker() override;

  void Apply(worker::SessionEvent event);
  // Runs the transfer agent until it has nothing to do now.
  void RunAgent();
  // A round of the core, if one is due: at most one engine step, which takes time.
  void RunRound();
  absl::Time NextRound() const { return next_round_; }
  absl::Time NextAgentTimer() const;
  void Drain();
  // Flips a byte of a leased page: what no invariant forbids and the text must show. False: no page
  // is leased.
  bool SpoilPage(Rng& rng);

  // What contracts.md 7 wants after every event, of this worker; else empty.
  std::string FindViolation() const;
  // Nothing is open or held but the prefix cache.
  bool IsQuiet() const;
  std::string DescribeHeld() const;

  wire::WorkerHello Hello() const;
  wire::Beat MakeBeat() const { return watch_.Beat(); }
  absl::Time LocalNow() const { return clock_.Now(); }
  const worker::WorkerCore& core() const { return *core_; }
  const engine::LoopCounters& loop_counters() const { return loop_.counters(); }
  const kvtransfer::TransferMetrics& transfer_metrics() const { return agent_->metrics(); }
  const absl::Status& error() const { return error_; }

 private:
  absl::Status Execute(kvtransfer::AgentCommand command) override;
  std::vector<kvtransfer::AgentEvent> TakeEvents() override;
  void Wake();
  void NoteCredit(const kvtransfer::AddCredit& credit);

  const Clock& cluster_clock_;
  WorkerClock clock_;
  SeededRng rng_;
  worker::WorkerSetup setup_;
  std::vector<std::byte> memory_, tail_memory_;
  engine::PagePool pool_;
  engine::MixedPlanner planner_;
  HashRunner runner_;
  engine::EngineLoop loop_;
  std::unique_ptr<kvtransfer::InprocTransport> transport_;
  kvtransfer::CpuDigester digester_;
  std::unique_ptr<kvtransfer::TransferAgent> agent_;
  worker::EngineWatch watch_;
  std::unique_ptr<worker::WorkerCore> core_;
  absl::Time next_round_;
  absl::Status error_;
  // Pages the agent may land into, and pages it sends from: both must stay out of circulation.
  std::set<PageId> bound_;
  std::map<TransferId, std::set<PageId>> sending_;
  std::string violation_;
};

}  // namespace baton::sim
