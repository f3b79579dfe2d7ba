#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/one_layer_model.h"

// The phases that look at one row at a time: whatever else is in the step, a row's bits stay the
// same (L0 of contracts.md 1.2).
namespace baton::kernels::cpu {
namespace {

using testing::kMaxRows;
using testing::kVocabulary;
using testing::OneLayerConfig;
using testing::OneLayerModel;
using testing::OneLayerShape;
using testing::Tokens;

TEST(CpuOps, RowsDoNotDependOnTheirBatch) {
  for (const bool is_hashed : {false, true}) {
    OneLayerModel model({.is_hashed = is_hashed});
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
    const auto expected = OneLayerModel({.mode = mode}).Run(Tokens(70));
    EXPECT_EQ(OneLayerModel({.is_scalar = true, .mode = mode}).Run(Tokens(70)), expected);
    EXPECT_EQ(OneLayerModel({.mode = mode, .parallel = backwards}).Run(Tokens(70)), expected);
  }
}

TEST(CpuOps, Fp8CopyOfTheExpertsGivesEqualLogits) {
  for (const int spread : {0, 11}) {
    OneLayerModel fp4({.spread = spread}), fp8({.spread = spread, .has_fp8_experts = true});
    EXPECT_EQ(CountPromotedExperts(fp4.weights()), 0);
    EXPECT_EQ(fp4.Run(Tokens(64)), fp8.Run(Tokens(64)));
  }
}

TEST(CpuOps, CountsExpertsThatPromotePer32) {
  OneLayerModel model({.spread = 15});
  EXPECT_EQ(CountPromotedExperts(model.weights()), 1);
  const auto rows = model.Run(Tokens(64));
  for (const std::vector<float>& row : rows) {
    for (const float value : row) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST(CpuOps, OfficialModeStaysCloseToFloat32) {
  const auto official = OneLayerModel({}).Run(Tokens(16));
  const auto plain = OneLayerModel({.mode = NumericsMode::kFloat32}).Run(Tokens(16));
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

TEST(MakeCpuOps, RefusesSizesByName) {
  const auto device = MakeCpuDevice(NumericsMode::kOfficial);
  CpuOptions options{.config = OneLayerConfig(), .layout = PageLayout(OneLayerShape())};
  options.config.hidden_size = 192;
  const auto ops = MakeCpuOps(options, *device);
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(ops.status().message()).find("hidden_size is 192"), std::string::npos);
}

}  // namespace
}  // namespace baton::kernels::cpu
