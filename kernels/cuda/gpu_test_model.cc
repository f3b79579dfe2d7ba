#include "kernels/cuda/gpu_test_model.h"

namespace baton::kernels::cuda::testing {

ModelConfig ConfigOf(const TestShape& t) {
  ModelConfig c;
  c.vocab_size = t.vocabulary;
  c.hidden_size = t.hidden;
  c.num_hidden_layers = static_cast<int>(t.ratios.size());
  c.num_attention_heads = t.heads;
  c.head_dim = t.head_dim;
  c.qk_rope_head_dim = t.rope_dim;
  c.q_lora_rank = t.q_lora;
  c.o_groups = t.o_groups;
  c.o_lora_rank = t.o_lora;
  c.n_routed_experts = t.experts;
  c.num_experts_per_tok = t.experts_per_token;
  c.moe_intermediate_size = t.intermediate;
  c.num_hash_layers = t.hash_layers;
  c.index_n_heads = t.index_heads;
  c.index_head_dim = t.index_dim;
  c.index_topk = t.index_topk;
  c.sliding_window = t.window;
  c.hc_mult = t.streams;
  c.hc_sinkhorn_iters = 20;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 4096;
  c.rms_norm_eps = 1e-6;
  c.hc_eps = 1e-6;
  c.rope_theta = 10000;
  c.compress_rope_theta = 160000;
  c.yarn_factor = 16;
  c.yarn_beta_fast = 32;
  c.yarn_beta_slow = 1;
  c.yarn_original_positions = 65536;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10.0;
  c.compress_ratios = t.ratios;
  return c;
}

LayoutShape LayoutOf(const TestShape& t) {
  LayoutShape shape;
  shape.head_dim = t.head_dim;
  shape.rope_dim = t.rope_dim;
  shape.index_head_dim = t.index_dim;
  shape.window = t.window;
  shape.hc_mult = t.streams;
  shape.hidden_size = t.hidden;
  shape.num_layers = static_cast<int>(t.ratios.size());
  shape.num_mtp_layers = 1;
  shape.index = t.index;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const int ratio = t.ratios[static_cast<size_t>(layer)];
    if (ratio == kCsaRatio) shape.csa_layers.push_back(layer);
    if (ratio == kHcaRatio) shape.hca_layers.push_back(layer);
  }
  return shape;
}

namespace {

class WeightMaker {
 public:
  WeightMaker(const TestShape& shape, Device& device) : t_(shape), device_(device) {}

  ModelWeights Make() {
    ModelWeights weights;
    for (size_t i = 0; i < t_.ratios.size(); ++i) {
      weights.layers.push_back(Layer(static_cast<int>(i), t_.ratios[i]));
    }
    weights.embed = Bf16(t_.vocabulary, t_.hidden, 1.0f);
    weights.head = Bf16(t_.vocabulary, t_.hidden, 0.5f);
    weights.norm = Near(t_.hidden);
    weights.head_mix = Mix(t_.streams, 1);
    weights.has_mtp = true;
    weights.mtp.enorm = Near(t_.hidden);
    weights.mtp.hnorm = Near(t_.hidden);
    weights.mtp.norm = Near(t_.hidden);
    weights.mtp.e_proj = Fp8(t_.hidden, t_.hidden);
    weights.mtp.h_proj = Fp8(t_.hidden, t_.hidden);
    weights.mtp.block = Layer(static_cast<int>(t_.ratios.size()), 0);
    weights.mtp.head_mix = Mix(t_.streams, 1);
    return weights;
  }

