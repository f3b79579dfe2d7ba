#include "kernels/cpu/dot.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/swiglu.h"
#include "kernels/cpu/test_matrices.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {
namespace {

using testing::RandomValues;

float LaneDot(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> lanes(16, 0.0f);
  for (size_t i = 0; i < a.size(); ++i) lanes[i % 16] = Fma(a[i], b[i], lanes[i % 16]);
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

TEST(Dot, HasTheSameLanesInEveryInstructionSet) {
  for (const int n : {0, 1, 15, 16, 17, 31, 64, 130, 512}) {
    const std::vector<float> a = RandomValues(static_cast<size_t>(n), 1);
    const std::vector<float> b = RandomValues(static_cast<size_t>(n), 2);
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (!IsSupported(isa)) continue;
      EXPECT_EQ(DotFunctionFor(isa)(a.data(), b.data(), n), LaneDot(a, b)) << n;
    }
  }
}

TEST(InverseRms, IsOneOverTheRootOfTheMeanSquare) {
  const std::vector<float> x = {3.0f, -4.0f, 0.0f, 0.0f};
  EXPECT_EQ(InverseRms(DotScalar, x.data(), 4, 0.0f), 1.0f / 2.5f);
  std::vector<float> y(4);
  const std::vector<float> weight = {1.0f, 2.0f, 3.0f, 4.0f};
  ScaleByNorm(x.data(), 0.5f, weight.data(), 4, y.data());
  EXPECT_EQ(y, (std::vector<float>{1.5f, -4.0f, 0.0f, 0.0f}));
  ScaleByNorm(x.data(), 0.5f, nullptr, 4, y.data());
  EXPECT_EQ(y, (std::vector<float>{1.5f, -2.0f, 0.0f, 0.0f}));
}

TEST(Swiglu, ClampsBeforeTheProductsInEveryInstructionSet) {
  std::vector<float> gate = RandomValues(77, 3, 100.0f), up = RandomValues(77, 4, 20.0f);
  gate[0] = 11.0f;
  up[0] = -12.0f;
  gate[1] = -0.0f;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsSupported(isa)) continue;
    std::vector<float> out = gate;
    SwigluFunctionFor(isa)({.gate = out.data(),
                            .up = up.data(),
                            .n = 77,
                            .limit = 10.0f,
                            .weight = 0.3f,
                            .out = out.data()});
    EXPECT_EQ(out[0], Silu(10.0f) * -10.0f * 0.3f);
    for (size_t i = 0; i < 77; ++i) {
      const float g = std::min(gate[i], 10.0f), u = std::min(std::max(up[i], -10.0f), 10.0f);
      ASSERT_EQ(out[i], Silu(g) * u * 0.3f) << i;
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cpu
