#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/demo_vocabulary.h"
#include "common/rng.h"
#include "engine/grammar/mask_maker.h"
#include "engine/loop.h"
#include "engine/planning/mixed_planner.h"
#include "kvtransfer/digester.h"
#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"
#include "kvtransfer/transfer_agent.h"
#include "worker/worker_core.h"

// A worker in one thread for tests: production core, loop, planners, pool and transfer agent over
// the in-process transport; the model is a hash of every row a position can see, so that one wrong
// byte changes the tokens.
namespace baton::worker {

kernels::PageLayout TestLayout();

class HashRunner final : public engine::StepRunner {
 public:
  HashRunner(engine::PagePool& pool, int num_slots, int num_drafts)
      : pool_(pool), num_drafts_(num_drafts), slots_(static_cast<size_t>(num_slots)) {}
  // All is done in Finish, where the masks are known.
  absl::Status LaunchForward(const engine::StepPlan&, const engine::SequenceTable&) override {
    return absl::OkStatus();
  }
  absl::Status LaunchFinish(const engine::StepPlan& plan,
                            const engine::SequenceTable& sequences) override;
  absl::StatusOr<engine::Harvest> Await() override { return std::move(harvest_); }
  bool CanFollow(int) const override { return false; }
  void ResetTail(int tail_slot) override { slots_[static_cast<size_t>(tail_slot)] = {}; }
  absl::Status PackTail(const kernels::TailArgs& args) override;
  absl::Status UnpackTail(const kernels::TailArgs& args) override;
  int num_tail_slots() const override { return static_cast<int>(slots_.size()); }

  std::map<int, int32_t> guesses;  // drafts by position, where the hash would not know

 private:
  struct Slot {
    uint64_t hash = 0;
    uint64_t num_tokens = 0;
  };
  void ComputeRow(const engine::Sequence& sequence, int position, int32_t token);
  // A last token and its drafts: rows up to the first draft that is not what was chosen.
  void Verify(const engine::Sequence& sequence, const engine::SequenceRun& run,
              engine::SequenceTokens& result);
  // Guesses of the tokens after `next`; every third is wrong. They leave bytes in rows that are not
  // computed yet, as rejected drafts do.
  std::vector<int32_t> Draft(const engine::Sequence& sequence, int position, int32_t next);
  TokenRecord ScoreNext(const engine::Sequence& sequence, int position) const;
  int32_t Choose(const engine::Sequence& sequence, int choice, int position,
                 engine::TokenMask mask = {}) const;

  engine::PagePool& pool_;
  const int num_drafts_;
  std::vector<Slot> slots_;
  engine::Harvest harvest_;
};

inline constexpr size_t kMaxMaskTasks = 8;

struct TestWorkerOptions {
  std::string name = "worker";
  uint64_t incarnation = 1;
  bool serves_prefill = true;
  bool serves_decode = true;
  int num_pages = 64;
  int num_slots = 8;
  int num_drafts = 0;
  WorkerLimits limits = {};
  const Vocabulary* vocabulary = nullptr;  // of masks
  engine::GrammarLimits grammar_limits = {};
};

// Collects what a worker says.
class TestSender final : public SessionSender {
 public:
  void Send(SessionId session, wire::WorkerMessage message) override {
    sent[session].push_back(std::move(message));
  }
  void Close(SessionId session, const absl::Status& status) override { closed[session] = status; }
  std::map<SessionId, std::vector<wire::WorkerMessage>> sent;
  std::map<SessionId, absl::Status> closed;
};

class TestWorker final : private AgentLink {
 public:
  TestWorker(const TestWorkerOptions& options, kvtransfer::InprocNetwork& network,
             ManualClock& clock);

  // One round of the transfer agent and of the core; CHECKs the pool's sums.
  void Round();
  int num_leaked() const;  // pages neither free nor only cached

  std::vector<std::byte> memory, tail_memory;
  WorkerSetup setup;
  SeededRng rng;
  std::optional<engine::GrammarCache> grammars;  // outlives the loop's sequences
  engine::PagePool pool;
  engine::MixedPlanner planner;
  HashRunner runner;
  engine::EngineLoop loop;
  std::optional<engine::MaskMaker> masks;
  std::deque<std::function<void()>> mask_tasks;  // at most kMaxMaskTasks
  bool makes_masks = true;                       // false: they wait
  std::unique_ptr<kvtransfer::InprocTransport> transport;
  kvtransfer::CpuDigester digester;
  std::unique_ptr<kvtransfer::TransferAgent> agent;
  EngineWatch watch;
  TestSender sender;
  std::unique_ptr<WorkerCore> core;

 private:
  absl::Status Execute(kvtransfer::AgentCommand command) override {
    agent->Execute(std::move(command));
    return absl::OkStatus();
  }
  std::vector<kvtransfer::AgentEvent> TakeEvents() override { return agent->TakeEvents(); }
};

}  // namespace baton::worker
