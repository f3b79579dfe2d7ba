#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cpu/attention_phases.h"

// AdvanceStep: the rows of a step become the view, and what the last step left unverified is
// settled.
namespace baton::kernels::cpu {
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

absl::Status AttentionPhases::CheckRuns(const AdvanceArgs& args) const {
  const CpuOptions& options = ops_.options_;
  if (args.runs.size() > static_cast<size_t>(options.max_sequences)) {
    return absl::InvalidArgumentError(absl::StrFormat("AdvanceStep: %d sequences, at most %d",
                                                      args.runs.size(), options.max_sequences));
  }
  int64_t rows = 0;
  for (const SequenceRows& run : args.runs) {
    if (run.tail_slot < 0 || run.tail_slot >= options.num_tail_slots) {
      return absl::InvalidArgumentError(absl::StrFormat("AdvanceStep: tail slot %d, have %d",
                                                        run.tail_slot, options.num_tail_slots));
    }
    if (run.kind != RowKind::kPrefill && run.num_rows > options.max_draft_rows) {
      return absl::InvalidArgumentError(
          absl::StrFormat("AdvanceStep: slot %d has %d verify or replay rows, at most %d",
                          run.tail_slot, run.num_rows, options.max_draft_rows));
    }
    RETURN_IF_ERROR(CheckRun(run, state_.slots.progress(run.tail_slot), args.is_drafter));
    if (run.num_pages > ops_.view_.max_pages) {
      return absl::InvalidArgumentError(
          absl::StrFormat("AdvanceStep: slot %d has %d pages, at most %d", run.tail_slot,
                          run.num_pages, ops_.view_.max_pages));
    }
    rows += run.num_rows;
  }
  if (rows > options.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("AdvanceStep: %d rows, at most %d", rows, options.max_rows));
  }
  return absl::OkStatus();
}

void AttentionPhases::WriteView(const AdvanceArgs& args) {
  state_.runs.clear();
  int row = 0;
  for (const SequenceRows& run : args.runs) {
    const auto index = state_.runs.size();
    state_.runs.push_back({.slot = run.tail_slot,
                           .kind = run.kind,
                           .first_row = row,
                           .num_rows = run.num_rows,
                           .first = run.first_position});
    ops_.tail_slot_[index] = run.tail_slot;
    std::copy_n(run.pages, run.num_pages,
                ops_.page_table_.begin() +
                    static_cast<int64_t>(index) * static_cast<int64_t>(ops_.view_.max_pages));
    for (int i = 0; i < run.num_rows; ++i, ++row) {
      const auto r = static_cast<size_t>(row);
      ops_.token_[r] = run.tokens[i];
      ops_.position_[r] = run.first_position + i;
      ops_.sequence_[r] = static_cast<int32_t>(index);
    }
  }
  ops_.num_rows_ = row;
}

// Takes the unverified rows below `position` into the HCA states, in order (contracts.md 1.4).
void AttentionPhases::FoldVerified(int slot, int64_t position) {
  SlotProgress& progress = state_.slots.progress(slot);
  const auto num_hca = static_cast<int>(layout_.shape().hca_layers.size());
  for (int rank = 0; rank < num_hca; ++rank) {
    const PoolState state = state_.slots.Hca(slot, rank);
    for (int64_t p = progress.folded; p < position; ++p) {
      if (p % kHcaRatio == 0) ResetPool(state);
      const HcaRaw raw = state_.slots.HcaUnverified(slot, rank, p);
      state_.kernels.fold(raw.kv, raw.score, state);
    }
  }
  progress.folded = std::max(progress.folded, position);
}

// Zeroes what rejected rows wrote into pages: entries whose last token is at or after `position`.
void AttentionPhases::ClearUnverifiedEntries(int slot, int64_t position) {
  const SlotProgress& progress = state_.slots.progress(slot);
  const auto clear = [](std::byte* data, int bytes) {
    std::memset(data, 0, static_cast<size_t>(bytes));
  };
  for (int64_t p = position; p < progress.end; ++p) {
    const auto page_index = static_cast<size_t>(p / kPageTokens - progress.first_page);
    const PageId page = progress.pages[page_index];
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const int ratio = config_.compress_ratios[static_cast<size_t>(layer)];
      if (ratio == 0 || (p + 1) % ratio != 0) continue;
      const RowPlace entry = EntryPlaceIn(layer, page, p / ratio);
      clear(entry.data, layout_.row_data_bytes());
      clear(entry.scales, layout_.row_scale_bytes());
      if (ratio != kCsaRatio) continue;
      const RowPlace index = IndexPlaceIn(layer, page, p / ratio);
      clear(index.data, layout_.index_value_bytes());
      clear(index.scales, layout_.index_scale_bytes());
    }
  }
}

// After this the slot is as if rows at and after `position` had never run.
void AttentionPhases::Settle(int slot, int64_t position) {
  SlotProgress& progress = state_.slots.progress(slot);
  FoldVerified(slot, position);
  if (!progress.pages.empty()) ClearUnverifiedEntries(slot, position);
  progress.end = position;
  progress.pages.clear();
}

// The streams of the last main step are still the activations' when the next step, the drafter or a
// tail needs them; taking them here keeps them out of every phase between.
void AttentionPhases::SaveStreams() {
  if (!state_.has_unsaved_streams) return;
  state_.has_unsaved_streams = false;
  const size_t size =
      static_cast<size_t>(config_.hc_mult) * static_cast<size_t>(config_.hidden_size);
  for (const StepRun& run : state_.runs) {
    const int first = run.kind == RowKind::kVerify ? 0 : run.num_rows - 1;
    state_.slots.KeepStreams(run.slot, run.first - 1, run.first + first);
    for (int i = first; i < run.num_rows; ++i) {
      const float* streams = act_.streams.data() + static_cast<size_t>(run.first_row + i) * size;
      std::copy_n(streams, size, state_.slots.Streams(run.slot, run.first + i));
    }
  }
}

absl::Status AttentionPhases::Advance(const AdvanceArgs& args) {
  SaveStreams();
  RETURN_IF_ERROR(CheckRuns(args));
  WriteView(args);
  if (args.is_drafter) return absl::OkStatus();
  state_.has_unsaved_streams = true;
  for (const SequenceRows& run : args.runs) {
    Settle(run.tail_slot, run.first_position);
    SlotProgress& progress = state_.slots.progress(run.tail_slot);
    progress.end = static_cast<int64_t>(run.first_position) + run.num_rows;
    if (run.kind != RowKind::kVerify) {
      progress.folded = progress.end;  // StoreRows folds them at once
      continue;
    }
    const int64_t first_page = run.first_position / kPageTokens;
    const int64_t last_page = (progress.end - 1) / kPageTokens;
    progress.first_page = static_cast<int>(first_page);
    progress.pages.assign(run.pages + first_page, run.pages + last_page + 1);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
