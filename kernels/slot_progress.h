#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "kernels/ops.h"

// What AdvanceStep and Accept do alike on every back end: which runs they refuse, and where a slot
// stands.
namespace baton::kernels {

// How far a slot's sequence has come. Rows [folded, end) of a verify run are accepted only if a
// later AdvanceStep or PackTail passes them.
struct SlotProgress {
  int64_t folded = 0;           // tokens in the HCA states
  int64_t end = 0;              // rows computed, unverified ones included
  int first_page = 0;           // index in the sequence of pages[0]
  std::vector<PageId> pages;    // of the unverified rows; empty when there are none
  int64_t streams_before = -1;  // position whose streams are kept from before the last run
  int64_t streams_first = 0;    // position of the first row kept from the last run

  // The rows of a run will be computed.
  void Begin(const SequenceRows& run);
};

// One sequence's rows in the step, as the back ends remember them.
struct StepRun {
  int slot = 0;
  RowKind kind = RowKind::kPrefill;
  int first_row = 0;
  int num_rows = 0;
  int64_t first = 0;  // position
  int64_t end() const { return first + num_rows; }
};

struct AdvanceLimits {
  int max_sequences = 0, num_tail_slots = 0, max_draft_rows = 0, max_pages = 0, max_rows = 0;
};
absl::Status CheckRuns(const AdvanceArgs& args, const AdvanceLimits& limits,
                       const std::function<const SlotProgress&(int slot)>& progress_of);

// Whether the runs may follow those of the `last` step, which all draft or not.
absl::Status CheckFollowing(const AdvanceArgs& args, const AdvanceLimits& limits,
                            std::span<const StepRun> last, bool do_all_draft);

// Whether a step may keep so many choices (SampleArgs).
absl::Status CheckKept(size_t num_kept, int max_rows);

// Rows the drafter makes for a run at most: if all its rows stay and a token is chosen.
int64_t MostDrafterRows(const AcceptRun& accept, const StepRun& run);

// Which acceptances Accept refuses, of a step with `runs` that has kept `num_kept` choices.
struct AcceptLimits {
  size_t num_kept = 0;
  int max_rows = 0, max_head_rows = 0;
};
absl::Status CheckAccept(const AcceptArgs& args, std::span<const StepRun> runs,
                         const AcceptLimits& limits);

// The outputs of Harvest have the sizes of what there is.
absl::Status CheckHarvest(const HarvestArgs& args, size_t num_kept, size_t num_runs,
                          size_t num_drafts);

// fn(page, layer, position, ratio) for what rejected rows wrote into pages: entries whose last
// token is at or after `position`, of every layer that has some there.
void ForUnverifiedEntries(
    const SlotProgress& progress, int64_t position, const std::vector<int>& ratios,
    const std::function<void(PageId page, int layer, int64_t position, int ratio)>& fn);

}  // namespace baton::kernels
