#pragma once

#include <optional>

#include "engine/planning/sequence_book.h"
#include "engine/planning/step_planner.h"

namespace baton::engine {

struct ChunkConfig {
  int chunk_tokens = 768;  // rows of a prefill step; a multiple of 256 (config.cc checks)
};

// Cuts prompts into chunks (contracts.md 3.3, R4 of 1.3): a chunk ends at a multiple of 256 or at
// the prompt's end, always at the last full page and at every `tail_interval` pages of the
// sequence, so that boundary tails can be packed there. Several prompts share a step up to the
// chunk size; order: priority, deadline, arrival. Sequences that are not prefilling are another
// planner's.
class ChunkPlanner final : public StepPlanner {
 public:
  explicit ChunkPlanner(const ChunkConfig& config);
  void Apply(const EngineEvent& event) override { book_.Apply(event); }
  std::optional<StepPlan> Next(const PoolCounts& pool, absl::Time now) override;

  // Adds runs and grants within the budget and the chunk size.
  void AddRuns(StepBudget& budget, StepPlan& plan) const;

 private:
  ChunkConfig config_;
  SequenceBook book_;
};

// Where the chunk from facts.computed on ends with at most `max_rows` rows; facts.computed when not
// even a page fits.
int ChunkEnd(const SequenceFacts& facts, int max_rows);

}  // namespace baton::engine
