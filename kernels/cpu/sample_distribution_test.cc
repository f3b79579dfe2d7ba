#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"
#include "kernels/cpu/sample.h"

// Chi-square of the sampler's choices against the softmax (contracts.md 7): a million draws.
namespace baton::kernels::cpu {
namespace {

constexpr int kDraws = 1'000'000;
constexpr int kTokens = 60;

// Five standard deviations above the mean of a chi-square: one false alarm in about a million.
void ExpectSoftmax(float inv_temperature, uint64_t seed) {
  SeededRng rng(seed);
  std::vector<float> logits(kTokens);
  for (float& logit : logits) logit = static_cast<float>(4 * rng.Uniform());
  std::vector<double> probability(kTokens);
  double sum = 0;
  for (size_t v = 0; v < probability.size(); ++v)
    sum += probability[v] = std::exp(static_cast<double>(logits[v] * inv_temperature));

  SamplingSpec spec;
  spec.inv_temperature = inv_temperature;
  SampleRow row;
  row.spec = &spec;
  row.key = Mix64(seed);
  SampleScratch scratch;
  std::vector<int> seen(kTokens);
  for (row.position = 0; row.position < kDraws; ++row.position) {
    TokenRecord chosen;
    bool is_empty = false;
    SampleRowOnCpu(row, logits, chosen, is_empty, scratch);
    ++seen[static_cast<size_t>(chosen.token)];
  }

  double chi_square = 0;
  for (size_t v = 0; v < probability.size(); ++v) {
    const double expected = kDraws * probability[v] / sum;
    ASSERT_GT(expected, 5);
    chi_square += (seen[v] - expected) * (seen[v] - expected) / expected;
  }
  const double freedom = kTokens - 1;
  EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom));
  EXPECT_GT(chi_square, freedom - 5 * std::sqrt(2 * freedom));
}

TEST(SamplerDistribution, IsTheSoftmax) { ExpectSoftmax(1.0f, 1); }

TEST(SamplerDistribution, IsTheSoftmaxAtAnotherTemperature) { ExpectSoftmax(1.7f, 2); }

}  // namespace
}  // namespace baton::kernels::cpu
