#include "engine/planning/mixed_planner.h"

#include "common/check.h"

namespace baton::engine {

MixedPlanner::MixedPlanner(const MixedConfig& config)
    : max_rows_(config.max_rows), batch_(config.batch), chunk_(config.chunk) {
  // Prompts must not starve: beside a full batch a page of rows is left.
  CHECK(config.max_rows >= config.batch.max_sequences * (1 + kMaxDrafts) + kPageTokens);
}

void MixedPlanner::Apply(const EngineEvent& event) {
  batch_.Apply(event);
  chunk_.Apply(event);
}

std::optional<StepPlan> MixedPlanner::Next(const PoolCounts& pool, absl::Time) {
  StepPlan plan;
  StepBudget budget{.rows = max_rows_, .free_pages = pool.free};
  batch_.AddRuns(budget, plan);
  if (plan.parks.empty()) chunk_.AddRuns(budget, plan);
  if (plan.runs.empty() && plan.parks.empty() && plan.resumes.empty()) return std::nullopt;
  return plan;
}

}  // namespace baton::engine
