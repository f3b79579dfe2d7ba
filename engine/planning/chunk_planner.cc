#include "engine/planning/chunk_planner.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/check.h"

namespace baton::engine {
namespace {

constexpr int RoundDown(int tokens, int unit) { return tokens / unit * unit; }

}  // namespace

int ChunkEnd(const SequenceFacts& facts, int max_rows) {
  const int start = facts.computed;
  const int last_full_page = RoundDown(facts.prompt_tokens, kPageTokens);
  int end = start < last_full_page ? last_full_page : facts.prompt_tokens;
  if (facts.tail_interval > 0) {
    const int interval = facts.tail_interval * kPageTokens;
    end = std::min(end, RoundDown(start, interval) + interval);
  }
  if (end - start <= max_rows) return end;
  return std::max(start, RoundDown(start + max_rows, kPageTokens));
}

ChunkPlanner::ChunkPlanner(const ChunkConfig& config) : config_(config) {
  CHECK(config.chunk_tokens > 0 && config.chunk_tokens % kPageTokens == 0);
}

void ChunkPlanner::AddRuns(StepBudget& budget, StepPlan& plan) const {
  std::vector<const SequenceFacts*> queue;
  for (const SequenceBook::Item& item : book_.items())
    if (!item.is_paused && !item.is_parked && item.facts.IsPrefilling())
      queue.push_back(&item.facts);
  std::stable_sort(queue.begin(), queue.end(), [](const SequenceFacts* a, const SequenceFacts* b) {
    return std::tie(a->priority, a->deadline) < std::tie(b->priority, b->deadline);
  });

  int chunk_left = std::min(config_.chunk_tokens, budget.rows);
  for (const SequenceFacts* facts : queue) {
    const int end = ChunkEnd(*facts, chunk_left);
    if (end == facts->computed || !GrantPages(*facts, PagesFor(end), budget, plan)) continue;
    const int rows = end - facts->computed;
    plan.runs.push_back({.sequence = facts->id,
                         .first_position = facts->computed,
                         .rows = rows,
                         .kind = RowKind::kPrefill,
                         .samples_first_token = end == facts->prompt_tokens});
    chunk_left -= rows;
    budget.rows -= rows;
  }
}

std::optional<StepPlan> ChunkPlanner::Next(const PoolCounts& pool, absl::Time) {
  StepPlan plan;
  StepBudget budget{.rows = config_.chunk_tokens, .free_pages = pool.free};
  AddRuns(budget, plan);
  if (plan.runs.empty()) return std::nullopt;
  return plan;
}

}  // namespace baton::engine
