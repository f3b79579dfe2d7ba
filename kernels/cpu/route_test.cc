#include "kernels/cpu/route.h"

#include <array>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/expert_plan.h"

namespace baton::kernels::cpu {
namespace {

TEST(GateScores, MatchTheSpecsVectors) {
  std::array<float, 6> scores = {-5.0f, -1.0f, 0.0f, 1.0f, 5.0f, 25.0f};
  GateScores(scores);
  const std::array<float, 6> expected = {0.0819472f, 0.5596979f, 0.8325546f,
                                         1.1459763f, 2.2375691f, 5.0f};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(scores[i], expected[i], 2e-7f);
}

TEST(SelectExperts, BreaksTiesByTheLowerExpert) {
  const std::vector<float> scores = {1.0f, 3.0f, 2.0f, 3.0f, 2.0f, 2.0f, 3.0f};
  const std::vector<float> bias(7, 0.0f);
  std::vector<int32_t> ids(5);
  SelectExperts(scores, bias.data(), ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 3, 6, 2, 4}));
}

TEST(SelectExperts, AddsTheBiasForTheChoiceOnly) {
  const std::vector<float> scores = {1.0f, 3.0f, 2.0f};
  const std::vector<float> bias = {5.0f, 0.0f, 0.0f};
  std::vector<int32_t> ids(2);
  SelectExperts(scores, bias.data(), ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1}));
  std::vector<float> weights(2);
  RoutingWeights(scores, ids, 1.5f, weights);
  EXPECT_EQ(weights, (std::vector<float>{0.375f, 1.125f}));
}

TEST(SelectExperts, TakesAllWhenThereAreNoMore) {
  const std::vector<float> scores = {1.0f, 2.0f};
  const std::vector<float> bias = {0.0f, 0.0f};
  std::vector<int32_t> ids(2);
  SelectExperts(scores, bias.data(), ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 0}));
}

TEST(ExpertPlan, OrdersPairsByExpertThenRow) {
  const std::vector<int32_t> ids = {3, 1, 0, 3, 1, 2};
  const std::vector<float> weights = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
  ExpertPlan plan;
  plan.Build(ids, weights, 2, 4);
  EXPECT_EQ(plan.expert_begin, (std::vector<int32_t>{0, 1, 3, 4, 6}));
  EXPECT_EQ(plan.row, (std::vector<int32_t>{1, 0, 2, 2, 0, 1}));
  EXPECT_EQ(plan.weight, (std::vector<float>{0.3f, 0.2f, 0.5f, 0.6f, 0.1f, 0.4f}));
  EXPECT_EQ(plan.row_begin, (std::vector<int32_t>{0, 2, 4, 6}));
  EXPECT_EQ(plan.row_pairs, (std::vector<int32_t>{1, 4, 0, 5, 2, 3}));
}

TEST(ExpertPlan, SumsTheWeightsOfARepeatedExpert) {
  const std::vector<int32_t> ids = {2, 0, 2, 1, 1, 1};
  const std::vector<float> weights = {0.25f, 0.5f, 0.25f, 1.0f, 2.0f, 3.0f};
  ExpertPlan plan;
  plan.Build(ids, weights, 3, 3);
  EXPECT_EQ(plan.num_pairs(), 3);
  EXPECT_EQ(plan.row, (std::vector<int32_t>{0, 1, 0}));
  EXPECT_EQ(plan.weight, (std::vector<float>{0.5f, 6.0f, 0.5f}));
  EXPECT_EQ(plan.row_begin, (std::vector<int32_t>{0, 2, 3}));
}

TEST(ExpertPlan, CanBeRebuiltForFewerRows) {
  const std::vector<int32_t> many = {0, 1, 1, 0}, few = {1, 0};
  const std::vector<float> weights(4, 1.0f);
  ExpertPlan plan;
  plan.Build(many, weights, 2, 2);
  plan.Build(few, {weights.data(), 2}, 2, 2);
  EXPECT_EQ(plan.row, (std::vector<int32_t>{0, 0}));
  EXPECT_EQ(plan.row_pairs, (std::vector<int32_t>{0, 1}));
}

}  // namespace
}  // namespace baton::kernels::cpu
