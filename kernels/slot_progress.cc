#include "kernels/slot_progress.h"

#include "absl/strings/str_format.h"

#include "common/ids.h"
#include "common/status.h"
#include "kernels/page_layout.h"

namespace baton::kernels {
namespace {

absl::Status CheckRun(const SequenceRows& run, const SlotProgress& progress, bool is_drafter) {
  const auto end = static_cast<int64_t>(run.first_position) + run.num_rows;
  if (run.num_rows <= 0 || run.first_position < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: slot %d has %d rows from position %d", run.tail_slot,
                        run.num_rows, run.first_position));
  }
  if (is_drafter) return absl::OkStatus();
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
    RETURN_IF_ERROR(CheckRun(run, progress_of(run.tail_slot), args.is_drafter));
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
