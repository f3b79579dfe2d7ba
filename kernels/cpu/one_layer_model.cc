#include "kernels/cpu/one_layer_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace baton::kernels::cpu::testing {
namespace {

void Append(const std::vector<float>& values, std::vector<std::vector<float>>& rows) {
  const size_t width = values.size() / kMaxRows;
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r].insert(rows[r].end(), &values[r * width], &values[r * width] + width);
  }
}

}  // namespace

ModelConfig OneLayerConfig() {
  ModelConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = kHidden;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 4;
  config.head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.q_lora_rank = 128;
  config.o_groups = 2;
  config.o_lora_rank = 64;
  config.n_routed_experts = kExperts;
  config.num_experts_per_tok = 3;
  config.moe_intermediate_size = 128;
  config.index_n_heads = 2;
  config.index_head_dim = 128;
  config.index_topk = 8;
  config.sliding_window = 128;
  config.hc_mult = 4;
  config.hc_sinkhorn_iters = 20;
  config.num_nextn_predict_layers = 1;
  config.max_position_embeddings = 1024;
  config.rms_norm_eps = 1e-6;
  config.hc_eps = 1e-6;
  config.rope_theta = 10000;
  config.compress_rope_theta = 160000;
  config.routed_scaling_factor = 1.5;
  config.swiglu_limit = 10.0;
  config.compress_ratios = {0};
  return config;
}

LayoutShape OneLayerShape() {
  LayoutShape shape;
  shape.head_dim = 128;
  shape.rope_dim = 64;
  shape.index_head_dim = 128;
  shape.window = 128;
  shape.hc_mult = 4;
  shape.hidden_size = kHidden;
  shape.num_layers = 1;
  shape.num_mtp_layers = 1;
  return shape;
}

OneLayerModel::OneLayerModel(const OneLayerOptions& model) : device_(MakeCpuDevice(model.mode)) {
  Load(model);
  CpuOptions options{
      .config = OneLayerConfig(), .mode = model.mode, .layout = PageLayout(OneLayerShape())};
  options.num_pages = 4;
  options.pages = *device_->Allocate(options.layout.stride_bytes() * 4);
  options.num_tail_slots = 3;
  options.max_rows = kMaxRows;
  options.max_sequences = 3;
  options.max_head_rows = kMaxRows;
  options.max_context = 1024;
  options.force_scalar = model.is_scalar;
  options.parallel = model.parallel;
  auto ops = MakeCpuOps(options, *device_);
  CHECK(ops.ok());
  ops_ = *std::move(ops);
}

void OneLayerModel::Start(std::span<const int32_t> tokens) {
  ops_->ResetTail(0);
  Step({{.num_rows = static_cast<int32_t>(tokens.size()), .tokens = tokens.data()}});
}

void OneLayerModel::Step(std::vector<SequenceRows> runs) {
  static constexpr PageId kPages[] = {0, 1, 2, 3};
  for (SequenceRows& run : runs) {
    run.pages = kPages;
    run.num_pages = 4;
  }
  CHECK(ops_->AdvanceStep({.runs = runs}).ok());
  CHECK(ops_->Embed({.step = ops_->view(), .embed = weights_.embed}).ok());
}

void OneLayerModel::EnterDrafter(bool goes_on) {
  CHECK(ops_->DraftInput({.step = ops_->view(),
                          .embed = weights_.embed,
                          .mtp = weights_.mtp,
                          .goes_on = goes_on})
            .ok());
}

absl::Status OneLayerModel::Head(std::span<const int32_t> rows, bool has_all_rows) {
  return ops_->Head({.step = ops_->view(),
                     .rows = rows,
                     .has_all_rows = has_all_rows,
                     .mix = weights_.head_mix,
                     .norm = weights_.norm,
                     .head = weights_.head});
}

