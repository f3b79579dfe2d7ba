#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "common/sampling_spec.h"
#include "engine/grammar/mask_source.h"
#include "engine/pages/page_pool.h"
#include "engine/pages/sequence.h"
#include "kernels/ops.h"

// The seam between who decides what runs next (planners, pure), who runs it (StepRunner) and the
// loop that joins them.
namespace baton::engine {

using StepId = StrongId<struct StepIdTag, uint64_t>;
using kernels::RowKind;

// Rows of one sequence in one step.
//   prefill: tokens[first_position .. +rows)
//   verify:  the last token and rows - 1 drafts; first_position = computed = tokens.size() - 1
//   replay:  rows of tokens that are already known, up to 64; the sampler's choice is checked
//   against the next one
struct SequenceRun {
  SequenceId sequence;
  int first_position = 0;
  int rows = 0;
  RowKind kind = RowKind::kPrefill;
  bool samples_first_token = false;  // the prompt's last chunk
  // By row (a prefill run: one for all choices), for the token after it; none: all tokens are
  // allowed. Set by the loop between Forward and Finish.
  std::vector<TokenMask> masks = {};
};

// Pages a sequence gets before the step, so that it owns room for its rows and drafts.
struct PageGrant {
  SequenceId sequence;
  int pages = 0;
};

struct StepPlan {
  StepId step;
  std::vector<SequenceRun> runs;  // verify and replay runs first, then prefill
  std::vector<PageGrant> grants;
  std::vector<SequenceId> parks;    // youngest first: out of the batch, their pages to the host
  std::vector<SequenceId> resumes;  // parked ones that come back, with grants for all their pages
  int num_drafts = 0;               // to draft for the next step, 0..3
  // The runs of the step in flight go on before it is harvested, each by the token after the rows
  // that stay and its drafts: 1 + num_drafts rows, no fewer than it had, from first_position on,
  // the latest there may be.
  bool follows = false;
};

// What a step gave one sequence.
struct SequenceTokens {
  SequenceId sequence;
  int accepted_rows = 0;  // rows that stay: computed += accepted_rows
  std::vector<std::vector<TokenRecord>>
      tokens;  // per choice: new tokens from position computed (after) on, ascending; a prefill
               // chunk that is not the prompt's last has none
  // Of a prefill run whose sequence asks for it: the prompt's own tokens at the positions after its
  // rows, first_position + 1 on, ascending (contracts.md 5).
  std::vector<TokenRecord> prompt_logprobs;
  std::vector<int32_t> next_drafts;  // for the positions after the last token
  int replay_mismatches = 0;         // the record won
  absl::Status status;               // e.g. no token left after the masks: the sequence fails alone
};

struct Harvest {
  StepId step;
  std::vector<SequenceTokens> sequences;  // in the plan's order
};

// Read access to the sequences of a step. Engine thread.
class SequenceTable {
 public:
  virtual ~SequenceTable() = default;
  virtual const Sequence& Get(SequenceId id) const = 0;  // CHECKs that it exists
};

// Runs steps: Forward and Finish, which may return before the device is done, and Await. On CUDA
// the model with the head is one graph and the drafter another, the sampler and acceptance between
// them are not. Engine thread. An error of a call is the engine's, not one sequence's, and ends the
// process' readiness.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Rows, pages and tail slots come from the sequences. Every run's pages cover its positions.
  virtual absl::Status LaunchForward(const StepPlan& plan, const SequenceTable& sequences) = 0;
  // Masks, penalties, sampling, acceptance and drafting.
  virtual absl::Status LaunchFinish(const StepPlan& plan, const SequenceTable& sequences) = 0;
  // Waits for the oldest step that was launched. Its sequences are still there, but may have taken
  // the tokens of the step before meanwhile, or have been released: no more than empty.
  virtual absl::StatusOr<Harvest> Await() = 0;
  // Whether a plan that follows the one step in flight, with as many drafts, may be launched before
  // it is awaited. None of the sequences' tokens may depend on the host knowing those before.
  virtual bool CanFollow(int num_drafts) const = 0;

  // With no step in flight. A slot is reset before its first use; Pack requires computed ==
  // num_tokens.
  virtual void ResetTail(int tail_slot) = 0;
  virtual absl::Status PackTail(const kernels::TailArgs& args) = 0;
  virtual absl::Status UnpackTail(const kernels::TailArgs& args) = 0;
  virtual int num_tail_slots() const = 0;
};

}  // namespace baton::engine
