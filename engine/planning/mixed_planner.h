#pragma once

#include <optional>

#include "engine/planning/batch_planner.h"
#include "engine/planning/chunk_planner.h"

namespace baton::engine {

struct MixedConfig {
  BatchConfig batch;
  ChunkConfig chunk;
  int max_rows = 2048;  // of a step; decoding comes first, prompt chunks take what is left
};

// A worker that prefills and decodes (design.md 7): both planners over one row and page budget.
class MixedPlanner final : public StepPlanner {
 public:
  explicit MixedPlanner(const MixedConfig& config);
  void Apply(const EngineEvent& event) override;
  std::optional<StepPlan> Next(const PoolCounts& pool, absl::Time now) override;
  void SetNumDrafts(int num_drafts) { batch_.SetNumDrafts(num_drafts); }

 private:
  int max_rows_;
  BatchPlanner batch_;
  ChunkPlanner chunk_;
};

}  // namespace baton::engine
