#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/tensor.h"

namespace baton::kernels::cpu {
namespace {

// The code whose value is nearest to x; of two equally near ones the even code.
uint8_t NearestCode(float x, int last_code, float (*decode)(uint8_t)) {
  int best = 0;
  for (int code = 1; code <= last_code; ++code) {
    const double now = std::fabs(static_cast<double>(decode(static_cast<uint8_t>(code))) - x);
    const double before = std::fabs(static_cast<double>(decode(static_cast<uint8_t>(best))) - x);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best);
}

TEST(E4m3, DecodesTheFormatsCorners) {
  EXPECT_EQ(DecodeE4m3(0x00), 0.0f);
  EXPECT_EQ(DecodeE4m3(0x01), 0x1p-9f);
  EXPECT_EQ(DecodeE4m3(0x08), 0x1p-6f);
  EXPECT_EQ(DecodeE4m3(0x38), 1.0f);
  EXPECT_EQ(DecodeE4m3(0x7e), 448.0f);
  EXPECT_EQ(DecodeE4m3(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(DecodeE4m3(0x7f)));
  EXPECT_TRUE(std::isnan(DecodeE4m3(0xff)));
}

TEST(E4m3, EncodesEveryValueToItself) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(EncodeE4m3(DecodeE4m3(static_cast<uint8_t>(code))), code);
  }
}

TEST(E4m3, RoundsToTheNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = DecodeE4m3(static_cast<uint8_t>(code));
    const float high = DecodeE4m3(static_cast<uint8_t>(code + 1));
    for (const float part : {0.25f, 0.4999f, 0.5f, 0.5001f, 0.75f}) {
      const float x = low + part * (high - low);
      const uint8_t expected = NearestCode(x, 0x7e, DecodeE4m3);
      EXPECT_EQ(EncodeE4m3(x), expected) << x;
      EXPECT_EQ(EncodeE4m3(-x), expected | 0x80) << x;
      EXPECT_EQ(RoundE4m3(x), DecodeE4m3(expected)) << x;
    }
  }
}

TEST(E4m3, SaturatesAt448) {
  EXPECT_EQ(RoundE4m3(460.0f), 448.0f);
  EXPECT_EQ(RoundE4m3(-1e9f), -448.0f);
}

TEST(E2m1, RoundsTiesAsTheSpecSays) {
  const std::array<std::pair<float, float>, 7> ties = {
      {{0.25f, 0}, {0.75f, 1}, {1.25f, 1}, {1.75f, 2}, {2.5f, 2}, {3.5f, 4}, {5.0f, 4}}};
  for (const auto& [x, value] : ties) {
    EXPECT_EQ(DecodeE2m1(EncodeE2m1(x)), value) << x;
    EXPECT_EQ(DecodeE2m1(EncodeE2m1(-x)), -value) << x;
  }
  for (float x = 0.0f; x <= 6.0f; x += 0.01f) {
    EXPECT_EQ(EncodeE2m1(x), NearestCode(x, 7, DecodeE2m1)) << x;
  }
  EXPECT_EQ(DecodeE2m1(EncodeE2m1(100.0f)), 6.0f);
}

TEST(E2m1, UnpacksTheSpecsByte) {
  EXPECT_EQ(DecodeE2m1(0xa7 & 15), 6.0f);
  EXPECT_EQ(DecodeE2m1(0xa7 >> 4), -1.0f);
  EXPECT_EQ(DecodeE2m1(8), 0.0f);
  EXPECT_FALSE(std::signbit(DecodeE2m1(8)));
}

TEST(E8m0, IsAnExponent) {
  EXPECT_EQ(DecodeE8m0(127), 1.0f);
  EXPECT_EQ(DecodeE8m0(0), 0x1p-127f);
  EXPECT_TRUE(std::isnan(DecodeE8m0(255)));
  for (int code = 1; code < 255; ++code) {
    EXPECT_EQ(EncodeE8m0(DecodeE8m0(static_cast<uint8_t>(code))), code);
  }
}