std::vector<std::vector<float>> OneLayerModel::Run(std::span<const int32_t> tokens) {
  const LayerWeights& layer = weights_.layers[0];
  const StepView& step = ops_->view();
  const LayerArgs args{.step = step, .layer = layer};
  std::vector<std::vector<float>> rows(tokens.size());
  Start(tokens);
  CHECK(ops_->MixBoundary({.step = step, .next = &layer.attn_mix, .norm = layer.attn_norm}).ok());
  CHECK(ops_->ProjectIn(args).ok());
  Append(act().query_low, rows);
  Append(act().kv, rows);
  for (size_t i = 0; i < act().attended.size(); ++i) {  // by token, as attention would leave it
    const size_t width = act().attended.size() / kMaxRows;
    const size_t row = i / width;
    if (row >= tokens.size()) break;
    act().attended[i] =
        RoundBf16(std::sin(static_cast<float>(tokens[row]) + static_cast<float>(i % width)));
  }
  CHECK(ops_->ProjectOut(args).ok());
  CHECK(ops_->MixBoundary({.step = step,
                           .finish_previous = true,
                           .next = &layer.ffn_mix,
                           .norm = layer.ffn_norm})
            .ok());
  CHECK(ops_->Route(args).ok());
  CHECK(ops_->Experts(args).ok());
  Append(act().branch, rows);
  CHECK(ops_->MixBoundary({.step = step, .finish_previous = true, .norm = {}}).ok());
  Append(act().streams, rows);
  std::vector<int32_t> all(tokens.size());
  std::iota(all.begin(), all.end(), 0);
  CHECK(Head(all, /*has_all_rows=*/false).ok());
  Append(act().logits, rows);
  return rows;
}

const Matrix* OneLayerModel::Upload(StoredMatrix m) {
  m.host.values = m.values.data();
  m.host.scales = m.scales.empty() ? nullptr : m.scales.data();
  return *device_->Upload(m.host);
}

const Matrix* OneLayerModel::Bf16(int rows, int cols) {
  return Upload(Bf16Matrix(rows, cols, RandomValues(Count(rows, cols), ++seed_)));
}

Vector OneLayerModel::Values(int n, float size) {
  return *device_->UploadVector(RandomValues(static_cast<size_t>(n), ++seed_, size));
}

MixWeights OneLayerModel::Mix(int outputs, int scales) {
  const auto fn = RandomValues(Count(outputs, 4 * kHidden), ++seed_, 0.1f);
  return {Upload(F32Matrix(outputs, 4 * kHidden, fn)), Values(outputs, 1.0f), Values(scales, 1.0f)};
}

ExpertWeights OneLayerModel::Expert(int spread, bool has_fp8) {
  const auto one = [&] {
    const StoredMatrix fp4 = RandomFp4(128, 128, spread, ++seed_);
    return Upload(has_fp8 ? Fp8Twin(fp4) : fp4);
  };
  return {.w1 = one(), .w3 = one(), .w2 = one()};
}

void OneLayerModel::Load(const OneLayerOptions& model) {
  LayerWeights layer;
  layer.attn_mix = Mix(24, 3);
  layer.ffn_mix = Mix(24, 3);
  layer.attn_norm = Values(kHidden, 1.0f);
  layer.ffn_norm = Values(kHidden, 1.0f);
  layer.wq_a = Fp8(128, kHidden);
  layer.wkv = Fp8(128, kHidden);
  layer.wo_a = Fp8(128, 256);
  layer.wo_b = Fp8(kHidden, 128);
  layer.gate = Bf16(kExperts, kHidden);
  layer.gate_bias = Values(kExperts, 0.5f);
  for (int e = 0; e < kExperts; ++e) {
    layer.experts.push_back(Expert(e == 2 ? model.spread : 3, model.has_fp8_experts));
  }
  layer.shared = {.w1 = Fp8(128, kHidden), .w3 = Fp8(128, kHidden), .w2 = Fp8(kHidden, 128)};
  if (model.is_hashed) {
    std::vector<int32_t> table(Count(kVocabulary, 3));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i / 2 % kExperts);
    layer.token_experts = *device_->UploadIndices(table);
  }
  weights_.embed = Bf16(kVocabulary, kHidden);
  weights_.head = Bf16(kVocabulary, kHidden);
  weights_.norm = Values(kHidden, 1.0f);
  weights_.head_mix = Mix(4, 1);
  weights_.layers.push_back(layer);
  weights_.mtp.enorm = Values(kHidden, 1.0f);
  weights_.mtp.hnorm = Values(kHidden, 1.0f);
  weights_.mtp.e_proj = Fp8(kHidden, kHidden);
  weights_.mtp.h_proj = Fp8(kHidden, kHidden);
}

std::vector<int32_t> Tokens(int count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7 % kVocabulary);
  return tokens;
}

}  // namespace baton::kernels::cpu::testing
