#include <algorithm>
#include <cstring>

#include "common/status.h"
#include "kernels/cpu/attention_phases.h"

// AdvanceStep: the rows of a step become the view, and what the last step left unverified is
// settled.
namespace baton::kernels::cpu {

void AttentionPhases::WriteView(std::span<const SequenceRows> runs) {
  state_.runs.clear();
  int row = 0;
  for (const SequenceRows& run : runs) {
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

// Zeroes what rejected rows wrote into pages.
void AttentionPhases::ClearUnverifiedEntries(int slot, int64_t position) {
  const auto clear = [](std::byte* data, int bytes) {
    std::memset(data, 0, static_cast<size_t>(bytes));
  };
  const auto clear_entry = [&](PageId page, int layer, int64_t p, int ratio) {
    const RowPlace entry = EntryPlaceIn(layer, page, p / ratio);
    clear(entry.data, layout_.row_data_bytes());
    clear(entry.scales, layout_.row_scale_bytes());
    if (ratio != kCsaRatio) return;
    const RowPlace index = IndexPlaceIn(layer, page, p / ratio);
    clear(index.data, layout_.index_value_bytes());
    clear(index.scales, layout_.index_scale_bytes());
  };
  ForUnverifiedEntries(state_.slots.progress(slot), position, config_.compress_ratios, clear_entry);
}

// After this the slot is as if rows at and after `position` had never run.
void AttentionPhases::Settle(int slot, int64_t position) {
  SlotProgress& progress = state_.slots.progress(slot);
  FoldVerified(slot, position);
  ClearUnverifiedEntries(slot, position);
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
  const CpuOptions& options = ops_.options_;
  RETURN_IF_ERROR(
      CheckRuns(args,
                {.max_sequences = options.max_sequences,
                 .num_tail_slots = options.num_tail_slots,
                 .max_draft_rows = options.max_draft_rows,
                 .max_pages = ops_.view_.max_pages,
                 .max_rows = options.max_rows},
                [this](int slot) -> const SlotProgress& { return state_.slots.progress(slot); }));
  WriteView(args.runs);
  ops_.outcome_ = {};
  state_.has_unsaved_streams = true;
  for (const SequenceRows& run : args.runs) {
    Settle(run.tail_slot, run.first_position);
    state_.slots.progress(run.tail_slot).Begin(run);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
