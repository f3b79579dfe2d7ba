#include "engine/load/tensor_table.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::engine {
namespace {

constexpr int kBlock = 128;    // of fp8 weights, both ways
constexpr int kFp4Group = 32;  // of fp4 weights, along a row
constexpr int kMixScales = 3;  // pre, post, comb

// Collects the tensors of one model.
class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : c_(config) {}

  std::vector<ExpectedTensor> Build() {
    Add("embed.weight", {c_.vocab_size, c_.hidden_size}, TensorKind::kBf16);
    for (int layer = 0; layer < c_.num_hidden_layers; ++layer)
      AddLayer(absl::StrFormat("layers.%d.", layer), c_.compress_ratios[static_cast<size_t>(layer)],
               c_.IsHashed(layer));
    AddHeadMix("");
    Add("norm.weight", {c_.hidden_size}, TensorKind::kBf16);
    Add("head.weight", {c_.vocab_size, c_.hidden_size}, TensorKind::kBf16);
    if (c_.num_nextn_predict_layers > 0) AddMtp();
    return std::move(table_);
  }

 private:
  void Add(std::string name, std::vector<int64_t> shape, TensorKind kind) {
    table_.push_back({std::move(name), std::move(shape), kind});
  }

  void AddFp8(const std::string& name, int rows, int cols) {
    Add(name + ".weight", {rows, cols}, TensorKind::kF8);
    Add(name + ".scale", {rows / kBlock, cols / kBlock}, TensorKind::kScale);
  }

  void AddExpertMatrix(const std::string& name, int rows, int cols) {
    if (c_.expert_dtype == "fp8") return AddFp8(name, rows, cols);
    Add(name + ".weight", {rows, cols / 2}, TensorKind::kPackedFp4);
    Add(name + ".scale", {rows, cols / kFp4Group}, TensorKind::kScale);
  }

  void AddCompressor(const std::string& prefix, int ratio, int dim) {
    const int width = ratio == kernels::kCsaRatio ? 2 * dim : dim;
    Add(prefix + "ape", {ratio, width}, TensorKind::kF32);
    Add(prefix + "wkv.weight", {width, c_.hidden_size}, TensorKind::kBf16);
    Add(prefix + "wgate.weight", {width, c_.hidden_size}, TensorKind::kBf16);
    Add(prefix + "norm.weight", {dim}, TensorKind::kBf16);
  }

  void AddAttention(const std::string& prefix, int ratio) {
    const int heads_dim = c_.num_attention_heads * c_.head_dim;
    const int out_rank = c_.o_groups * c_.o_lora_rank;
    const int group_dim = heads_dim / c_.o_groups;
    Add(prefix + "attn_sink", {c_.num_attention_heads}, TensorKind::kF32);
    AddFp8(prefix + "wq_a", c_.q_lora_rank, c_.hidden_size);
    Add(prefix + "q_norm.weight", {c_.q_lora_rank}, TensorKind::kBf16);
    AddFp8(prefix + "wq_b", heads_dim, c_.q_lora_rank);
    AddFp8(prefix + "wkv", c_.head_dim, c_.hidden_size);
    Add(prefix + "kv_norm.weight", {c_.head_dim}, TensorKind::kBf16);
    Add(prefix + "wo_a.weight", {out_rank, group_dim}, TensorKind::kF8OrBf16);
    Add(prefix + "wo_a.scale", {out_rank / kBlock, group_dim / kBlock}, TensorKind::kOptionalScale);
    AddFp8(prefix + "wo_b", c_.hidden_size, out_rank);
    if (ratio == 0) return;
    AddCompressor(prefix + "compressor.", ratio, c_.head_dim);
    if (ratio != kernels::kCsaRatio) return;
    AddFp8(prefix + "indexer.wq_b", c_.index_n_heads * c_.index_head_dim, c_.q_lora_rank);
    Add(prefix + "indexer.weights_proj.weight", {c_.index_n_heads, c_.hidden_size},
        TensorKind::kBf16);
    AddCompressor(prefix + "indexer.compressor.", ratio, c_.index_head_dim);
  }

