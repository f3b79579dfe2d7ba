#pragma once

#include <cstdint>
#include <deque>
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
  // Whether a step may be queued behind one that is not harvested: of use where the ops go on
  // without the caller.
  bool goes_ahead = false;
};

// Runs steps of one model on one back end: Forward, then sampling, acceptance and drafting
// (contracts.md 2.4), which the back end goes through without a word from here; it is waited for
// once, in Await, when all is queued and perhaps the next step too. Every step's effects on a
// sequence depend on its tokens alone (L0); drafts change how many rows a step keeps, never which
// tokens. `ops`, `weights` outlive it. Engine thread. A planner's rows a step must not exceed the
// ops' max_rows.
class ModelRunner final : public StepRunner {
 public:
  ModelRunner(kernels::Ops& ops, const kernels::ModelWeights& weights,
              const kernels::ModelConfig& config, const ModelRunnerOptions& options);

  absl::Status LaunchForward(const StepPlan& plan, const SequenceTable& sequences) override;
  absl::Status LaunchFinish(const StepPlan& plan, const SequenceTable& sequences) override;
  absl::StatusOr<Harvest> Await() override;
  // All runs verify, and draft if the step drafts.
  bool CanFollow(int num_drafts) const override;

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
    std::vector<int32_t> tokens;      // [rows], the input; none where the device has it
    std::vector<int32_t> generated;   // emitted tokens and the drafts of this run
    std::vector<TokenRecord> chosen;  // by row, or by choice of a prefill run
    std::vector<uint8_t> is_empty;
    std::vector<TokenRecord> prompt_logprobs;    // of a prefill run that reports them
    int first_kept = kernels::AcceptRun::kNone;  // of its records in the step's
    int accepted_rows = 0;
  };
  // One token to be chosen: row of the step, its run, and which of the run's records it becomes.
  struct Choice {
    int row;
    size_t run;
    size_t record;
  };
  // A step from its launch to its harvest.
  struct Step {
    StepId id;
    bool follows = false;
    std::vector<Run> runs;
    bool has_logits = false;  // of every row, in order
    // Its choices: what the device keeps, in its order, and first tokens of prompts with several,
    // which are fetched at once.
    std::vector<Choice> kept, fetched;
    std::vector<DraftRequest> requests;  // by run
    int num_drafts = 0;                  // that each run which drafts will have
  };

  static Run MakeRun(const SequenceRun& plan, const Sequence& sequence, int first_row);
  static std::vector<int32_t> TokensOf(const Run& run);
  static void MakeChoices(Step& step);
  absl::Status HeadOf(std::span<const int32_t> rows);
  absl::Status SampleChoices(Step& step, std::span<const Choice> choices, bool are_kept);
  absl::Status ScorePrompt(Run& run);
  absl::Status ScorePromptRows(Run& run, int begin, int end);
  static kernels::SampleRow SampleRowOf(const Step& step, const Choice& choice);
  SequenceTokens Accept(const Run& run) const;
  SequenceTokens AcceptPrefill(const Run& run) const;
  SequenceTokens AcceptReplay(const Run& run) const;
  SequenceTokens AcceptVerify(const Run& run) const;
  static DraftRequest DraftRequestOf(const Run& run, bool follows);
  static void MoveToTrueRows(const Step& before, Step& step);

  kernels::Ops& ops_;
  const kernels::ModelWeights& weights_;
  const ModelRunnerOptions options_;
  Drafter drafter_;
  std::deque<Step> steps_;  // in flight, at most two; the second follows the first
};

}  // namespace baton::engine
