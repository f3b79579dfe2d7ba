#include "kernels/cpu/mix.h"

#include <array>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace baton::kernels::cpu {
namespace {

constexpr MixShape kShape = {.num_streams = 4, .sinkhorn_iterations = 20, .epsilon = 1e-6f};

struct Split {
  std::array<float, 4> pre, post;
  std::array<float, 16> comb;
};

// model.md Appendix C: m[i] = sin(1.7 i), scales 1, base 0.
Split SpecsSplit() {
  std::array<float, 24> products, base{};
  const std::array<float, 3> scale = {1.0f, 1.0f, 1.0f};
  for (size_t i = 0; i < 24; ++i)
    products[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i)));
  MixWeights mix;
  mix.base = {base.data(), base.size()};
  mix.scale = {scale.data(), scale.size()};
  Split split;
  SplitMix(kShape, mix, products.data(), split.pre.data(), split.post.data(), split.comb.data());
  return split;
}

TEST(SplitMix, MatchesTheSpecsVectors) {
  const Split split = SpecsSplit();
  const std::array<float, 4> pre = {0.5000010f, 0.7294176f, 0.4364611f, 0.2837756f};
  const std::array<float, 4> post = {1.2421499f, 1.3793015f, 0.6636800f, 0.7004105f};
  const std::array<float, 16> comb = {0.2519339f, 0.4369910f, 0.1913527f, 0.1197215f,
                                      0.3078426f, 0.2798711f, 0.2010411f, 0.2112442f,
                                      0.2668298f, 0.1698429f, 0.2507575f, 0.3125688f,
                                      0.1733928f, 0.1132940f, 0.3568477f, 0.3564645f};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(split.pre[i], pre[i], 3e-7f);
    EXPECT_NEAR(split.post[i], post[i], 3e-7f);
  }
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR(split.comb[i], comb[i], 3e-7f) << i;
}

TEST(SplitMix, NormalisesColumnsLast) {
  const Split split = SpecsSplit();
  for (size_t k = 0; k < 4; ++k) {
    float column = 0.0f;
    for (size_t j = 0; j < 4; ++j) column += split.comb[j * 4 + k];
    EXPECT_NEAR(column, 1.0f, 2e-6f);
  }
}

TEST(MergeBranch, SumsOverTheFirstIndexOfComb) {
  constexpr int kHidden = 130;  // not a multiple of the piece
  const Split split = SpecsSplit();
  std::vector<float> streams(4 * kHidden), branch(kHidden);
  for (size_t i = 0; i < streams.size(); ++i) streams[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < branch.size(); ++i) branch[i] = std::cos(static_cast<float>(i));
  std::vector<float> merged = streams;
  MergeBranch({.num_streams = 4,
               .hidden = kHidden,
               .branch = branch.data(),
               .post = split.post.data(),
               .comb = split.comb.data(),
               .streams = merged.data()});
  for (size_t k = 0; k < 4; ++k) {
    for (size_t i = 0; i < kHidden; ++i) {
      float expected = split.post[k] * branch[i];
      for (size_t j = 0; j < 4; ++j) expected += split.comb[j * 4 + k] * streams[j * kHidden + i];
      ASSERT_EQ(merged[k * kHidden + i], expected) << k << "," << i;
    }
  }
}

TEST(CollapseStreams, WeighsEveryStream) {
  const std::vector<float> streams = {1.0f, 2.0f, 10.0f, 20.0f, 100.0f, 200.0f};
  const std::array<float, 3> pre = {1.0f, 0.5f, 0.25f};
  std::array<float, 2> u;
  CollapseStreams(3, 2, streams.data(), pre.data(), u.data());
  EXPECT_EQ(u[0], 31.0f);
  EXPECT_EQ(u[1], 62.0f);
}

}  // namespace
}  // namespace baton::kernels::cpu
