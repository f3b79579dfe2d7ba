#include "kernels/cpu/attention_kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kHeads = 5;
constexpr int kDims = 128;

std::vector<float> Random(size_t n, uint64_t seed) {
  std::vector<float> values;
  for (size_t i = 0; i < n; ++i) {
    const auto bits = static_cast<double>(Mix64(seed * 7919 + i) >> 40);
    values.push_back(static_cast<float>(bits / (1 << 23) - 1.0));
  }
  return values;
}

// Keys and what every kernel makes of them.
struct Results {
  std::vector<float> scores, weights, denominators, sums, state, entry;
};

Results RunAll(const AttentionKernels& kernels, int num_keys) {
  const std::vector<float> rows = Random(kKeyBlock * kDims, 1), queries = Random(kHeads * kDims, 2);
  std::vector<const float*> keys;
  for (int j = 0; j < num_keys; ++j) keys.push_back(rows.data() + j * kDims);
  const KeyBlock block{keys.data(), num_keys, kDims};
  Results r;
  r.scores.resize(kHeads * kKeyBlock);
  kernels.score(queries.data(), kHeads, block, r.scores.data());
  r.weights = r.scores;
  r.denominators.resize(2 * kHeads);
  for (int h = 0; h < kHeads; ++h) {
    float* weights = r.weights.data() + h * kKeyBlock;
    kernels.exponentiate(weights, num_keys, 0.25f, &r.denominators[static_cast<size_t>(h)]);
    std::vector<float> below(r.scores.begin() + h * kKeyBlock,
                             r.scores.begin() + (h + 1) * kKeyBlock);
    kernels.exponentiate_below(below.data(), num_keys, 30.0f,
                               &r.denominators[static_cast<size_t>(kHeads + h)]);
  }
  r.sums.resize(kHeads * kDims);
  kernels.accumulate(r.weights.data(), kHeads, block, r.sums.data());

  r.state.resize(3 * kDims);
  const PoolState state{r.state.data(), r.state.data() + kDims, r.state.data() + 2 * kDims, kDims};
  ResetPool(state);
  for (int j = 0; j < num_keys; ++j)
    kernels.fold(keys[static_cast<size_t>(j)], rows.data() + (63 - j) * kDims, state);

  PoolInput input;
  input.num_tokens = std::min(num_keys, PoolInput::kMaxTokens);
  for (int t = 0; t < input.num_tokens; ++t) {
    input.kv[t] = keys[static_cast<size_t>(t)];
    input.score[t] = rows.data() + (63 - t) * kDims;
  }
  r.entry.resize(kDims);
  kernels.pool(input, kDims, r.entry.data());
  return r;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(AttentionKernels, EveryInstructionSetGivesTheSameBits) {
  for (const int num_keys : {1, 3, 4, 7, 63, 64}) {
    const Results want = RunAll(AttentionKernelsFor(Isa::kScalar), num_keys);
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!IsSupported(isa)) continue;
      SCOPED_TRACE(num_keys);
      const Results got = RunAll(AttentionKernelsFor(isa), num_keys);
      EXPECT_TRUE(SameBits(got.scores, want.scores));
      EXPECT_TRUE(SameBits(got.weights, want.weights));
      EXPECT_TRUE(SameBits(got.denominators, want.denominators));
      EXPECT_TRUE(SameBits(got.sums, want.sums));
      EXPECT_TRUE(SameBits(got.state, want.state));
      EXPECT_TRUE(SameBits(got.entry, want.entry));
    }
  }
}

TEST(AttentionKernels, AreTheSoftmaxTheySayTheyAre) {
  const int num_keys = 9;
  const Results r = RunAll(AttentionKernelsFor(Isa::kScalar), num_keys);
  const std::vector<float> rows = Random(kKeyBlock * kDims, 1), queries = Random(kHeads * kDims, 2);
  for (int h = 0; h < kHeads; ++h) {
    double denominator = 0, sum = 0;
    for (int j = 0; j < num_keys; ++j) {
      double score = 0;
      for (int d = 0; d < kDims; ++d) {
        score += double{queries[static_cast<size_t>(h * kDims + d)]} *
                 rows[static_cast<size_t>(j * kDims + d)];
      }
      EXPECT_NEAR(r.scores[static_cast<size_t>(h * kKeyBlock + j)], score, 1e-5);
      denominator += std::exp(0.25 * score);
      sum += std::exp(0.25 * score) * rows[static_cast<size_t>(j * kDims + 3)];
    }
    EXPECT_NEAR(r.denominators[static_cast<size_t>(h)], denominator, 1e-4);
    EXPECT_NEAR(r.sums[static_cast<size_t>(h * kDims + 3)], sum, 1e-4);
  }
}

// contracts.md 1.4: both poolings are the softmax over tokens, per channel.
TEST(AttentionKernels, PoolAndFoldAreTheSoftmaxOverTokens) {
  const int num_keys = 8;
  const Results r = RunAll(AttentionKernelsFor(Isa::kScalar), num_keys);
  const std::vector<float> rows = Random(kKeyBlock * kDims, 1);
  for (const int n : {0, 17, kDims - 1}) {
    double sum = 0, weighted = 0;
    for (int t = 0; t < num_keys; ++t) {
      const double b = std::exp(double{rows[static_cast<size_t>((63 - t) * kDims + n)]});
      sum += b;
      weighted += b * rows[static_cast<size_t>(t * kDims + n)];
    }
    const auto channel = static_cast<size_t>(n);
    EXPECT_NEAR(r.entry[channel], weighted / sum, 1e-6);
    EXPECT_NEAR(r.state[2 * kDims + channel] / r.state[kDims + channel], weighted / sum, 1e-6);
  }
}

}  // namespace
}  // namespace baton::kernels::cpu
