#include "engine/model/weights.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "engine/load/views.h"

namespace baton::engine {
namespace {

using kernels::CompressorWeights;
using kernels::ExpertWeights;
using kernels::LayerWeights;
using kernels::Matrix;
using kernels::MixWeights;
using kernels::ModelWeights;
using kernels::MtpWeights;
using kernels::Vector;

constexpr float kScoreLimit = 70;        // R3
constexpr float kRoundingSlack = 1.07f;  // fp8 and bf16 rounding of rows and queries

float LargestMagnitude(const std::vector<float>& values) {
  float largest = 0;
  for (const float v : values) largest = std::max(largest, std::abs(v));
  return largest;
}

// Uploads tensors by name; `prefix` is "layers.3." or "mtp.0.".
class Uploader {
 public:
  Uploader(const Checkpoint& checkpoint, kernels::Device& device)
      : checkpoint_(checkpoint), device_(device) {}

  absl::Status Model(ModelWeights& weights) {
    RETURN_IF_ERROR(Upload("embed.weight", weights.embed));
    RETURN_IF_ERROR(Upload("head.weight", weights.head));
    RETURN_IF_ERROR(Upload("norm.weight", weights.norm));
    RETURN_IF_ERROR(Mix("hc_head", weights.head_mix));
    const ModelConfig& config = checkpoint_.config();
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      LayerWeights& w = weights.layers.emplace_back();
      w.layer = layer;
      w.ratio = config.compress_ratios[static_cast<size_t>(layer)];
      RETURN_IF_ERROR(Layer(absl::StrFormat("layers.%d.", layer), config.IsHashed(layer), w));
    }
    weights.has_mtp = config.num_nextn_predict_layers > 0;
    return weights.has_mtp ? Mtp(weights.mtp) : absl::OkStatus();
  }

 private:
  absl::Status Upload(const std::string& name, const Matrix*& out) {
    ASSIGN_OR_RETURN(const LoadedMatrix loaded, MatrixOf(checkpoint_, name));
    ASSIGN_OR_RETURN(out, device_.Upload(loaded.matrix));
    return absl::OkStatus();
  }

  absl::Status Upload(const std::string& name, Vector& out) {
    ASSIGN_OR_RETURN(const std::vector<float> values, FloatsOf(checkpoint_.Tensor(name)));
    ASSIGN_OR_RETURN(out, device_.UploadVector(values));
    return absl::OkStatus();
  }

  absl::Status Mix(const std::string& name, MixWeights& mix) {
    RETURN_IF_ERROR(Upload(name + "_fn", mix.fn));
    RETURN_IF_ERROR(Upload(name + "_base", mix.base));
    return Upload(name + "_scale", mix.scale);
  }

  absl::Status Compressor(const std::string& prefix, CompressorWeights& compressor) {
    RETURN_IF_ERROR(Upload(prefix + "wkv.weight", compressor.wkv));
    RETURN_IF_ERROR(Upload(prefix + "wgate.weight", compressor.wgate));
    RETURN_IF_ERROR(Upload(prefix + "ape", compressor.ape));
    return Upload(prefix + "norm.weight", compressor.norm);
  }

  absl::Status Expert(const std::string& prefix, ExpertWeights& expert) {
    RETURN_IF_ERROR(Upload(prefix + "w1.weight", expert.w1));
    RETURN_IF_ERROR(Upload(prefix + "w3.weight", expert.w3));
    return Upload(prefix + "w2.weight", expert.w2);
  }

  absl::Status Attention(const std::string& prefix, LayerWeights& w) {
    RETURN_IF_ERROR(Upload(prefix + "wq_a.weight", w.wq_a));
    RETURN_IF_ERROR(Upload(prefix + "wq_b.weight", w.wq_b));
    RETURN_IF_ERROR(Upload(prefix + "wkv.weight", w.wkv));
    RETURN_IF_ERROR(Upload(prefix + "wo_a.weight", w.wo_a));
    RETURN_IF_ERROR(Upload(prefix + "wo_b.weight", w.wo_b));
    RETURN_IF_ERROR(Upload(prefix + "q_norm.weight", w.q_norm));
    RETURN_IF_ERROR(Upload(prefix + "kv_norm.weight", w.kv_norm));
    RETURN_IF_ERROR(Upload(prefix + "attn_sink", w.attn_sink));
    if (w.ratio != 0) RETURN_IF_ERROR(Compressor(prefix + "compressor.", w.compressor));
    if (w.ratio == kernels::kCsaRatio) {
      RETURN_IF_ERROR(Upload(prefix + "indexer.wq_b.weight", w.index_wq_b));
      RETURN_IF_ERROR(Upload(prefix + "indexer.weights_proj.weight", w.index_weights));
      RETURN_IF_ERROR(Compressor(prefix + "indexer.compressor.", w.index_compressor));
    }
    return CheckScores(prefix, w);
  }

