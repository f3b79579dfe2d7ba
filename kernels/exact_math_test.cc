#include "kernels/exact_math.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

// Vectors of contracts.md 2.6, bit for bit.
namespace baton::kernels {
namespace {

struct Vector1 {
  float x;
  uint32_t bits;
};

void ExpectBits(const char* name, float (*function)(float), const std::vector<Vector1>& vectors) {
  for (const Vector1& v : vectors)
    EXPECT_EQ(BitsOf(function(v.x)), v.bits) << name << " of " << v.x;
}

TEST(ExactMath, ExpMatchesItsVectors) {
  ExpectBits("Exp", [](float x) { return Exp(x); },
             {{-70, 0x0d0102bf},
              {-1, 0x3ebc5ab2},
              {0, 0x3f800000},
              {0.5f, 0x3fd3094c},
              {1, 0x402df854},
              {10.5f, 0x470ddb81},
              {70, 0x71fdfe91}});
}

TEST(ExactMath, SigmoidAndSiluMatchTheirVectors) {
  ExpectBits("Sigmoid", [](float x) { return Sigmoid(x); },
             {{-20, 0x310da433},
              {-1, 0x3e89b2b1},
              {-0.25f, 0x3ee02a67},
              {0, 0x3f000000},
              {0.25f, 0x3f0feacd},
              {1, 0x3f3b26a8},
              {5.5f, 0x3f7ef543}});
  ExpectBits("Silu", [](float x) { return Silu(x); },
             {{-20, 0xb3310d40},
              {-5, 0xbd0911d0},
              {-1, 0xbe89b2b1},
              {0.5f, 0x3e9f597f},
              {1, 0x3f3b26a8},
              {10, 0x411ffe24}});
}

TEST(ExactMath, Log1pAndSoftplusMatchTheirVectors) {
  ExpectBits("Log1p", [](float x) { return Log1p(x); },
             {{0, 0},
              {1e-8f, 0x322bcc77},
              {0x1p-23f, 0x33ffffff},
              {0.25f, 0x3e647fbe},
              {0.5f, 0x3ecf991f},
              {1, 0x3f317218}});
  ExpectBits("Softplus", [](float x) { return Softplus(x); },
             {{-90, 0},
              {-20, 0x310da433},
              {-5, 0x3bdc0c6d},
              {-1, 0x3ea063d6},
              {0, 0x3f317218},
              {1, 0x3fa818f6},
              {5, 0x40a03703},
              {20, 0x41a00000},
              {25, 0x41c80000}});
  ExpectBits("sqrt(Softplus)", [](float x) { return Sqrt(Softplus(x)); },
             {{-5, 0x3da7d3f3},
              {-1, 0x3f0f485c},
              {0, 0x3f55224d},
              {1, 0x3f92af5a},
              {5, 0x400f3455},
              {25, 0x40a00000}});
}

TEST(ExactMath, MassAndExpNegMatchTheirVectors) {
  EXPECT_EQ(Mass(-0.5f), 2605029376u);
  EXPECT_EQ(Mass(-1.0f), 1580030208u);
  EXPECT_EQ(Mass(-10.0f), 194991u);
  EXPECT_EQ(Mass(-20.0f), 9u);
  ExpectBits("ExpNeg", [](float x) { return ExpNeg(x); },
             {{-0.5f, 0x3f1b4598}, {-1, 0x3ebc5ab2}, {-10, 0x383e6bce}, {-20, 0x310da433}});
}

TEST(ExactMath, MassHasItsLimits) {
  EXPECT_EQ(Mass(0.0f), uint64_t{1} << 32);
  EXPECT_EQ(Mass(std::nextafter(-24.0f, -25.0f)), 0u);
  EXPECT_EQ(Mass(-INFINITY), 0u);
  EXPECT_EQ(Mass(NAN), 0u);
}

TEST(ExactMath, MassNeverFallsAsItsArgumentRises) {
  uint64_t last = 0;
  for (float d = -24.0f; d < 0.0f; d += 0x1p-14f) {
    const uint64_t mass = Mass(d);
    ASSERT_GE(mass, last) << d;
    last = mass;
  }
}

TEST(ExactMath, ExpNegIsZeroFarBelow) {
  EXPECT_EQ(ExpNeg(-87.5f), 0.0f);
  EXPECT_EQ(ExpNeg(-INFINITY), 0.0f);
  EXPECT_GT(ExpNeg(-87.0f), 0.0f);
  EXPECT_EQ(ExpNeg(0.0f), 1.0f);
}

TEST(ExactMath, LogIsWithinItsBound) {
  for (float x = 0x1p-33f; x < 1e6f; x *= 1.0137f) {
    const double exact = std::log(static_cast<double>(x));
    EXPECT_NEAR(static_cast<double>(Log(x)), exact, std::fabs(exact) * 8.1e-8) << x;
  }
}

TEST(ExactMath, GumbelMatchesItsVectors) {
  const std::vector<std::pair<uint32_t, uint32_t>> vectors = {{0x62338b63, 0x3d2f135b},
                                                              {0x1ebf999c, 0xbf404858},
                                                              {0x3fe14668, 0xbea7edf6},
                                                              {0xdfd32b20, 0x40007c2b}};
  for (const auto& [word, bits] : vectors) EXPECT_EQ(BitsOf(Gumbel(word)), bits) << word;
  EXPECT_EQ(Gumbel(0), -3.12999463f);
  EXPECT_EQ(Gumbel(0x80000000u), 0.366512924f);
  EXPECT_EQ(Gumbel(0xffffffffu), 22.8738575f);
}

TEST(RopeTables, SinAndCosMatchTheirVectors) {
  struct Case {
    float angle;
    uint32_t sin, cos;
  };
  const std::vector<Case> cases = {{1, 0x3f576aa4, 0x3f0a5140},
                                   {2.5f, 0x3f193578, 0xbf4d17bf},
                                   {1000, 0x3f53ae61, 0x3f0ff813},
                                   {123456, 0xbf3d8337, 0xbf2c1b84},
                                   {1048575, 0xbf1d9959, 0x3f49bd23}};
  for (const Case& c : cases) {
    const SinCos out = RopeSinCos(c.angle);
    EXPECT_EQ(BitsOf(out.sin), c.sin) << c.angle;
    EXPECT_EQ(BitsOf(out.cos), c.cos) << c.angle;
  }
}

TEST(RopeTables, SinAndCosEqualTheDoubleResultsRounded) {
  for (int position = 0; position < (1 << 20); position += 4099) {
    const float angle = RopeAngle(position, 0.687656f);
    const SinCos out = RopeSinCos(angle);
    EXPECT_EQ(out.sin, static_cast<float>(std::sin(static_cast<double>(angle)))) << position;
    EXPECT_EQ(out.cos, static_cast<float>(std::cos(static_cast<double>(angle)))) << position;
  }
}

TEST(RopeTables, FrequenciesMatchTheirVectors) {
  const RopeShape plain = {.rope_dim = 64, .theta = 10000};
  EXPECT_EQ(BitsOf(RopeFrequency(plain, 1)), 0x3f3ff911u);
  EXPECT_EQ(BitsOf(RopeFrequency(plain, 16)), 0x3c23d70au);
  EXPECT_EQ(BitsOf(RopeFrequency(plain, 31)), 0x390bd472u);
  const RopeShape yarn = {.rope_dim = 64,
                          .theta = 160000,
                          .yarn_factor = 16,
                          .yarn_beta_fast = 32,
                          .yarn_beta_slow = 1,
                          .yarn_original_positions = 65536};
  EXPECT_EQ(BitsOf(RopeFrequency(yarn, 1)), 0x3f300a3au);
  EXPECT_EQ(BitsOf(RopeFrequency(yarn, 16)), 0x3b147ae1u);
  EXPECT_EQ(BitsOf(RopeFrequency(yarn, 31)), 0x35187c4cu);
}

}  // namespace
}  // namespace baton::kernels
