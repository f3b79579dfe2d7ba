#include "kernels/slot_progress.h"

#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/ids.h"
#include "common/status.h"
#include "kernels/page_layout.h"

namespace baton::kernels {
namespace {

absl::Status CheckRun(const SequenceRows& run, const SlotProgress& progress) {
  const auto end = static_cast<int64_t>(run.first_position) + run.num_rows;
  if (run.num_rows <= 0 || run.first_position < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: slot %d has %d rows from position %d", run.tail_slot,
                        run.num_rows, run.first_position));
  }
  if (static_cast<int64_t>(run.num_pages) * kPageTokens < end) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "AdvanceStep: slot %d has %d pages, rows up to position %d need %d", run.tail_slot,
        run.num_pages, end - 1, (end + kPageTokens - 1) / kPageTokens));
  }
  if (run.first_position < progress.folded || run.first_position > progress.end) {
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: slot %d stands at positions %d..%d, the run starts at %d",
                        run.tail_slot, progress.folded, progress.end, run.first_position));
  }
  return absl::OkStatus();
}

absl::Status CheckAcceptRun(const AcceptRun& accept, const StepRun& run, size_t num_kept) {
  constexpr int32_t kNone = AcceptRun::kNone;
  const bool is_verify = run.kind == RowKind::kVerify;
  const int choices = is_verify ? run.num_rows : 1;
  const bool has_choices =
      accept.choice >= 0 &&
      static_cast<size_t>(accept.choice) + static_cast<size_t>(choices) <= num_kept;
  if (!has_choices && (is_verify || accept.choice != kNone)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Accept: slot %d has %d choices from choice %d on, %d were kept", run.slot,
                        choices, accept.choice, num_kept));
  }
  if (accept.first != kNone && (accept.first < 0 || accept.first < run.first - 1)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Accept: slot %d has drafter rows from position %d, the run starts at %d",
                        run.slot, accept.first, run.first));
  }
  if (accept.drafts && (accept.first == kNone || accept.spec == nullptr)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Accept: slot %d drafts without rows or parameters", run.slot));
  }
  return absl::OkStatus();
}

}  // namespace

void SlotProgress::Begin(const SequenceRows& run) {
  end = static_cast<int64_t>(run.first_position) + run.num_rows;
  if (run.kind != RowKind::kVerify) {
    folded = end;  // StoreRows folds them at once
    return;
  }
  const int64_t first = run.first_position / kPageTokens, last = (end - 1) / kPageTokens;
  first_page = static_cast<int>(first);
  pages.assign(run.pages + first, run.pages + last + 1);
}

absl::Status CheckRuns(const AdvanceArgs& args, const AdvanceLimits& limits,
                       const std::function<const SlotProgress&(int slot)>& progress_of) {
  if (args.runs.size() > static_cast<size_t>(limits.max_sequences)) {
    return absl::InvalidArgumentError(absl::StrFormat("AdvanceStep: %d sequences, at most %d",
                                                      args.runs.size(), limits.max_sequences));
  }
  int64_t rows = 0;
  for (const SequenceRows& run : args.runs) {
    if (run.tail_slot < 0 || run.tail_slot >= limits.num_tail_slots) {
      return absl::InvalidArgumentError(absl::StrFormat("AdvanceStep: tail slot %d, have %d",
                                                        run.tail_slot, limits.num_tail_slots));
    }
    if (run.kind != RowKind::kPrefill && run.num_rows > limits.max_draft_rows) {
      return absl::InvalidArgumentError(
          absl::StrFormat("AdvanceStep: slot %d has %d verify or replay rows, at most %d",
                          run.tail_slot, run.num_rows, limits.max_draft_rows));
    }
    RETURN_IF_ERROR(CheckRun(run, progress_of(run.tail_slot)));
    if (run.num_pages > limits.max_pages) {
      return absl::InvalidArgumentError(
          absl::StrFormat("AdvanceStep: slot %d has %d pages, at most %d", run.tail_slot,
                          run.num_pages, limits.max_pages));
    }
    rows += run.num_rows;
  }
  if (rows > limits.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: %d rows, at most %d", rows, limits.max_rows));
  }
  return absl::OkStatus();
}

