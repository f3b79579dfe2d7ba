#include "kernels/cpu/rope.h"

#include <cmath>

#include "gtest/gtest.h"

namespace baton::kernels::cpu {
namespace {

ModelConfig FlashRope() {
  ModelConfig config;
  config.qk_rope_head_dim = 64;
  config.rope_theta = 10000;
  config.compress_rope_theta = 160000;
  config.yarn_factor = 16;
  config.yarn_beta_fast = 32;
  config.yarn_beta_slow = 1;
  config.yarn_original_positions = 65536;
  return config;
}

TEST(RopeTable, TurnsPairsByTheFrequenciesOfTheLayerKind) {
  const RopeTable table(FlashRope());
  const RopeAngles plain = table.At(RopeKind::kPlain, 3);
  const RopeAngles compressed = table.At(RopeKind::kCompressed, 3);
  ASSERT_EQ(plain.num_pairs, 32);
  EXPECT_NEAR(plain.sin[0], std::sin(3.0), 1e-7);  // f_0 = 1 in both (model.md, appendix C)
  EXPECT_NEAR(compressed.cos[0], std::cos(3.0), 1e-7);
  EXPECT_NEAR(plain.sin[1], std::sin(3 * 7.498942093e-01), 1e-6);
  EXPECT_NEAR(compressed.sin[1], std::sin(3 * 6.876560219e-01), 1e-6);
  EXPECT_NEAR(compressed.sin[20], std::sin(3 * 2.969777783e-04), 1e-9);
}

TEST(Rotate, IsUndoneByRotateBack) {
  const RopeTable table(FlashRope());
  const RopeAngles angles = table.At(RopeKind::kCompressed, 777);
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = static_cast<float>(i) * 0.25f - 3;
  Rotate(angles, values);
  EXPECT_GT(std::abs(values[0] - -3.0f), 0.1f);
  RotateBack(angles, values);
  for (int i = 0; i < 64; ++i) EXPECT_NEAR(values[i], static_cast<float>(i) * 0.25f - 3, 1e-5f);
}

}  // namespace
}  // namespace baton::kernels::cpu