  absl::Status CheckScores(const std::string& prefix, LayerWeights& w) {
    ASSIGN_OR_RETURN(const std::vector<float> kv,
                     FloatsOf(checkpoint_.Tensor(prefix + "kv_norm.weight")));
    ASSIGN_OR_RETURN(const std::vector<float> sinks,
                     FloatsOf(checkpoint_.Tensor(prefix + "attn_sink")));
    float largest = LargestMagnitude(kv);
    if (w.ratio != 0) {
      ASSIGN_OR_RETURN(const std::vector<float> entries,
                       FloatsOf(checkpoint_.Tensor(prefix + "compressor.norm.weight")));
      largest = std::max(largest, LargestMagnitude(entries));
    }
    w.has_bounded_scores =
        AreScoresBounded(checkpoint_.config().head_dim, largest, LargestMagnitude(sinks));
    return absl::OkStatus();
  }

  absl::Status Moe(const std::string& prefix, bool is_hashed, LayerWeights& w) {
    const ModelConfig& config = checkpoint_.config();
    RETURN_IF_ERROR(Upload(prefix + "gate.weight", w.gate));
    if (is_hashed) {
      ASSIGN_OR_RETURN(
          const std::vector<int32_t> table,
          IndicesOf(checkpoint_.Tensor(prefix + "gate.tid2eid"), config.n_routed_experts));
      ASSIGN_OR_RETURN(w.token_experts, device_.UploadIndices(table));
    } else {
      RETURN_IF_ERROR(Upload(prefix + "gate.bias", w.gate_bias));
    }
    for (int e = 0; e < config.n_routed_experts; ++e) {
      RETURN_IF_ERROR(
          Expert(absl::StrFormat("%sexperts.%d.", prefix, e), w.experts.emplace_back()));
    }
    return Expert(prefix + "shared_experts.", w.shared);
  }

  absl::Status Layer(const std::string& prefix, bool is_hashed, LayerWeights& w) {
    RETURN_IF_ERROR(Mix(prefix + "hc_attn", w.attn_mix));
    RETURN_IF_ERROR(Mix(prefix + "hc_ffn", w.ffn_mix));
    RETURN_IF_ERROR(Upload(prefix + "attn_norm.weight", w.attn_norm));
    RETURN_IF_ERROR(Upload(prefix + "ffn_norm.weight", w.ffn_norm));
    RETURN_IF_ERROR(Attention(prefix + "attn.", w));
    return Moe(prefix + "ffn.", is_hashed, w);
  }

  absl::Status Mtp(MtpWeights& mtp) {
    const std::string prefix = "mtp.0.";
    RETURN_IF_ERROR(Upload(prefix + "enorm.weight", mtp.enorm));
    RETURN_IF_ERROR(Upload(prefix + "hnorm.weight", mtp.hnorm));
    RETURN_IF_ERROR(Upload(prefix + "norm.weight", mtp.norm));
    RETURN_IF_ERROR(Upload(prefix + "e_proj.weight", mtp.e_proj));
    RETURN_IF_ERROR(Upload(prefix + "h_proj.weight", mtp.h_proj));
    RETURN_IF_ERROR(Mix(prefix + "hc_head", mtp.head_mix));
    mtp.block.layer = checkpoint_.config().num_hidden_layers;
    mtp.block.ratio = 0;
    return Layer(prefix, /*is_hashed=*/false, mtp.block);
  }

  const Checkpoint& checkpoint_;
  kernels::Device& device_;
};

}  // namespace

bool AreScoresBounded(int head_dim, float max_norm_weight, float max_sink) {
  const float bound = kRoundingSlack * std::sqrt(static_cast<float>(head_dim)) * max_norm_weight;
  return bound <= kScoreLimit && max_sink <= kScoreLimit;
}

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, kernels::Device& device) {
  ModelWeights weights;
  RETURN_IF_ERROR(Uploader(checkpoint, device).Model(weights));
  return weights;
}

}  // namespace baton::engine
