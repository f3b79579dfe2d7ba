#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cpu/test_matrices.h"

// The phases that look at one row at a time: whatever else is in the step, a row's bits stay the
// same (L0 of contracts.md 1.2).
namespace baton::kernels::cpu {
namespace {

using testing::Count;
using testing::RandomValues;
using testing::StoredMatrix;

constexpr int kHidden = 128;
constexpr int kVocabulary = 300;
constexpr int kExperts = 5;
constexpr int kMaxRows = 640;  // more than one expert slice

ModelConfig Config() {
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

LayoutShape Shape() {
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

struct ModelOptions {
  int spread = 3;  // of expert 2's group scales; the others have 3
  bool has_fp8_experts = false;
  bool is_hashed = false;
  bool is_scalar = false;
  NumericsMode mode = NumericsMode::kOfficial;
  ParallelFor parallel = nullptr;
};

// One layer's weights and the ops that run it.
class Model {
 public:
  explicit Model(const ModelOptions& model) : device_(MakeCpuDevice(model.mode)) {
    Load(model);
    CpuOptions options{.config = Config(), .mode = model.mode, .layout = PageLayout(Shape())};
    options.num_pages = 4;
    options.pages = *device_->Allocate(options.layout.stride_bytes() * 4);
    options.num_tail_slots = 1;
    options.max_rows = kMaxRows;
    options.max_sequences = 1;
    options.max_head_rows = kMaxRows;
    options.max_context = 1024;
    options.force_scalar = model.is_scalar;
    options.parallel = model.parallel;
    auto ops = MakeCpuOps(options, *device_);
    CHECK(ops.ok());
    ops_ = *std::move(ops);
  }

  Activations& act() { return static_cast<CpuOps&>(*ops_).activations(); }
  Ops& ops() { return *ops_; }
  ModelWeights& weights() { return weights_; }

  void Start(std::span<const int32_t> tokens) {
    ops_->ResetTail(0);
    const std::vector<PageId> pages = {0, 1, 2, 3};
    const SequenceRows run{.first_position = 0,
                           .num_rows = static_cast<int32_t>(tokens.size()),
                           .tokens = tokens.data(),
                           .pages = pages.data(),
                           .num_pages = 4};
    CHECK(ops_->AdvanceStep({.runs = {&run, 1}}).ok());
    CHECK(ops_->Embed({.step = ops_->view(), .embed = weights_.embed}).ok());
  }

  // Everything each row goes through except attention itself; [rows][values].
  std::vector<std::vector<float>> Run(std::span<const int32_t> tokens) {
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
    CHECK(ops_->Head({.step = step,
                      .rows = all,
                      .mix = weights_.head_mix,
                      .norm = weights_.norm,
                      .head = weights_.head})
              .ok());
    Append(act().logits, rows);
    return rows;
  }

 private:
  static void Append(const std::vector<float>& values, std::vector<std::vector<float>>& rows) {
    const size_t width = values.size() / kMaxRows;
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].insert(rows[r].end(), &values[r * width], &values[r * width] + width);
    }
  }

  const Matrix* Upload(StoredMatrix m) {
    m.host.values = m.values.data();
    m.host.scales = m.scales.empty() ? nullptr : m.scales.data();
    return *device_->Upload(m.host);
  }
  const Matrix* Fp8(int rows, int cols) { return Upload(testing::RandomFp8(rows, cols, ++seed_)); }
  const Matrix* Bf16(int rows, int cols) {
    return Upload(testing::Bf16Matrix(rows, cols, RandomValues(Count(rows, cols), ++seed_)));
  }
  Vector Values(int n, float size) {
    return *device_->UploadVector(RandomValues(static_cast<size_t>(n), ++seed_, size));
  }
  MixWeights Mix(int outputs, int scales) {
    const auto fn = RandomValues(Count(outputs, 4 * kHidden), ++seed_, 0.1f);
    return {Upload(testing::F32Matrix(outputs, 4 * kHidden, fn)), Values(outputs, 1.0f),
            Values(scales, 1.0f)};
  }
  ExpertWeights Expert(int spread, bool has_fp8) {
    const auto one = [&] {
      const StoredMatrix fp4 = testing::RandomFp4(128, 128, spread, ++seed_);
      return Upload(has_fp8 ? testing::Fp8Twin(fp4) : fp4);
    };
    return {.w1 = one(), .w3 = one(), .w2 = one()};
  }

  void Load(const ModelOptions& model) {
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

  uint32_t seed_ = 100;
  std::unique_ptr<Device> device_;
  ModelWeights weights_;
  std::unique_ptr<Ops> ops_;
};

std::vector<int32_t> Tokens(int count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7 % kVocabulary);
  return tokens;
}

TEST(CpuOps, RowsDoNotDependOnTheirBatch) {
  for (const bool is_hashed : {false, true}) {
    Model model({.is_hashed = is_hashed});
    std::map<int32_t, std::vector<float>> alone;
    for (const int32_t token : Tokens(kVocabulary)) alone[token] = model.Run({&token, 1})[0];
    for (const int count : {7, 8, 64, 300, kMaxRows}) {
      std::vector<int32_t> tokens = Tokens(count);
      std::shuffle(tokens.begin(), tokens.end(), std::mt19937(5));
      const auto rows = model.Run(tokens);
      for (size_t r = 0; r < rows.size(); ++r)
        ASSERT_EQ(rows[r], alone[tokens[r]]) << count << " " << r;
    }
  }
}

TEST(CpuOps, ScalarAndVectorLoopsAndAnyOrderOfPartsGiveTheSameBits) {
  const ParallelFor backwards = [](int parts, const std::function<void(int)>& fn) {
    for (int part = parts - 1; part >= 0; --part) fn(part);
  };
  for (const NumericsMode mode : {NumericsMode::kOfficial, NumericsMode::kFloat32}) {
    const auto expected = Model({.mode = mode}).Run(Tokens(70));
    EXPECT_EQ(Model({.is_scalar = true, .mode = mode}).Run(Tokens(70)), expected);
    EXPECT_EQ(Model({.mode = mode, .parallel = backwards}).Run(Tokens(70)), expected);
  }
}

TEST(CpuOps, Fp8CopyOfTheExpertsGivesEqualLogits) {
  for (const int spread : {0, 11}) {
    Model fp4({.spread = spread}), fp8({.spread = spread, .has_fp8_experts = true});
    EXPECT_EQ(CountPromotedExperts(fp4.weights()), 0);
    EXPECT_EQ(fp4.Run(Tokens(64)), fp8.Run(Tokens(64)));
  }
}

TEST(CpuOps, CountsExpertsThatPromotePer32) {
  Model model({.spread = 15});
  EXPECT_EQ(CountPromotedExperts(model.weights()), 1);
  const auto rows = model.Run(Tokens(64));
  for (const std::vector<float>& row : rows) {
    for (const float value : row) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST(CpuOps, OfficialModeStaysCloseToFloat32) {
  const auto official = Model({}).Run(Tokens(16));
  const auto plain = Model({.mode = NumericsMode::kFloat32}).Run(Tokens(16));
  for (size_t r = 0; r < 16; ++r) {
    double xy = 0, xx = 0, yy = 0;
    for (size_t i = official[r].size() - kVocabulary; i < official[r].size(); ++i) {
      xy += double{official[r][i]} * double{plain[r][i]};
      xx += double{official[r][i]} * double{official[r][i]};
      yy += double{plain[r][i]} * double{plain[r][i]};
    }
    EXPECT_LT(1.0 - 2.0 * xy / (xx + yy), 0.02) << r;
  }
}

TEST(DraftInput, ReadsEverySourceBeforeItWritesARow) {
  Model model({});
  const std::vector<int32_t> tokens = Tokens(20);
  const auto draft = [&](const std::vector<int32_t>& sources) {
    model.Start(tokens);
    CHECK(model.ops()
              .DraftInput({.step = model.ops().view(),
                           .embed = model.weights().embed,
                           .mtp = model.weights().mtp,
                           .source_row = sources})
              .ok());
    return model.act().streams;
  };
  std::vector<int32_t> sources(20);
  for (size_t r = 0; r < 20; ++r) sources[r] = static_cast<int32_t>(19 - r);
  const std::vector<float> together = draft(sources);
  for (size_t r = 0; r < 20; ++r) {
    const std::vector<float> repeated = draft(std::vector<int32_t>(20, sources[r]));
    const size_t first = r * 4 * kHidden;
    ASSERT_TRUE(std::equal(&together[first], &together[first] + 4 * kHidden, &repeated[first]))
        << r;
  }
}

// Two drafts from the first `step` tokens on: (their tokens, the view's token and position after).
class DraftPair {
 public:
  explicit DraftPair(float inv_temperature) {
    model_.Start(Tokens(kRows));
    spec_.greedy = inv_temperature == 0;
    spec_.inv_temperature = inv_temperature;
    row_.spec = &spec_;
    row_.key = 99;
    row_.position = kRows + 1;
    row_.is_draft = true;
  }

  // The token is given by the caller for each draft.
  std::vector<int32_t> ByHand() {
    std::vector<int32_t> drafts;
    int32_t token = 7, source = kRows - 1;
    for (int i = 0; i < 2; ++i) {
      Advance(kRows - 1 + i, token);
      Enter({&source, 1});
      std::vector<TokenRecord> chosen(1);
      std::vector<uint8_t> is_empty(1);
      CHECK(model_.ops().Sample({.rows = {&row_, 1}, .chosen = chosen, .is_empty = is_empty}).ok());
      drafts.push_back(token = chosen[0].token);
      source = 0;
      ++row_.position;
    }
    return drafts;
  }

  std::vector<int32_t> OneAfterTheOther() {
    const int32_t source = kRows - 1;
    Advance(kRows - 1, 7);
    CHECK(model_.ops().BeginDrafts({&row_, 1}).ok());
    Enter({&source, 1});
    CHECK(model_.ops().KeepDraft().ok());
    Enter({});
    CHECK(model_.ops().KeepDraft().ok());
    std::vector<int32_t> drafts(2);
    CHECK(model_.ops().TakeDrafts(drafts).ok());
    EXPECT_EQ(model_.ops().view().token[0], drafts[1]);
    EXPECT_EQ(model_.ops().view().position[0], kRows + 1);
    return drafts;
  }

 private:
  static constexpr int kRows = 20;

  void Advance(int position, int32_t token) {
    const SequenceRows run{.first_position = position, .num_rows = 1, .tokens = &token};
    CHECK(model_.ops().AdvanceStep({.runs = {&run, 1}, .is_drafter = true}).ok());
  }
  void Enter(std::span<const int32_t> source_row) {
    Ops& ops = model_.ops();
    const ModelWeights& weights = model_.weights();
    CHECK(ops.DraftInput({.step = ops.view(),
                          .embed = weights.embed,
                          .mtp = weights.mtp,
                          .source_row = source_row})
              .ok());
    CHECK(ops.Head({.step = ops.view(),
                    .rows = {},
                    .has_all_rows = true,
                    .mix = weights.head_mix,
                    .norm = weights.norm,
                    .head = weights.head})
              .ok());
  }

  Model model_{ModelOptions{}};
  SamplingSpec spec_;
  SampleRow row_;
};

TEST(Drafts, FollowOneAnotherAsIfTheCallerHadGivenEachToken) {
  for (const float inv_temperature : {0.0f, 1.0f, 0.4f}) {
    EXPECT_EQ(DraftPair(inv_temperature).OneAfterTheOther(), DraftPair(inv_temperature).ByHand())
        << inv_temperature;
  }
}

TEST(Drafts, AreTakenAsManyAsWereKept) {
  Model model({});
  model.Start(Tokens(3));
  EXPECT_EQ(model.ops().BeginDrafts({}).code(), absl::StatusCode::kInvalidArgument);
  std::vector<int32_t> tokens(1);
  EXPECT_EQ(model.ops().TakeDrafts(tokens).code(), absl::StatusCode::kInvalidArgument);
}

TEST(MakeCpuOps, RefusesSizesByName) {
  const auto device = MakeCpuDevice(NumericsMode::kOfficial);
  CpuOptions options{.config = Config(), .layout = PageLayout(Shape())};
  options.config.hidden_size = 192;
  const auto ops = MakeCpuOps(options, *device);
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(ops.status().message()).find("hidden_size is 192"), std::string::npos);
}

}  // namespace
}  // namespace baton::kernels::cpu