TEST(Bf16, RoundsTiesToEvenAndKeepsSpecials) {
  EXPECT_EQ(RoundBf16(1.0f + 0x1p-8f), 1.0f);
  EXPECT_EQ(RoundBf16(1.0f + 0x1.8p-7f), 1.0f + 0x1p-6f);
  EXPECT_EQ(RoundBf16(1.0f + 0x1.01p-8f), 1.0f + 0x1p-7f);
  EXPECT_EQ(RoundBf16(-1.0f - 0x1.01p-8f), -1.0f - 0x1p-7f);
  EXPECT_TRUE(std::isinf(RoundBf16(std::numeric_limits<float>::infinity())));
  EXPECT_TRUE(std::isnan(RoundBf16(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Scales, MatchTheSpecsVectors) {
  const std::array<std::pair<float, int>, 7> fp8 = {{{0.0f, -22},
                                                     {1e-4f, -22},
                                                     {0.4375f, -10},
                                                     {0.5f, -9},
                                                     {3.0f, -7},
                                                     {448.0f, 0},
                                                     {449.0f, 1}}};
  for (const auto& [amax, exponent] : fp8) {
    const float x[2] = {0.0f, -amax};
    EXPECT_EQ(Fp8Scale(x, 2), std::ldexp(1.0f, exponent)) << amax;
  }
  const std::array<std::pair<float, int>, 6> fp4 = {
      {{0.0f, -126}, {0.75f, -3}, {1.0f, -2}, {3.0f, -1}, {6.0f, 0}, {6.001f, 1}}};
  for (const auto& [amax, exponent] : fp4) {
    const float x[2] = {0.0f, -amax};
    EXPECT_EQ(Fp4Scale(x, 2), std::ldexp(1.0f, exponent)) << amax;
  }
}

TEST(QuantiseRow, ScalesEachGroupOf128) {
  std::vector<float> x(256), codes(256), scales(2);
  for (int i = 0; i < 256; ++i)
    x[static_cast<size_t>(i)] = std::sin(0.7f * static_cast<float>(i)) * (i < 128 ? 3.0f : 900.0f);
  QuantiseRow(x.data(), 256, NumericsMode::kOfficial, codes.data(), scales.data());
  EXPECT_EQ(scales[0], 0x1p-7f);
  EXPECT_EQ(scales[1], 4.0f);
  for (size_t i = 0; i < 256; ++i) EXPECT_EQ(codes[i], RoundE4m3(x[i] / scales[i / 128]));
}

TEST(QuantiseRow, KeepsValuesInFloat32Mode) {
  std::vector<float> x(128, 0.123f), codes(128), scales(1);
  QuantiseRow(x.data(), 128, NumericsMode::kFloat32, codes.data(), scales.data());
  EXPECT_EQ(codes, x);
  EXPECT_EQ(scales[0], 1.0f);
}

TEST(SimulateFp8Kv, IsIdempotentByGroupsOf64) {
  std::vector<float> x(128);
  for (size_t i = 0; i < 128; ++i) x[i] = std::cos(static_cast<float>(i)) * (i < 64 ? 1.0f : 1e-3f);
  std::vector<float> once = x;
  SimulateFp8Kv(once.data(), 128);
  EXPECT_NE(once, x);
  for (size_t i = 0; i < 128; ++i) {
    EXPECT_NEAR(once[i], x[i], std::max(std::fabs(x[i]) / 16.0f, i < 64 ? 0x1p-18f : 0x1p-28f));
    EXPECT_EQ(once[i], RoundBf16(once[i]));
  }
  std::vector<float> twice = once;
  SimulateFp8Kv(twice.data(), 128);
  EXPECT_EQ(twice, once);
}

TEST(SimulateFp4, KeepsSignsAndMaxima) {
  std::vector<float> x(64);
  for (size_t i = 0; i < 64; ++i)
    x[i] = (i % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(i % 32) / 4.0f;
  SimulateFp4(x.data(), 64);
  EXPECT_EQ(x[31], -8.0f);  // 7.75 with scale 2: 3.875 rounds to 4
  EXPECT_EQ(x[4], 1.0f);
  EXPECT_EQ(x[0], 0.0f);
}

TEST(Hadamard, MatchesTheSpecsVector) {
  std::vector<float> x(128);
  for (size_t i = 0; i < 128; ++i) x[i] = static_cast<float>(i) / 64.0f - 1.0f;
  Hadamard(x.data(), 128);
  std::vector<float> expected(128, 0.0f);
  expected[0] = expected[1] = -0.088388f;
  expected[2] = -0.176777f;
  expected[4] = -0.353553f;
  expected[8] = -0.707107f;
  expected[16] = -1.414214f;
  expected[32] = -2.828427f;
  expected[64] = -5.656854f;
  for (size_t i = 0; i < 128; ++i) EXPECT_NEAR(x[i], expected[i], 1e-6f) << i;
}

TEST(IndexForm, DoesNothingInFloat32Mode) {
  std::vector<float> x(128, 0.3f);
  const std::vector<float> before = x;
  IndexForm(x.data(), 128, NumericsMode::kFloat32);
  EXPECT_EQ(x, before);
  IndexForm(x.data(), 128, NumericsMode::kOfficial);
  EXPECT_EQ(x[0], 3.0f);  // 128 * 0.3 / sqrt(128) = 3.39; scale 1, e2m1 gives 3
  EXPECT_EQ(x[1], 0.0f);
}

}  // namespace
}  // namespace baton::kernels::cpu
