#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/model/drafter.h"
#include "engine/step.h"
#include "kernels/model_config.h"
#include "kernels/ops.h"
#include "kernels/weights.h"

namespace baton::engine {

struct ModelRunnerOptions {
  int num_tail_slots = 0;  // of the ops
  int max_head_rows = 0;   // of the ops; at least the sequences of a step
};

// Runs steps of one model on one back end: Forward, then sampling, acceptance and drafting
// (contracts.md 2.4), which the back end goes through without a word from here; it is waited for
// once, when all is queued. Every step's effects on a sequence depend on its tokens alone (L0);
// drafts change how many rows a step keeps, never which tokens. `ops`, `weights` outlive it. Engine
// thread. A planner's rows a step must not exceed the ops' max_rows.
class ModelRunner final : public StepRunner {
 public:
  ModelRunner(kernels::Ops& ops, const kernels::ModelWeights& weights,
              const kernels::ModelConfig& config, const ModelRunnerOptions& options);

  absl::Status LaunchForward(const StepPlan& plan, const SequenceTable& sequences) override;
  absl::Status LaunchFinish(const StepPlan& plan, const SequenceTable& sequences) override;
  std::optional<Harvest> Poll() override;

  void ResetTail(int tail_slot) override;
  // Section 2 is zeros where the drafter's window is not complete, whatever args say.
  absl::Status PackTail(const kernels::TailArgs& args) override;
  absl::Status UnpackTail(const kernels::TailArgs& args) override;
  int num_tail_slots() const override { return options_.num_tail_slots; }

 private:
  // One run of the step in flight, with what sampling needs of its sequence.
  struct Run {
    SequenceRun plan;
    const Sequence* sequence = nullptr;
    int first_row = 0;
    std::vector<int32_t> tokens;      // [rows], the input
    std::vector<int32_t> generated;   // emitted tokens and the drafts of this run
    std::vector<TokenRecord> chosen;  // by row, or by choice of a prefill run
    std::vector<uint8_t> is_empty;
    std::vector<TokenRecord> prompt_logprobs;    // of a prefill run that reports them
    int first_kept = kernels::AcceptRun::kNone;  // of its records in kept_
    int accepted_rows = 0;
  };
  // One token to be chosen: row of the step, its run, and which of the run's records it becomes.
  struct Choice {
    int row;
    size_t run;
    size_t record;
  };

  Run MakeRun(const SequenceRun& plan, const Sequence& sequence, int first_row) const;
  void MakeChoices();
  absl::Status HeadOf(std::span<const int32_t> rows);
  absl::Status SampleChoices(std::span<const Choice> choices, bool are_kept);
  absl::Status ScorePrompt(Run& run);
  absl::Status ScorePromptRows(Run& run, int begin, int end);
  kernels::SampleRow SampleRowOf(const Choice& choice) const;
  SequenceTokens Accept(const Run& run) const;
  SequenceTokens AcceptPrefill(const Run& run) const;
  SequenceTokens AcceptReplay(const Run& run) const;
  SequenceTokens AcceptVerify(const Run& run) const;
  DraftRequest DraftRequestOf(const Run& run) const;
  absl::StatusOr<Harvest> HarvestStep(StepId step, std::span<const DraftRequest> requests,
                                      int num_drafts);

  kernels::Ops& ops_;
  const kernels::ModelWeights& weights_;
  const ModelRunnerOptions options_;
  Drafter drafter_;
  std::vector<Run> runs_;
  bool has_logits_ = false;  // of every row of the step, in order
  // The step's choices: what the device keeps, in its order, and first tokens of prompts with
  // several, which are fetched at once.
  std::vector<Choice> kept_, fetched_;
  std::optional<Harvest> harvest_;
};

}  // namespace baton::engine
