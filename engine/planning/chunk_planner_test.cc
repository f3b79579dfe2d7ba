#include "engine/planning/chunk_planner.h"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace baton::engine {
namespace {

SequenceFacts Prompt(uint64_t id, int tokens, int computed = 0) {
  return {.id = {id},
          .prompt_tokens = tokens,
          .num_tokens = tokens,
          .computed = computed,
          .max_total = tokens + 10,
          .pages = computed / kPageTokens};
}

PoolCounts Pool(int free) { return {.total = 1000, .free = free}; }

// The ends of all chunks of a prompt that is alone.
std::vector<int> Borders(SequenceFacts facts, int chunk_tokens) {
  std::vector<int> ends;
  while (facts.computed < facts.prompt_tokens) {
    const int end = ChunkEnd(facts, chunk_tokens);
    if (end == facts.computed) break;
    ends.push_back(end);
    facts.computed = end;
  }
  return ends;
}

TEST(ChunkEnd, LiesAtPagesAndAlwaysAtTheLastFullPage) {
  struct Case {
    int prompt, computed, chunk;
    std::vector<int> ends;
  };
  const std::vector<Case> cases = {
      {1, 0, 768, {1}},
      {255, 0, 768, {255}},
      {256, 0, 768, {256}},
      {257, 0, 768, {256, 257}},
      {700, 0, 768, {512, 700}},
      {768, 0, 768, {768}},
      {1025, 0, 768, {768, 1024, 1025}},
      {1600, 0, 768, {768, 1536, 1600}},
      {1600, 512, 768, {1280, 1536, 1600}},
      {1600, 0, 256, {256, 512, 768, 1024, 1280, 1536, 1600}},
      {600, 512, 768, {600}},
  };
  for (const Case& c : cases)
    EXPECT_EQ(Borders(Prompt(1, c.prompt, c.computed), c.chunk), c.ends) << c.prompt;
}

TEST(ChunkEnd, LiesAtEveryTailIntervalWhenAsked) {
  SequenceFacts facts = Prompt(1, 3000);
  facts.tail_interval = 4;
  EXPECT_EQ(Borders(facts, 8192), (std::vector<int>{1024, 2048, 2816, 3000}));
  facts.tail_interval = 0;
  EXPECT_EQ(Borders(facts, 8192), (std::vector<int>{2816, 3000}));
}

TEST(ChunkEnd, StaysWhenNotEvenAPageFits) { EXPECT_EQ(ChunkEnd(Prompt(1, 600), 200), 0); }

TEST(ChunkPlanner, HasNothingToDoWithoutPrompts) {
  ChunkPlanner planner({});
  EXPECT_FALSE(planner.Next(Pool(10), absl::UnixEpoch()).has_value());
}

TEST(ChunkPlanner, ShortPromptsShareAStep) {
  ChunkPlanner planner({.chunk_tokens = 768});
  planner.Apply(Admitted{Prompt(1, 100)});
  planner.Apply(Admitted{Prompt(2, 900)});
  planner.Apply(Admitted{Prompt(3, 150)});
  const std::optional<StepPlan> plan = planner.Next(Pool(10), absl::UnixEpoch());
  ASSERT_TRUE(plan.has_value());
  ASSERT_EQ(plan->runs.size(), 3u);
  EXPECT_EQ(plan->runs[0].rows, 100);
  EXPECT_TRUE(plan->runs[0].samples_first_token);
  EXPECT_EQ(plan->runs[1].rows, 512);
  EXPECT_FALSE(plan->runs[1].samples_first_token);
  EXPECT_EQ(plan->runs[2].rows, 150);
  ASSERT_EQ(plan->grants.size(), 3u);
  EXPECT_EQ(plan->grants[1].pages, 2);
}

TEST(ChunkPlanner, OrdersByPriorityThenDeadlineThenArrival) {
  ChunkPlanner planner({.chunk_tokens = 256});
  SequenceFacts late = Prompt(1, 256), soon = Prompt(2, 256), urgent = Prompt(3, 256);
  soon.deadline = absl::UnixEpoch() + absl::Seconds(1);
  urgent.priority = -1;
  for (const SequenceFacts& facts : {late, soon, urgent}) planner.Apply(Admitted{facts});
  std::vector<uint64_t> order;
  while (const std::optional<StepPlan> plan = planner.Next(Pool(10), absl::UnixEpoch())) {
    order.push_back(plan->runs[0].sequence.value);
    planner.Apply(Released{plan->runs[0].sequence});
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 2, 1}));
}

TEST(ChunkPlanner, SkipsAPromptWhosePagesAreMissing) {
  ChunkPlanner planner({.chunk_tokens = 768});
  planner.Apply(Admitted{Prompt(1, 768)});
  SequenceFacts booked = Prompt(2, 512);
  booked.booked = 2;
  planner.Apply(Admitted{booked});
  const std::optional<StepPlan> plan = planner.Next(Pool(1), absl::UnixEpoch());
  ASSERT_TRUE(plan.has_value());
  ASSERT_EQ(plan->runs.size(), 1u);
  EXPECT_EQ(plan->runs[0].sequence, SequenceId{2});
}

TEST(ChunkPlanner, APausedPromptWaits) {
  ChunkPlanner planner({});
  planner.Apply(Admitted{Prompt(1, 300)});
  planner.Apply(Paused{{1}});
  EXPECT_FALSE(planner.Next(Pool(10), absl::UnixEpoch()).has_value());
}

}  // namespace
}  // namespace baton::engine
