#include "router/openai/phase_plan.h"

#include <gtest/gtest.h>
#include <vector>

namespace baton::router {
namespace {

constexpr MarkupIds kMarkup = {.think_open = 100, .think_close = 101, .dsml = 102, .eos = 1};
using Ids = std::vector<int32_t>;

GenerateRequest Request() {
  GenerateRequest request;
  request.finish = {.stop_tokens = {1, 7}, .max_tokens = 50, .min_tokens = 5};
  return request;
}

ChoiceFinished Stop(int32_t token) {
  return {.choice = 0, .reason = FinishReason::kStop, .stop_token = token};
}
ChoiceFinished Length() { return {.choice = 0, .reason = FinishReason::kLength}; }

TEST(PhasePlan, LeavesAPlainRequestAlone) {
  const PhasePlan plan({}, kMarkup, true, 50);
  EXPECT_FALSE(plan.may_advance());
  EXPECT_TRUE(plan.forced().empty());
}

TEST(PhasePlan, ForcesTheCallAtOnceWithoutThinking) {
  const PhasePlan plan({.call_prefix = {8, 9}, .thinking_budget = {}}, kMarkup, false, 50);
  EXPECT_FALSE(plan.may_advance());
  EXPECT_EQ(plan.forced(), (Ids{8, 9}));
  GenerateRequest request = Request();
  plan.Apply(0, request);
  EXPECT_EQ(request.finish.max_tokens, 48);
  EXPECT_EQ(request.finish.min_tokens, 3);
  EXPECT_EQ(request.finish.stop_tokens, (Ids{7}));
  EXPECT_EQ(request.sampling.bad_words, (std::vector<Ids>{{1}}));
}

TEST(PhasePlan, ForcesTheCallBehindTheReasoning) {
  PhasePlan plan({.call_prefix = {8, 9}, .thinking_budget = {}}, kMarkup, true, 50);
  EXPECT_TRUE(plan.may_advance());
  EXPECT_TRUE(plan.forced().empty());
  GenerateRequest request = Request();
  plan.Apply(0, request);
  EXPECT_EQ(request.finish.stop_tokens, (Ids{7, 101}));
  EXPECT_EQ(request.sampling.bad_words, (std::vector<Ids>{{1}, {102}}));
  EXPECT_EQ(request.finish.min_tokens, 0);
  EXPECT_EQ(request.finish.max_tokens, 50);

  EXPECT_FALSE(plan.Advance(Stop(7), true, 10));
  ASSERT_TRUE(plan.Advance(Stop(101), false, 10));
  EXPECT_EQ(plan.forced(), (Ids{8, 9}));
  EXPECT_FALSE(plan.may_advance());
  request = Request();
  plan.Apply(10, request);
  EXPECT_EQ(request.finish.max_tokens, 38);
  EXPECT_EQ(request.finish.stop_tokens, (Ids{7}));
  EXPECT_EQ(request.sampling.bad_words, (std::vector<Ids>{{1}}));
  EXPECT_FALSE(plan.Advance(Length(), false, 50));
}

TEST(PhasePlan, EndsTheReasoningAtItsBudget) {
  PhasePlan plan({.call_prefix = {}, .thinking_budget = 20}, kMarkup, true, 50);
  GenerateRequest request = Request();
  plan.Apply(0, request);
  EXPECT_EQ(request.finish.max_tokens, 20);
  EXPECT_EQ(request.finish.stop_tokens, (Ids{1, 7})) << "the model may still end by itself";
  EXPECT_TRUE(request.sampling.bad_words.empty());
  PhasePlan ended = plan;
  EXPECT_FALSE(ended.Advance(Stop(1), true, 12));
  PhasePlan closed = plan;
  ASSERT_TRUE(closed.Advance(Length(), /*is_in_reasoning=*/false, 20));
  EXPECT_TRUE(closed.forced().empty()) << "the content goes on";
  ASSERT_TRUE(plan.Advance(Length(), /*is_in_reasoning=*/true, 20));
  EXPECT_EQ(plan.forced(), (Ids{101}));
  request = Request();
  plan.Apply(20, request);
  EXPECT_EQ(request.finish.max_tokens, 29);
  EXPECT_EQ(request.finish.min_tokens, 0);
}

TEST(PhasePlan, ForcesBothAtTheBudget) {
  PhasePlan plan({.call_prefix = {8}, .thinking_budget = 20}, kMarkup, true, 50);
  ASSERT_TRUE(plan.Advance(Length(), true, 20));
  EXPECT_EQ(plan.forced(), (Ids{101, 8}));
}

TEST(PhasePlan, TakesABudgetOfNothing) {
  const PhasePlan plan({.call_prefix = {}, .thinking_budget = 0}, kMarkup, true, 50);
  EXPECT_FALSE(plan.may_advance());
  EXPECT_EQ(plan.forced(), (Ids{101}));
}

TEST(PhasePlan, DoesNotPassTheAnswersLimit) {
  PhasePlan plan({.call_prefix = {8, 9}, .thinking_budget = {}}, kMarkup, true, 12);
  EXPECT_FALSE(plan.Advance(Length(), true, 12));
  ASSERT_TRUE(plan.Advance(Stop(101), false, 11));
  EXPECT_EQ(plan.NumLeft(11), -1);
}

}  // namespace
}  // namespace baton::router
