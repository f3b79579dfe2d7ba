#pragma once

#include <optional>
#include <vector>

#include "engine/planning/sequence_book.h"
#include "engine/planning/step_planner.h"

namespace baton::engine {

inline constexpr int kMaxDrafts = 3;
inline constexpr int kMaxReplayRows = 64;  // contracts.md 1.6

struct BatchConfig {
  int max_sequences = 256;  // per step
  int max_rows = 1024;      // per step
  int num_drafts = 1;       // k, 0..kMaxDrafts
};

// Continuous batching: a verify run (last token and drafts) for every running sequence, replay runs
// for those with recorded tokens. Every running sequence owns pages for its position + 2 (k + 1)
// tokens; when the pool is dry the youngest is parked, and the oldest parked one comes back as soon
// as its pages fit (contracts.md 6). Sequences that are prefilling are another planner's.
class BatchPlanner final : public StepPlanner {
 public:
  explicit BatchPlanner(const BatchConfig& config);
  void Apply(const EngineEvent& event) override { book_.Apply(event); }
  std::optional<StepPlan> Next(const PoolCounts& pool, absl::Time now) override;

  // From the next step on; changes speed, never text (contracts.md 2.4).
  void SetNumDrafts(int num_drafts);

  // Adds runs, grants, parks and resumes within the budget.
  void AddRuns(StepBudget& budget, StepPlan& plan) const;

 private:
  int RowsOf(const SequenceFacts& facts) const;
  int PagesNeeded(const SequenceFacts& facts) const;
  void AddResumes(StepBudget& budget, int running, StepPlan& plan) const;

  BatchConfig config_;
  SequenceBook book_;
};

}  // namespace baton::engine