absl::Status CheckFollowing(const AdvanceArgs& args, const AdvanceLimits& limits,
                            std::span<const StepRun> last, bool do_all_draft) {
  if (args.runs.empty() || args.runs.size() != last.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "AdvanceStep: %d runs follow the last step's %d", args.runs.size(), last.size()));
  }
  const int rows = args.runs[0].num_rows;
  const int most = std::min(limits.max_draft_rows, 1 + (do_all_draft ? Ops::kMaxKeptDrafts : 0));
  for (size_t i = 0; i < last.size(); ++i) {
    const SequenceRows& run = args.runs[i];
    const bool goes_on = run.tail_slot == last[i].slot && run.kind == RowKind::kVerify &&
                         last[i].kind == RowKind::kVerify && run.first_position == last[i].end();
    const auto end = static_cast<int64_t>(run.first_position) + run.num_rows;
    if (goes_on && run.num_rows == rows && rows >= last[i].num_rows && rows <= most &&
        run.num_pages <= limits.max_pages && int64_t{run.num_pages} * kPageTokens >= end) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: slot %d with %d rows from position %d and %d pages does not "
                        "follow the %d rows "
                        "of slot %d, which end at %d; %d rows each, at most %d",
                        run.tail_slot, run.num_rows, run.first_position, run.num_pages,
                        last[i].num_rows, last[i].slot, last[i].end(), rows, most));
  }
  if (static_cast<int64_t>(last.size()) * rows <= limits.max_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("AdvanceStep: %d runs of %d rows, at most %d",
                                                    last.size(), rows, limits.max_rows));
}

absl::Status CheckKept(size_t num_kept, int max_rows) {
  if (num_kept <= static_cast<size_t>(max_rows)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("Sample: %d choices are to be kept, at most %d", num_kept, max_rows));
}

absl::Status CheckHarvest(const HarvestArgs& args, size_t num_kept, size_t num_runs,
                          size_t num_drafts) {
  if (args.chosen.size() == num_kept && args.is_empty.size() == num_kept &&
      args.accepted.size() == num_runs && args.drafts.size() == num_drafts * num_runs) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("Harvest: room for %d choices, %d runs, %d drafts; there are %d, %d and %d",
                      args.chosen.size(), args.accepted.size(), args.drafts.size(), num_kept,
                      num_runs, num_drafts * num_runs));
}

int64_t MostDrafterRows(const AcceptRun& accept, const StepRun& run) {
  if (accept.first == AcceptRun::kNone) return 0;
  const bool has_next = accept.choice != AcceptRun::kNone || accept.next_token != AcceptRun::kNone;
  return std::max<int64_t>(run.end() - (has_next ? 0 : 1) - accept.first, 0);
}

absl::Status CheckAccept(const AcceptArgs& args, std::span<const StepRun> runs,
                         const AcceptLimits& limits) {
  if (args.runs.size() != runs.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Accept: %d runs, the step has %d", args.runs.size(), runs.size()));
  }
  int64_t rows = 0;
  int drafting = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    RETURN_IF_ERROR(CheckAcceptRun(args.runs[i], runs[i], limits.num_kept));
    rows += MostDrafterRows(args.runs[i], runs[i]);
    drafting += args.runs[i].drafts ? 1 : 0;
  }
  if (rows > limits.max_rows || drafting > limits.max_head_rows) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "Accept: up to %d drafter rows, at most %d; %d runs draft, the head has at most %d rows",
        rows, limits.max_rows, drafting, limits.max_head_rows));
  }
  return absl::OkStatus();
}

void ForUnverifiedEntries(
    const SlotProgress& progress, int64_t position, const std::vector<int>& ratios,
    const std::function<void(PageId page, int layer, int64_t position, int ratio)>& fn) {
  if (progress.pages.empty()) return;
  for (int64_t p = position; p < progress.end; ++p) {
    const auto page_index = static_cast<size_t>(p / kPageTokens - progress.first_page);
    for (size_t layer = 0; layer < ratios.size(); ++layer) {
      const int ratio = ratios[layer];
      if (ratio == 0 || (p + 1) % ratio != 0) continue;
      fn(progress.pages[page_index], static_cast<int>(layer), p, ratio);
    }
  }
}

}  // namespace baton::kernels
