#pragma once

#include <cstdint>
#include <span>

#include "common/sampling_spec.h"

// From logits to tokens and drafts: what Sample, Accept, AdvanceDrafter and Harvest (ops.h) take.
namespace baton::kernels {

// What one row's sampling needs (contracts.md 2.2). Spans stay valid during the call.
struct SampleRow {
  const SamplingSpec* spec = nullptr;
  const FinishRules* finish =
      nullptr;             // stop tokens are banned while generated.size() + 1 <= min_tokens
  uint64_t key = 0;        // Mix64(seed + choice)
  int64_t position = 0;    // of the token being chosen
  int32_t logits_row = 0;  // index into the last Head's rows
  std::span<const int32_t> prompt;
  std::span<const int32_t> generated;    // emitted tokens and the drafts this row sits on
  std::span<const uint32_t> token_mask;  // bit v allows token v; empty: all
  bool is_draft = false;  // 2.4: penalties, masks and truncation skipped, no logprobs
};

// Without outputs the choices are kept, in order, for Accept and Harvest: at most max_rows between
// AdvanceStep and Harvest.
struct SampleArgs {
  std::span<const SampleRow> rows;
  std::span<TokenRecord> chosen;  // [rows], out; empty: kept
  std::span<uint8_t> is_empty;    // [rows], out: 1 = no token left after the masks
};

// What becomes of one run of the step, told before its tokens are known. Of a verify run the rows
// stay up to the first whose choice is not the next row's token (2.4), none if that one is empty;
// of others all. The drafter makes its rows `first` .. the last whose next token is known; that
// after the last row that stays is `next_token`, of a verify run its choice.
struct AcceptRun {
  static constexpr int32_t kNone = -1;
  int32_t choice = kNone;      // kept one of its first row, the others' behind it; of a run that is
                               // not verified: of its last row
  int32_t next_token = kNone;  // kNone: the one chosen, if any
  int32_t first = kNone;  // position, one before the run's at the earliest (whose H the slot has);
                          // kNone: the drafter leaves the run out
  bool drafts = false;    // goes on from its last row, if a next token is known
  const SamplingSpec* spec = nullptr;  // valid until Harvest
  uint64_t key = 0;
};
struct AcceptArgs {
  std::span<const AcceptRun> runs;  // one for each of the step's
};

// Rows of the drafter after Accept: those nothing is drafted from, or the one each sequence that
// drafts goes on from.
enum class DrafterRows { kKnown, kDrafting };

// What the step has chosen, and forgets.
struct HarvestArgs {
  std::span<TokenRecord> chosen;  // [choices kept], out
  std::span<uint8_t> is_empty;    // [choices kept], out
  std::span<int32_t> accepted;    // [runs accepted], out: rows that stay
  std::span<int32_t> drafts;      // [drafts kept, runs accepted], out; of runs without drafts: -1
};

}  // namespace baton::kernels