 private:
  const Matrix* Upload(StoredMatrix m) {
    m.host.values = m.values.data();
    m.host.scales = m.scales.empty() ? nullptr : m.scales.data();
    auto matrix = device_.Upload(m.host);
    CHECK(matrix.ok());
    return *matrix;
  }
  const Matrix* Fp8(int rows, int cols) { return Upload(RandomFp8(rows, cols, ++seed_)); }
  const Matrix* Bf16(int rows, int cols, float size) {
    return Upload(Bf16Matrix(rows, cols, RandomValues(Count(rows, cols), ++seed_, size)));
  }
  Vector Values(int n, float size) {
    return *device_.UploadVector(RandomValues(static_cast<size_t>(n), ++seed_, size));
  }
  Vector Near(int n) {  // around 1
    std::vector<float> values = RandomValues(static_cast<size_t>(n), ++seed_, 0.3f);
    for (float& value : values) value += 1.0f;
    return *device_.UploadVector(values);
  }
  MixWeights Mix(int outputs, int scales) {
    const int width = t_.streams * t_.hidden;
    const auto fn = RandomValues(Count(outputs, width), ++seed_, 0.1f);
    return {Upload(F32Matrix(outputs, width, fn)), Values(outputs, 1.0f), Values(scales, 1.0f)};
  }
  CompressorWeights Compressor(int ratio, int d) {
    const int width = (ratio == kCsaRatio ? 2 : 1) * d;
    return {Bf16(width, t_.hidden, 0.1f), Bf16(width, t_.hidden, 0.1f), Values(ratio * width, 1.0f),
            Near(d)};
  }
  ExpertWeights Expert(int number) {
    const int spread = number == t_.wide_expert ? 15 : 3;
    const auto one = [&](int rows, int cols) {
      const StoredMatrix fp4 = RandomFp4(rows, cols, spread, ++seed_);
      return Upload(t_.has_fp8_experts ? Fp8Twin(fp4) : fp4);
    };
    ExpertWeights expert;
    expert.w1 = one(t_.intermediate, t_.hidden);
    expert.w3 = one(t_.intermediate, t_.hidden);
    expert.w2 = one(t_.hidden, t_.intermediate);
    return expert;
  }

  void AddAttention(LayerWeights& layer) {
    layer.attn_mix = Mix((2 + t_.streams) * t_.streams, 3);
    layer.attn_norm = Near(t_.hidden);
    layer.wq_a = Fp8(t_.q_lora, t_.hidden);
    layer.wkv = Fp8(t_.head_dim, t_.hidden);
    layer.wq_b = Fp8(t_.heads * t_.head_dim, t_.q_lora);
    layer.wo_a = Fp8(t_.o_groups * t_.o_lora, t_.heads * t_.head_dim / t_.o_groups);
    layer.wo_b = Fp8(t_.hidden, t_.o_groups * t_.o_lora);
    layer.q_norm = Near(t_.q_lora);
    layer.kv_norm = Near(t_.head_dim);
    layer.attn_sink = Values(t_.heads, 2.0f);
    layer.has_bounded_scores = t_.has_bounded_scores;
    if (layer.ratio == 0) return;
    layer.compressor = Compressor(layer.ratio, t_.head_dim);
    if (layer.ratio != kCsaRatio) return;
    layer.index_compressor = Compressor(layer.ratio, t_.index_dim);
    layer.index_wq_b = Fp8(t_.index_heads * t_.index_dim, t_.q_lora);
    layer.index_weights = Bf16(t_.index_heads, t_.hidden, 0.1f);
  }

  LayerWeights Layer(int number, int ratio) {
    LayerWeights layer;
    layer.layer = number;
    layer.ratio = ratio;
    AddAttention(layer);
    layer.ffn_mix = Mix((2 + t_.streams) * t_.streams, 3);
    layer.ffn_norm = Near(t_.hidden);
    layer.gate = Bf16(t_.experts, t_.hidden, 0.1f);
    layer.gate_bias = Values(t_.experts, 0.5f);
    for (int e = 0; e < t_.experts; ++e) layer.experts.push_back(Expert(e));
    layer.shared.w1 = Fp8(t_.intermediate, t_.hidden);
    layer.shared.w3 = Fp8(t_.intermediate, t_.hidden);
    layer.shared.w2 = Fp8(t_.hidden, t_.intermediate);
    if (number >= t_.hash_layers) return layer;
    std::vector<int32_t> table(Count(t_.vocabulary, t_.experts_per_token));
    for (size_t i = 0; i < table.size(); ++i) {
      table[i] = static_cast<int32_t>(i / 2 % static_cast<size_t>(t_.experts));
    }
    layer.token_experts = *device_.UploadIndices(table);
    return layer;
  }

  const TestShape t_;
  Device& device_;
  uint32_t seed_ = 100;
};

}  // namespace

ModelWeights MakeWeights(const TestShape& shape, Device& device) {
  return WeightMaker(shape, device).Make();
}

}  // namespace baton::kernels::cuda::testing
