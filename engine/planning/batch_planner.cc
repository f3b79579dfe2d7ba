#include "engine/planning/batch_planner.h"

#include <algorithm>

#include "common/check.h"

namespace baton::engine {
namespace {

bool IsDecoding(const SequenceBook::Item& item) {
  return !item.is_paused && !item.is_parked && !item.facts.IsPrefilling();
}

}  // namespace

BatchPlanner::BatchPlanner(const BatchConfig& config) : config_(config) {
  CHECK(config.max_sequences > 0 && config.max_rows >= config.max_sequences);
  SetNumDrafts(config.num_drafts);
}

void BatchPlanner::SetNumDrafts(int num_drafts) {
  CHECK(num_drafts >= 0 && num_drafts <= kMaxDrafts);
  config_.num_drafts = num_drafts;
}

int BatchPlanner::RowsOf(const SequenceFacts& facts) const {
  if (facts.IsReplaying()) return std::min(kMaxReplayRows, facts.num_tokens - 1 - facts.computed);
  const int64_t remaining =
      facts.max_total - facts.num_tokens;  // rows past the last token are of no use
  return static_cast<int>(std::clamp<int64_t>(remaining, 1, 1 + facts.drafts));
}

int BatchPlanner::PagesNeeded(const SequenceFacts& facts) const {
  const int64_t ahead = std::max(2 * (config_.num_drafts + 1), 1 + facts.drafts);
  return PagesFor(
      std::max<int64_t>(facts.num_tokens, std::min(facts.num_tokens + ahead, facts.max_total)));
}

void BatchPlanner::AddResumes(StepBudget& budget, int running, StepPlan& plan) const {
  for (const SequenceBook::Item& item : book_.items()) {
    if (!item.is_parked) continue;
    // A page for every running sequence stays free, or the resumed one would be parked again at
    // once.
    StepBudget after{.rows = budget.rows, .free_pages = budget.free_pages - running};
    if (running >= config_.max_sequences ||
        !GrantPages(item.facts, PagesNeeded(item.facts), after, plan))
      return;
    budget.free_pages = after.free_pages + running;
    plan.resumes.push_back(item.facts.id);
    ++running;
  }
}

void BatchPlanner::AddRuns(StepBudget& budget, StepPlan& plan) const {
  plan.num_drafts = config_.num_drafts;
  std::vector<const SequenceFacts*> batch;
  SequenceId youngest;
  int decoding = 0;
  for (const SequenceBook::Item& item : book_.items()) {
    if (!IsDecoding(item)) continue;
    if (decoding++ < config_.max_sequences) batch.push_back(&item.facts);
    youngest = item.facts.id;
  }

  StepPlan granted;
  StepBudget pages = budget;
  std::vector<const SequenceFacts*> ready;
  for (const SequenceFacts* facts : batch)
    if (GrantPages(*facts, PagesNeeded(*facts), pages, granted)) ready.push_back(facts);
  if (ready.size() < batch.size() && decoding > 1) {
    plan.parks.push_back(
        youngest);  // how many pages that frees is the pool's to say: the loop asks again
    return;
  }
  budget.free_pages = pages.free_pages;
  plan.grants.insert(plan.grants.end(), granted.grants.begin(), granted.grants.end());

  int rows_left = std::min(budget.rows, config_.max_rows);
  const auto add = [&](bool replays) {
    for (const SequenceFacts* facts : ready) {
      if (facts->IsReplaying() != replays) continue;
      const int rows = std::min(RowsOf(*facts), rows_left);
      if (rows <= 0) return;
      plan.runs.push_back({.sequence = facts->id,
                           .first_position = facts->computed,
                           .rows = rows,
                           .kind = replays ? RowKind::kReplay : RowKind::kVerify});
      rows_left -= rows;
      budget.rows -= rows;
    }
  };
  add(false);
  add(true);
  if (ready.size() == batch.size()) AddResumes(budget, decoding, plan);
}

std::optional<StepPlan> BatchPlanner::Next(const PoolCounts& pool, absl::Time) {
  StepPlan plan;
  StepBudget budget{.rows = config_.max_rows, .free_pages = pool.free};
  AddRuns(budget, plan);
  if (plan.runs.empty() && plan.parks.empty() && plan.resumes.empty()) return std::nullopt;
  return plan;
}

}  // namespace baton::engine
