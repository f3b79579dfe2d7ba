#include "engine/planning/mixed_planner.h"

#include <gtest/gtest.h>

namespace baton::engine {
namespace {

MixedConfig SmallConfig() {
  return {.batch = {.max_sequences = 16, .max_rows = 64, .num_drafts = 1},
          .chunk = {.chunk_tokens = 768},
          .max_rows = 600};
}

SequenceFacts Prompt(uint64_t id, int tokens) {
  return {.id = {id}, .prompt_tokens = tokens, .num_tokens = tokens, .max_total = tokens + 10};
}

SequenceFacts Decoding(uint64_t id, int tokens) {
  return {.id = {id},
          .prompt_tokens = tokens - 1,
          .num_tokens = tokens,
          .computed = tokens - 1,
          .max_total = tokens + 100,
          .pages = PagesFor(tokens + 8)};
}

TEST(MixedPlanner, DecodesFirstAndFillsTheRestWithChunks) {
  MixedPlanner planner(SmallConfig());
  planner.Apply(Admitted{Prompt(1, 2000)});
  planner.Apply(Admitted{Decoding(2, 100)});
  const std::optional<StepPlan> plan = planner.Next({.total = 20, .free = 20}, absl::UnixEpoch());
  ASSERT_TRUE(plan.has_value());
  ASSERT_EQ(plan->runs.size(), 2u);
  EXPECT_EQ(plan->runs[0].kind, RowKind::kVerify);
  EXPECT_EQ(plan->runs[1].kind, RowKind::kPrefill);
  EXPECT_EQ(plan->runs[1].rows, 512);  // whole pages of the 599 rows left
  EXPECT_EQ(plan->num_drafts, 1);
}

TEST(MixedPlanner, BothShareThePages) {
  MixedPlanner planner(SmallConfig());
  SequenceFacts growing = Decoding(1, 256);
  growing.pages = 1;
  planner.Apply(Admitted{growing});
  planner.Apply(Admitted{Prompt(2, 512)});
  std::optional<StepPlan> plan = planner.Next({.total = 20, .free = 2}, absl::UnixEpoch());
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->runs.size(), 1u);  // one page is left after the grant, the chunk needs two
  plan = planner.Next({.total = 20, .free = 3}, absl::UnixEpoch());
  EXPECT_EQ(plan->runs.size(), 2u);
}

TEST(MixedPlanner, ASequenceMovesFromPromptToBatch) {
  MixedPlanner planner(SmallConfig());
  planner.Apply(Admitted{Prompt(1, 100)});
  const PoolCounts pool{.total = 20, .free = 20};
  EXPECT_EQ(planner.Next(pool, absl::UnixEpoch())->runs[0].kind, RowKind::kPrefill);
  SequenceFacts facts = Prompt(1, 100);
  facts.computed = 100;
  facts.pages = 1;
  planner.Apply(Harvested{facts});
  planner.Apply(Paused{{1}});
  EXPECT_FALSE(planner.Next(pool, absl::UnixEpoch()).has_value());
  facts.num_tokens = 101;
  planner.Apply(Harvested{facts});
  EXPECT_EQ(planner.Next(pool, absl::UnixEpoch())->runs[0].kind, RowKind::kVerify);
}

}  // namespace
}  // namespace baton::engine
