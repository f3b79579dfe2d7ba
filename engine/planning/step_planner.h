#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "absl/time/time.h"

#include "common/ids.h"
#include "engine/pages/page_pool.h"
#include "engine/step.h"

// Who decides what the next step runs: pure, no device, no clock (contracts.md 6). The loop tells a
// planner everything that changed and asks for a plan; equal events give equal plans.
namespace baton::engine {

// What a planner knows of a sequence.
struct SequenceFacts {
  SequenceId id;
  int prompt_tokens = 0;
  int num_tokens = 0;     // prompt and everything generated or received
  int computed = 0;       // < prompt_tokens: prefilling; < num_tokens - 1: replaying; else decoding
  int64_t max_total = 0;  // prompt_tokens + max_tokens: no position from here on is ever needed
  int drafts = 0;         // for the positions from num_tokens on
  int pages = 0;          // owned
  int booked = 0;         // left in the sequence's own booking
  int tail_interval =
      0;  // pages between chunk borders; 0: only at the last full page and the prompt's end
  int priority = 0;  // lower first (protocol.md 5.2)
  absl::Time deadline = absl::InfiniteFuture();

  bool IsPrefilling() const { return computed < prompt_tokens; }
  bool IsReplaying() const { return !IsPrefilling() && computed < num_tokens - 1; }
};

struct Admitted {
  SequenceFacts facts;
};
struct Released {
  SequenceId sequence;
};
// Tokens, rows or pages changed: after a step, a grant, or Continue. Ends a pause.
struct Harvested {
  SequenceFacts facts;
};
// Runs nothing until it is harvested or released: it waits for its owner (first token chosen,
// finished, failed, held).
struct Paused {
  SequenceId sequence;
};
// Out of the batch; facts.pages = 0 and a resume needs pages for `computed` tokens.
struct Parked {
  SequenceFacts facts;
};
struct Resumed {
  SequenceFacts facts;
};
using EngineEvent = std::variant<Admitted, Released, Harvested, Paused, Parked, Resumed>;

// Engine thread.
class StepPlanner {
 public:
  virtual ~StepPlanner() = default;
  virtual void Apply(const EngineEvent& event) = 0;
  // The next step (its id is the loop's to set), or nothing to do. A plan with parks or resumes may
  // have no runs: the loop executes it and asks again. `pool.free` is what grants beyond a
  // sequence's own booking may take.
  virtual std::optional<StepPlan> Next(const PoolCounts& pool, absl::Time now) = 0;
};

// What a plan may still use up while planners add to it.
struct StepBudget {
  int rows = 0;
  int free_pages = 0;
};

}  // namespace baton::engine
