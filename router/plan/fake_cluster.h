#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "absl/time/time.h"

#include "common/ids.h"
#include "common/rng.h"
#include "router/plan/core_harness.h"
#include "router/plan/outbox.h"

// Scripted workers around a RouterCore: they answer as contracts.md 4.3 and 4.4 say, late,
// sometimes with a refusal or a failure, and may be lost at any moment. The model is
// CoreHarness::TokenAt.
namespace baton::router {

struct FakeClusterOptions {
  int num_prefill = 3, num_decode = 3, num_mixed = 0;
  uint32_t pages = 60;                                 // of a decode worker
  double refusal = 0.03;                               // of a Reserve or Run
  double grammar_refusal = 0.3;                        // of those with a grammar
  double failure = 0.02;                               // of a prefill job, and of a move
  absl::Duration detection = absl::Milliseconds(200);  // of a loss, at most
  absl::Duration revival = absl::Seconds(2);           // after a loss, at most
};

class FakeCluster {
 public:
  FakeCluster(const FakeClusterOptions& options, const PlanConfig& config, uint64_t seed);

  CoreHarness& harness() { return harness_; }
  Rng& rng() { return rng_; }
  RequestKey Arrive(GenerateRequest request);
  void ClientGone(RequestKey key);
  void CancelChoice(RequestKey key, int choice);
  void Drain(WorkerId worker);
  void Kill(WorkerId worker);  // its state is gone at once; the router hears later; it comes back
  const std::vector<WorkerId>& workers() const { return ids_; }
  void RunFor(absl::Duration time);
  void At(absl::Duration after, std::function<void()> call);

 private:
  struct Landing {
    wire::Reserve reserve;
    Attempt attempt = 1;
    uint32_t prompt_received = 0;
    bool is_filled = false;
    std::set<uint32_t> cancelled;      // sequence indices
    std::map<uint32_t, int64_t> next;  // position, per sequence index
    std::set<uint32_t> finished;
    bool is_stopped = false;  // by a Move
  };
  struct Job {
    wire::Run run;
    uint32_t prompt_received = 0;
    uint32_t num_reported = 0;  // prompt positions
  };
  struct Worker {
    WorkerSpec spec;
    bool is_alive = false;
    bool is_draining = false;
    uint64_t epoch = 0;            // raised by every loss
    absl::Time last_in, last_out;  // deliveries stay in order
    std::map<TransferId, Landing> landings;
    std::map<TransferId, Job> jobs;
  };

  void Revive(WorkerId id);
  void Settle();  // carries what the core has sent since
  void ToRouter(WorkerId id, wire::WorkerMessage message);
  void Deliver(WorkerId id, const wire::RouterMessage& message);
  void OnCancel(Worker& worker, const wire::Cancel& cancel);
  void OnReserve(WorkerId id, const wire::Reserve& reserve);
  void OnRetarget(WorkerId id, const wire::Retarget& retarget);
  void OnRun(WorkerId id, const wire::Run& run);
  void OnChunk(WorkerId id, const wire::PromptChunk& chunk);
  void OnMove(WorkerId id, const wire::Move& move);
  void Stop(WorkerId id, Landing& landing, SequenceHandle handle);
  void FillMoved(WorkerId decode, const TransferId& transfer, const wire::Move& move);
  void StartJob(WorkerId id, const TransferId& transfer);
  void Report(WorkerId id, const TransferId& transfer, Attempt attempt, uint32_t end);
  void FinishJob(WorkerId id, const TransferId& transfer, Attempt attempt);
  void Fill(WorkerId decode, const TransferId& transfer, Attempt attempt, WorkerId prefill);
  void Step(WorkerId id, const TransferId& transfer);
  void SendLoad(WorkerId id);
  uint32_t UsedPages(const Worker& worker) const;
  bool Chance(double probability) { return rng_.Uniform() < probability; }
  bool LacksGrammarRoom(const MaskRules& masks) {
    return !masks.grammar.empty() && Chance(options_.grammar_refusal);
  }
  absl::Duration Delay(absl::Duration most) { return rng_.Uniform() * most; }
  void AtWorker(WorkerId id, absl::Duration after, std::function<void()> call);

  const FakeClusterOptions options_;
  SeededRng rng_;
  CoreHarness harness_;
  Outbox outbox_;
  std::vector<WorkerId> ids_;
  std::map<WorkerId, Worker> workers_;
  std::multimap<absl::Time, std::function<void()>> calls_;
  size_t num_settled_ = 0;
};

}  // namespace baton::router