  void AddExperts(const std::string& prefix, bool is_hashed) {
    const int hidden = c_.hidden_size;
    const int inner = c_.moe_intermediate_size;
    Add(prefix + "gate.weight", {c_.n_routed_experts, hidden}, TensorKind::kBf16);
    if (is_hashed) {
      Add(prefix + "gate.tid2eid", {c_.vocab_size, c_.num_experts_per_tok}, TensorKind::kIndices);
    } else {
      Add(prefix + "gate.bias", {c_.n_routed_experts}, TensorKind::kF32);
    }
    for (int expert = 0; expert < c_.n_routed_experts; ++expert) {
      const std::string name = absl::StrFormat("%sexperts.%d.", prefix, expert);
      AddExpertMatrix(name + "w1", inner, hidden);
      AddExpertMatrix(name + "w3", inner, hidden);
      AddExpertMatrix(name + "w2", hidden, inner);
    }
    AddFp8(prefix + "shared_experts.w1", inner, hidden);
    AddFp8(prefix + "shared_experts.w3", inner, hidden);
    AddFp8(prefix + "shared_experts.w2", hidden, inner);
  }

  void AddMix(const std::string& name) {
    const int streams = c_.hc_mult;
    const int outputs = (2 + streams) * streams;
    Add(name + "_fn", {outputs, streams * c_.hidden_size}, TensorKind::kF32);
    Add(name + "_base", {outputs}, TensorKind::kF32);
    Add(name + "_scale", {kMixScales}, TensorKind::kF32);
  }

  void AddHeadMix(const std::string& prefix) {
    Add(prefix + "hc_head_fn", {c_.hc_mult, c_.hc_mult * c_.hidden_size}, TensorKind::kF32);
    Add(prefix + "hc_head_base", {c_.hc_mult}, TensorKind::kF32);
    Add(prefix + "hc_head_scale", {1}, TensorKind::kF32);
  }

  void AddLayer(const std::string& prefix, int ratio, bool is_hashed) {
    Add(prefix + "attn_norm.weight", {c_.hidden_size}, TensorKind::kBf16);
    Add(prefix + "ffn_norm.weight", {c_.hidden_size}, TensorKind::kBf16);
    AddMix(prefix + "hc_attn");
    AddMix(prefix + "hc_ffn");
    AddAttention(prefix + "attn.", ratio);
    AddExperts(prefix + "ffn.", is_hashed);
  }

  void AddMtp() {
    const std::string prefix = "mtp.0.";
    AddLayer(prefix, /*ratio=*/0, /*is_hashed=*/false);
    AddFp8(prefix + "e_proj", c_.hidden_size, c_.hidden_size);
    AddFp8(prefix + "h_proj", c_.hidden_size, c_.hidden_size);
    for (const char* norm : {"enorm.weight", "hnorm.weight", "norm.weight"})
      Add(prefix + norm, {c_.hidden_size}, TensorKind::kBf16);
    AddHeadMix(prefix);
  }

  const ModelConfig& c_;
  std::vector<ExpectedTensor> table_;
};

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  return TableBuilder(config).Build();
}

bool IsAllowed(TensorKind kind, DType dtype) {
  switch (kind) {
    case TensorKind::kBf16:
      return dtype == DType::kBf16;
    case TensorKind::kF32:
      return dtype == DType::kF32;
    case TensorKind::kF8:
      return dtype == DType::kF8E4M3;
    case TensorKind::kF8OrBf16:
      return dtype == DType::kF8E4M3 || dtype == DType::kBf16;
    case TensorKind::kPackedFp4:
      return dtype == DType::kI8;
    case TensorKind::kScale:
    case TensorKind::kOptionalScale:
      return dtype == DType::kF8E8M0 || dtype == DType::kF32;
    case TensorKind::kIndices:
      return dtype == DType::kI64 || dtype == DType::kI32;
  }
  CHECK(false);
}

const char* AllowedDTypes(TensorKind kind) {
  switch (kind) {
    case TensorKind::kBf16:
      return "BF16";
    case TensorKind::kF32:
      return "F32";
    case TensorKind::kF8:
      return "F8_E4M3";
    case TensorKind::kF8OrBf16:
      return "F8_E4M3 or BF16";
    case TensorKind::kPackedFp4:
      return "I8";
    case TensorKind::kScale:
    case TensorKind::kOptionalScale:
      return "F8_E8M0 or F32";
    case TensorKind::kIndices:
      return "I64 or I32";
  }
  CHECK(false);
}

}  // namespace baton::engine
