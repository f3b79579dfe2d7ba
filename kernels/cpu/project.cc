#include <array>
#include <cmath>

#include "kernels/cpu/cpu_ops_impl.h"

namespace baton::kernels::cpu {
namespace {

// Collects the linears of one phase that read the same rows.
class LinearList {
 public:
  GemmArgs& Add(const GemmArgs& linear) {
    linears_[count_] = linear;
    return linears_[count_++];
  }
  std::span<const GemmArgs> All() const { return {linears_.data(), count_}; }

 private:
  std::array<GemmArgs, 8> linears_;
  size_t count_ = 0;
};

}  // namespace

absl::Status CpuOps::ProjectIn(const LayerArgs& args) {
  const LayerWeights& layer = args.layer;
  const int rows = *args.step.num_rows;
  LinearList linears;
  linears.Add(Fp8Linear(layer.wq_a, act_.normed8, rows, act_.query_low.data()));
  linears.Add(Fp8Linear(layer.wkv, act_.normed8, rows, act_.kv.data()));
  // Both widths of a compressor use the buffers' full stride of 2 d.
  const auto add_compressor = [&](const CompressorWeights& weights, int d, float* kv,
                                  float* score) {
    if (weights.wkv == nullptr) return;
    linears.Add(PlainLinear(weights.wkv, act_.normed, rows, kv)).y_stride = 2 * d;
    linears.Add(PlainLinear(weights.wgate, act_.normed, rows, score)).y_stride = 2 * d;
  };
  add_compressor(layer.compressor, config_.head_dim, act_.compressor_kv.data(),
                 act_.compressor_score.data());
  add_compressor(layer.index_compressor, config_.index_head_dim, act_.index_compressor_kv.data(),
                 act_.index_compressor_score.data());
  const bool has_index = layer.index_weights != nullptr;
  if (has_index) {
    linears.Add(PlainLinear(layer.index_weights, act_.normed, rows, act_.index_weights.data()))
        .round_bf16 = is_official();
  }
  RETURN_IF_ERROR(RunLinears(linears.All()));
  if (!has_index) return absl::OkStatus();

  const auto scale =
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.index_head_dim)) /
                         std::sqrt(static_cast<double>(config_.index_n_heads)));
  const int count = rows * config_.index_n_heads;
  for (int i = 0; i < count; ++i) act_.index_weights[static_cast<size_t>(i)] *= scale;
  return absl::OkStatus();
}

// Linears, then per head: norm, rope, and for the index the cache's form (model.md 10.6 items 4 and
// 7).
absl::Status CpuOps::ProjectQuery(const LayerArgs& args) {
  const LayerWeights& layer = args.layer;
  const int rows = *args.step.num_rows;
  const bool has_index = layer.index_wq_b != nullptr;
  LinearList linears;
  linears.Add(Fp8Linear(layer.wq_b, act_.query_low8, rows, act_.query.data()));
  if (has_index) {
    linears.Add(Fp8Linear(layer.index_wq_b, act_.query_low8, rows, act_.index_query.data()));
  }
  RETURN_IF_ERROR(RunLinears(linears.All()));

  const int dim = config_.head_dim, heads = config_.num_attention_heads;
  const int index_dim = config_.index_head_dim, index_heads = config_.index_n_heads;
  const int rope_dim = config_.qk_rope_head_dim;
  ForRows(rows, kRowPiece, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      const RopeAngles angles = rope_.At(RopeKindOf(layer.ratio), args.step.position[row]);
      const auto rotate = [&](float* head, int width) {
        Rotate(angles, head + width - rope_dim);
        Round(head + width - rope_dim, rope_dim);
      };
      float* query = &act_.query[static_cast<size_t>(row) * static_cast<size_t>(heads * dim)];
      for (float* head = query; head < query + heads * dim; head += dim) {
        NormRow(head, nullptr, dim, head);
        rotate(head, dim);
      }
      if (!has_index) continue;
      float* index = &act_.index_query[static_cast<size_t>(row) *
                                       static_cast<size_t>(index_heads * index_dim)];
      for (float* head = index; head < index + index_heads * index_dim; head += index_dim) {
        rotate(head, index_dim);
        IndexForm(head, index_dim, mode_);
      }
    }
  });
  return absl::OkStatus();
}

// Per group y = r(wo_a . o) on unquantised values, then fp8 and wo_b (model.md 3.5).
absl::Status CpuOps::ProjectOut(const LayerArgs& args) {
  const int rows = *args.step.num_rows;
  const int group_width = args.layer.wo_a->cols();
  const int low_width = config_.o_groups * config_.o_lora_rank;
  for (int group = 0; group < config_.o_groups; ++group) {
    GemmArgs low = PlainLinear(args.layer.wo_a, act_.attended, rows, low_out_.data());
    low.x += group * group_width;
    low.x_stride = int64_t{config_.o_groups} * group_width;
    low.first_output = group * config_.o_lora_rank;
    low.num_outputs = config_.o_lora_rank;
    low.y += low.first_output;
    low.y_stride = low_width;
    low.round_bf16 = is_official();
    RETURN_IF_ERROR(RunLinears({&low, 1}));
  }
  ForRows(rows, kRowPiece, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      const float* low = &low_out_[static_cast<size_t>(row) * static_cast<size_t>(low_width)];
      QuantiseInto(low, low_width, row, low_out8_);
    }
  });
  const GemmArgs out = Fp8Linear(args.layer.wo_b, low_out8_, rows, act_.branch.data());
  return RunLinears({&out, 1});
}

}  // namespace baton::kernels::cpu
