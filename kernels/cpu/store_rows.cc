#include <algorithm>
#include <cstring>

#include "kernels/cpu/attention_phases.h"

// StoreRows: what ProjectIn left becomes the rows later phases attend to (model.md 10.6, items 3,
// 5, 6).
namespace baton::kernels::cpu {
namespace {

constexpr int kRowPiece = 8;
constexpr int kCsaHistory = 8;  // raw rows a later step may need

void AddTo(float* values, const float* bias, int n) {
  for (int i = 0; i < n; ++i) values[i] += bias[i];
}

}  // namespace

// Rows the run's queries see from before the run. The ring holds window + max_draft_rows rows, and
// a prefill run may be longer, so its old rows are taken out before its own rows go in.
void AttentionPhases::DecodeOldWindow(const LayerWeights& layer) {
  const int reach = config_.sliding_window - 1;
  const auto num_runs = static_cast<int>(state_.runs.size());
  ops_.ForRows(num_runs * reach, 2 * kRowPiece, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const StepRun& run = state_.runs[static_cast<size_t>(i / reach)];
      const int64_t position = run.first - reach + i % reach;
      if (position < 0) continue;
      const RowPlace place = state_.slots.WindowRow(run.slot, layer.layer, position);
      state_.codec.DecodeRow(place.data, place.scales,
                             state_.old_window.data() +
                                 static_cast<size_t>(i) * static_cast<size_t>(config_.head_dim));
    }
  });
}

void AttentionPhases::StoreQuery(const LayerWeights& layer, int row) {
  const int low = config_.q_lora_rank;
  const auto r = static_cast<size_t>(row);
  float* query = act_.query_low.data() + r * static_cast<size_t>(low);
  ops_.NormRow(query, layer.q_norm.data, low, query);
  QuantiseRow(query, low, ops_.mode_, act_.query_low8.codes.data() + r * static_cast<size_t>(low),
              act_.query_low8.scales.data() + r * static_cast<size_t>(low / kFp8Group));
}

void AttentionPhases::StoreWindowRow(const LayerWeights& layer, const StepRun& run, int row) {
  const int dim = config_.head_dim, rope = config_.qk_rope_head_dim;
  const int64_t position = run.first + row - run.first_row;
  float* kv = act_.kv.data() + static_cast<size_t>(row) * static_cast<size_t>(dim);
  ops_.NormRow(kv, layer.kv_norm.data, dim, kv);
  Rotate(ops_.rope_.At(RopeKindOf(layer.ratio), position), kv + dim - rope);
  ops_.Round(kv + dim - rope, rope);
  std::byte unkept[4 * kMaxHeadDim + kMaxHeadDim / kKvGroup];
  RowPlace place{unkept, unkept + layout_.row_data_bytes()};
  if (position >= run.end() - state_.slots.window_ring()) {
    place = state_.slots.WindowRow(run.slot, layer.layer, position);
  }
  state_.codec.EncodeRow(kv, place.data, place.scales);
}

// The score's position bias, by absolute position (model.md 4).
void AttentionPhases::AddBias(const LayerWeights& layer, int row) {
  const int halves = layer.ratio == kCsaRatio ? 2 : 1;
  const auto r = static_cast<size_t>(row);
  const auto phase = static_cast<size_t>(ops_.position_[r] % layer.ratio);
  const int width = halves * config_.head_dim;
  AddTo(act_.compressor_score.data() + r * 2 * static_cast<size_t>(config_.head_dim),
        layer.compressor.ape.data + phase * static_cast<size_t>(width), width);
  if (layer.ratio != kCsaRatio) return;
  const int index_width = 2 * config_.index_head_dim;
  AddTo(act_.index_compressor_score.data() + r * static_cast<size_t>(index_width),
        layer.index_compressor.ape.data + phase * static_cast<size_t>(index_width), index_width);
}

// Raw compressor rows that a later step may need: of a verify run all, else the last ones.
void AttentionPhases::StoreRawRows(const LayerWeights& layer, const StepRun& run) {
  const auto dim = static_cast<size_t>(config_.head_dim);
  const auto index_dim = static_cast<size_t>(config_.index_head_dim);
  const bool is_verify = run.kind == RowKind::kVerify;
  const int rank = RankOf(layer.layer);
  const int first = is_verify ? 0 : std::max(0, run.num_rows - kCsaHistory);
  for (int i = first; i < run.num_rows; ++i) {
    const auto row = static_cast<size_t>(run.first_row + i);
    const float* kv = act_.compressor_kv.data() + row * 2 * dim;
    const float* score = act_.compressor_score.data() + row * 2 * dim;
    if (layer.ratio == kHcaRatio) {
      if (!is_verify) return;  // folded
      const HcaRaw raw = state_.slots.HcaUnverified(run.slot, rank, run.first + i);
      std::copy_n(kv, dim, raw.kv);
      std::copy_n(score, dim, raw.score);
      continue;
    }
    const CsaRaw raw = state_.slots.Csa(run.slot, rank, run.first + i);
    std::copy_n(kv, 2 * dim, raw.kv);
    std::copy_n(score, 2 * dim, raw.score);
    std::copy_n(act_.index_compressor_kv.data() + row * 2 * index_dim, 2 * index_dim, raw.index_kv);
    std::copy_n(act_.index_compressor_score.data() + row * 2 * index_dim, 2 * index_dim,
                raw.index_score);
  }
}

void AttentionPhases::StoreRows(const LayerWeights& layer) {
  DecodeOldWindow(layer);
  ops_.ForRows(ops_.num_rows_, kRowPiece, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      const auto run = static_cast<size_t>(ops_.sequence_[static_cast<size_t>(row)]);
      StoreQuery(layer, row);
      StoreWindowRow(layer, state_.runs[run], row);
      if (layer.ratio != 0) AddBias(layer, row);
    }
  });
  if (layer.ratio == kCsaRatio) CloseCsaEntries(layer);
  if (layer.ratio == kHcaRatio) CloseHcaEntries(layer);
  if (layer.ratio == 0) return;
  for (const StepRun& run : state_.runs) StoreRawRows(layer, run);
}

}  // namespace baton::kernels::cpu
