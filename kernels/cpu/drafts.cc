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
    if (kept_empty_[choice] != 0) return i;
    const auto next_row = static_cast<size_t>(run.first_row + i + 1);
    const bool is_draft_right = i + 1 < run.num_rows && token_[next_row] == kept_[choice].token;
    if (!is_draft_right) return i + 1;
  }
  return run.num_rows;
}

CpuOps::DrafterRun CpuOps::FollowRun(const StepRun& run, const AcceptRun& args,
                                     int accepted) const {
  DrafterRun follow{.main = run, .first = args.first, .tokens = {}, .drafts = false, .sample = {}};
  if (args.first == AcceptRun::kNone) return follow;
  const bool is_verify = run.kind == RowKind::kVerify;
  int32_t next = is_verify ? AcceptRun::kNone : args.next_token;
  if (next == AcceptRun::kNone && args.choice != AcceptRun::kNone && accepted > 0) {
    const auto choice = static_cast<size_t>(args.choice + (is_verify ? accepted - 1 : 0));
    if (kept_empty_[choice] == 0) next = kept_[choice].token;
  }
  const int64_t end = run.first + accepted;
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

absl::Status CpuOps::Accept(const AcceptArgs& args) {
  const std::vector<StepRun>& runs = attention_->runs;
  RETURN_IF_ERROR(CheckAccept(args, runs,
                              {.num_kept = kept_.size(),
                               .max_rows = options_.max_rows,
                               .max_head_rows = options_.max_head_rows}));
  AttentionPhases(*this).SaveStreams();
  accepted_.clear();
  drafter_runs_.clear();
  drafts_.clear();
  for (size_t i = 0; i < runs.size(); ++i) {
    accepted_.push_back(AcceptedRows(runs[i], args.runs[i].choice));
    drafter_runs_.push_back(FollowRun(runs[i], args.runs[i], accepted_.back()));
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
  const size_t before = drafts_.size();
  drafts_.resize(before + accepted_.size(), -1);
  for (size_t i = 0; i < draft_rows_.size(); ++i) {
    drafts_[before + drafting_[i]] = chosen[i].token;
    token_[i] = chosen[i].token;
    ++position_[i];
    ++draft_rows_[i].position;
    ++attention_->runs[i].first;
  }
  return absl::OkStatus();
}

absl::Status CpuOps::Harvest(const HarvestArgs& args) {
  const size_t runs = accepted_.size();
  RETURN_IF_ERROR(CheckHarvest(args, kept_.size(), runs, runs == 0 ? 0 : drafts_.size() / runs));
  std::ranges::move(kept_, args.chosen.begin());
  std::ranges::copy(kept_empty_, args.is_empty.begin());
  std::ranges::copy(accepted_, args.accepted.begin());
  std::ranges::copy(drafts_, args.drafts.begin());
  kept_.clear();
  kept_empty_.clear();
  accepted_.clear();
  drafts_.clear();
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
