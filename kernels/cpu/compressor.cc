#include <algorithm>

#include "common/check.h"
#include "kernels/cpu/attention_phases.h"

// Compressors: pooling and closing entries (model.md 4; the exact sums are contracts.md 1.4).
namespace baton::kernels::cpu {
namespace {

constexpr int kClosingPiece = 4;
constexpr int kChannelPiece = 64;  // of HCA pooling; divides head_dim

}  // namespace

// Entries that close in this step, in row order: run by run, ascending.
int AttentionPhases::NumClosings(int ratio) const {
  int64_t count = 0;
  for (const StepRun& run : state_.runs) count += run.end() / ratio - run.first / ratio;
  return static_cast<int>(count);
}

AttentionPhases::Closing AttentionPhases::ClosingAt(int ratio, int index) const {
  int64_t left = index;
  for (size_t i = 0; i < state_.runs.size(); ++i) {
    const StepRun& run = state_.runs[i];
    const int64_t closings = run.end() / ratio - run.first / ratio;
    if (left < closings) return {static_cast<int>(i), run.first / ratio + left};
    left -= closings;
  }
  CHECK(false);
}

void AttentionPhases::FinishEntry(const LayerWeights& layer, const Closing& closing,
                                  float* pooled) {
  const int dim = config_.head_dim, rope = config_.qk_rope_head_dim;
  ops_.Round(pooled, dim);
  ops_.NormRow(pooled, layer.compressor.norm.data, dim, pooled);
  Rotate(ops_.rope_.At(RopeKind::kCompressed, closing.entry * layer.ratio), pooled + dim - rope);
  ops_.Round(pooled + dim - rope, rope);
  const RowPlace place = EntryPlace(layer, closing.run, closing.entry);
  state_.codec.EncodeRow(pooled, place.data, place.scales);
}

void AttentionPhases::FinishIndexEntry(const LayerWeights& layer, const Closing& closing,
                                       float* pooled) {
  const int dim = config_.index_head_dim, rope = config_.qk_rope_head_dim;
  ops_.Round(pooled, dim);
  ops_.NormRow(pooled, layer.index_compressor.norm.data, dim, pooled);
  Rotate(ops_.rope_.At(RopeKind::kCompressed, closing.entry * layer.ratio), pooled + dim - rope);
  ops_.Round(pooled + dim - rope, rope);
  const PageId page = PageOf(closing.run, closing.entry * layer.ratio);
  const RowPlace place = IndexPlaceIn(layer.layer, page, closing.entry);
  state_.codec.EncodeIndexRow(pooled, place.data, place.scales);
}

// One entry: A halves of the window before, then B halves of its own; rows of this step from the
// activations, older ones from the slot.
void AttentionPhases::PoolCsa(const LayerWeights& layer, const Closing& closing) {
  const StepRun& run = state_.runs[static_cast<size_t>(closing.run)];
  const auto dim = static_cast<size_t>(config_.head_dim);
  const auto index_dim = static_cast<size_t>(config_.index_head_dim);
  const int rank = RankOf(layer.layer);
  const int64_t own = closing.entry * kCsaRatio;
  PoolInput input, index_input;
  for (int64_t p = std::max<int64_t>(own - kCsaRatio, 0); p < own + kCsaRatio; ++p) {
    CsaRaw raw;
    if (p < run.first) {
      raw = state_.slots.Csa(run.slot, rank, p);
    } else {
      const auto row = static_cast<size_t>(run.first_row + (p - run.first));
      raw = {.kv = act_.compressor_kv.data() + row * 2 * dim,
             .score = act_.compressor_score.data() + row * 2 * dim,
             .index_kv = act_.index_compressor_kv.data() + row * 2 * index_dim,
             .index_score = act_.index_compressor_score.data() + row * 2 * index_dim};
    }
    const size_t half = p < own ? 0 : 1;
    const int i = input.num_tokens++;
    input.kv[i] = raw.kv + half * dim;
    input.score[i] = raw.score + half * dim;
    index_input.kv[i] = raw.index_kv + half * index_dim;
    index_input.score[i] = raw.index_score + half * index_dim;
  }
  index_input.num_tokens = input.num_tokens;
  float entry[kMaxHeadDim], index_entry[kMaxIndexDim];
  state_.kernels.pool(input, config_.head_dim, entry);
  FinishEntry(layer, closing, entry);
  state_.kernels.pool(index_input, config_.index_head_dim, index_entry);
  FinishIndexEntry(layer, closing, index_entry);
}

void AttentionPhases::CloseCsaEntries(const LayerWeights& layer) {
  ops_.ForRows(NumClosings(kCsaRatio), kClosingPiece, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) PoolCsa(layer, ClosingAt(kCsaRatio, i));
  });
}

// Folds a run's rows into some channels of its state, in order, and takes out the entries on the
// way. A verify run works on a copy: its rows are folded when they are accepted. entries [closings
// of the run, D].
void AttentionPhases::FoldChannels(const LayerWeights& layer, int run_index, int first_channel,
                                   float* entries) {
  const StepRun& run = state_.runs[static_cast<size_t>(run_index)];
  const PoolState kept = state_.slots.Hca(run.slot, RankOf(layer.layer));
  float copy[3][kChannelPiece];
  PoolState state{kept.max + first_channel, kept.sum + first_channel, kept.weighted + first_channel,
                  kChannelPiece};
  if (run.kind == RowKind::kVerify) {
    std::copy_n(state.max, kChannelPiece, copy[0]);
    std::copy_n(state.sum, kChannelPiece, copy[1]);
    std::copy_n(state.weighted, kChannelPiece, copy[2]);
    state = {copy[0], copy[1], copy[2], kChannelPiece};
  }
  const auto dim = static_cast<size_t>(config_.head_dim);
  const auto channel = static_cast<size_t>(first_channel);
  for (int i = 0; i < run.num_rows; ++i) {
    const int64_t position = run.first + i;
    const size_t row = static_cast<size_t>(run.first_row + i) * 2 * dim + channel;
    if (position % kHcaRatio == 0) ResetPool(state);
    state_.kernels.fold(act_.compressor_kv.data() + row, act_.compressor_score.data() + row, state);
    if ((position + 1) % kHcaRatio != 0) continue;
    const auto closing = static_cast<size_t>(position / kHcaRatio - run.first / kHcaRatio);
    float* entry = entries + closing * dim + channel;
    for (int n = 0; n < kChannelPiece; ++n) entry[n] = state.weighted[n] / state.sum[n];
  }
}

void AttentionPhases::CloseHcaEntries(const LayerWeights& layer) {
  const int pieces = config_.head_dim / kChannelPiece;
  const auto num_runs = static_cast<int>(state_.runs.size());
  const auto dim = static_cast<size_t>(config_.head_dim);
  ops_.ForRows(num_runs * pieces, 1, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      int64_t before = 0;
      for (int r = 0; r < i / pieces; ++r) {
        const StepRun& run = state_.runs[static_cast<size_t>(r)];
        before += run.end() / kHcaRatio - run.first / kHcaRatio;
      }
      float* entries = state_.entries.data() + static_cast<size_t>(before) * dim;
      FoldChannels(layer, i / pieces, i % pieces * kChannelPiece, entries);
    }
  });
  ops_.ForRows(NumClosings(kHcaRatio), 1, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      FinishEntry(layer, ClosingAt(kHcaRatio, i),
                  state_.entries.data() + static_cast<size_t>(i) * dim);
    }
  });
}

}  // namespace baton::kernels::cpu
