#include <algorithm>

#include "common/status.h"
#include "kernels/cpu/attention_phases.h"
#include "kernels/cpu/cpu_ops_impl.h"

// From choices to drafts that follow one another: Accept, AdvanceDrafter, KeepDraft, Harvest.
namespace baton::kernels::cpu {

int CpuOps::AcceptedRows(const StepRun& run, int first_choice) const {
  if (run.kind != RowKind::kVerify) return run.num_rows;
  for (int i = 0; i < run.num_rows; ++i) {
    const auto choice = static_cast<size_t>(first_choice + i);
    if (outcome_.kept_empty[choice] != 0) return i;
    const auto next_row = static_cast<size_t>(run.first_row + i + 1);
    const bool is_draft_right =
        i + 1 < run.num_rows && token_[next_row] == outcome_.kept[choice].token;
    if (!is_draft_right) return i + 1;
  }
  return run.num_rows;
}

CpuOps::DrafterRun CpuOps::FollowRun(const StepRun& run, const AcceptRun& args,
                                     int accepted) const {
  DrafterRun follow{.main = run, .first = args.first, .tokens = {}, .sample = {}};
  follow.can_draft = args.drafts;
  const bool is_verify = run.kind == RowKind::kVerify;
  int32_t next = is_verify ? AcceptRun::kNone : args.next_token;
  if (next == AcceptRun::kNone && args.choice != AcceptRun::kNone && accepted > 0) {
    const auto choice = static_cast<size_t>(args.choice + (is_verify ? accepted - 1 : 0));
    if (outcome_.kept_empty[choice] == 0) next = outcome_.kept[choice].token;
  }
  follow.next_token = next;
  const int64_t end = run.first + accepted;
  if (args.first == AcceptRun::kNone) return follow;
  for (int64_t position = args.first + 1; position < end; ++position) {
    follow.tokens.push_back(token_[static_cast<size_t>(run.first_row + position - run.first)]);
  }
  if (next == AcceptRun::kNone || args.first >= end) return follow;
  follow.tokens.push_back(next);
  follow.drafts = args.drafts;
  follow.sample.spec = args.spec;
  follow.sample.key = args.key;
  follow.sample.position = end + 1;
  follow.sample.is_draft = true;
  return follow;
}

// The device is never behind: what the step follows is there, and told positions are only moved.
absl::Status CpuOps::AdvanceFollowing(const AdvanceArgs& args) {
  std::vector<StepRun> last;
  for (const DrafterRun& run : drafter_runs_) last.push_back(run.main);
  if (earlier_ || outcome_.accepted.size() != last.size()) {
    return absl::FailedPreconditionError("AdvanceStep: no accepted step to follow");
  }
  const bool do_all_draft = std::ranges::all_of(drafter_runs_, &DrafterRun::can_draft);
  RETURN_IF_ERROR(CheckFollowing(args,
                                 {.max_draft_rows = options_.max_draft_rows,
                                  .max_pages = view_.max_pages,
                                  .max_rows = options_.max_rows},
                                 last, do_all_draft));
  std::vector<SequenceRows> runs(args.runs.begin(), args.runs.end());
  std::vector<std::vector<int32_t>> tokens(runs.size());
  std::vector<int32_t> early_by;
  for (size_t r = 0; r < runs.size(); ++r) {
    runs[r].first_position = static_cast<int32_t>(last[r].first) + outcome_.accepted[r];
    early_by.push_back(args.runs[r].first_position - runs[r].first_position);
    tokens[r].push_back(std::max(drafter_runs_[r].next_token, 0));  // none: thrown away
    for (size_t d = r; tokens[r].size() < static_cast<size_t>(runs[r].num_rows); d += last.size()) {
      tokens[r].push_back(d < outcome_.drafts.size() ? std::max(outcome_.drafts[d], 0) : 0);
    }
    runs[r].tokens = tokens[r].data();
  }
  earlier_ = std::move(outcome_);
  RETURN_IF_ERROR(AttentionPhases(*this).Advance({.runs = runs}));
  early_by_ = std::move(early_by);
  return absl::OkStatus();
}

absl::Status CpuOps::Accept(const AcceptArgs& told) {
  const std::vector<StepRun>& runs = attention_->runs;
  std::vector<AcceptRun> moved(told.runs.begin(), told.runs.end());
  for (size_t i = 0; i < std::min(moved.size(), early_by_.size()); ++i) {
    if (moved[i].first != AcceptRun::kNone) moved[i].first -= early_by_[i];
  }
  const AcceptArgs args{.runs = moved};
  RETURN_IF_ERROR(CheckAccept(args, runs,
                              {.num_kept = outcome_.kept.size(),
                               .max_rows = options_.max_rows,
                               .max_head_rows = options_.max_head_rows}));
  AttentionPhases(*this).SaveStreams();
  outcome_.accepted.clear();
  outcome_.drafts.clear();
  drafter_runs_.clear();
  for (size_t i = 0; i < runs.size(); ++i) {
    outcome_.accepted.push_back(AcceptedRows(runs[i], args.runs[i].choice));
    drafter_runs_.push_back(FollowRun(runs[i], args.runs[i], outcome_.accepted.back()));
  }
  return absl::OkStatus();
}

// Only the first of the two views may find H in the main step's streams: the block replaces them.
absl::Status CpuOps::AdvanceDrafter(DrafterRows rows) {
  const bool are_drafting = rows == DrafterRows::kDrafting;
  std::vector<SequenceRows> runs;
  source_rows_.clear();
  draft_rows_.clear();
  drafting_.clear();
  for (size_t r = 0; r < drafter_runs_.size(); ++r) {
    const DrafterRun& run = drafter_runs_[r];
    if (are_drafting && !run.drafts) continue;
    const int count = static_cast<int>(run.tokens.size());
    const int begin = are_drafting ? count - 1 : 0, end = count - (run.drafts ? 1 : 0);
    runs.push_back({.tail_slot = run.main.slot,
                    .first_position = run.first + begin,
                    .num_rows = are_drafting ? 1 : end,
                    .tokens = run.tokens.data() + begin});
    for (int i = begin; i < begin + runs.back().num_rows; ++i) {
      const auto row = static_cast<int32_t>(run.main.first_row + run.first + i - run.main.first);
      source_rows_.push_back(are_drafting || run.first + i < run.main.first ? kFromSlot : row);
    }
    if (!are_drafting) continue;
    draft_rows_.push_back(run.sample);
    draft_rows_.back().logits_row = static_cast<int32_t>(drafting_.size());
    drafting_.push_back(r);
  }
  AttentionPhases(*this).WriteView(runs);
  return absl::OkStatus();
}

absl::Status CpuOps::KeepDraft() {
  std::vector<TokenRecord> chosen(draft_rows_.size());
  std::vector<uint8_t> is_empty(draft_rows_.size());
  if (!chosen.empty()) {
    RETURN_IF_ERROR(Sample({.rows = draft_rows_, .chosen = chosen, .is_empty = is_empty}));
  }
  const size_t before = outcome_.drafts.size();
  outcome_.drafts.resize(before + outcome_.accepted.size(), -1);
  for (size_t i = 0; i < draft_rows_.size(); ++i) {
    outcome_.drafts[before + drafting_[i]] = chosen[i].token;
    token_[i] = chosen[i].token;
    ++position_[i];
    ++draft_rows_[i].position;
    ++attention_->runs[i].first;
  }
  return absl::OkStatus();
}

absl::Status CpuOps::Harvest(const HarvestArgs& args) {
  const Outcome& outcome = earlier_ ? *earlier_ : outcome_;
  const size_t runs = outcome.accepted.size();
  RETURN_IF_ERROR(
      CheckHarvest(args, outcome.kept.size(), runs, runs == 0 ? 0 : outcome.drafts.size() / runs));
  std::ranges::copy(outcome.kept, args.chosen.begin());
  std::ranges::copy(outcome.kept_empty, args.is_empty.begin());
  std::ranges::copy(outcome.accepted, args.accepted.begin());
  std::ranges::copy(outcome.drafts, args.drafts.begin());
  if (earlier_) {
    earlier_.reset();
  } else {
    outcome_ = {};
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
