#include "engine/planning/batch_planner.h"

#include <gtest/gtest.h>
#include <vector>

namespace baton::engine {
namespace {

SequenceFacts Decoding(uint64_t id, int tokens, int drafts = 0) {
  return {.id = {id},
          .prompt_tokens = tokens - 1,
          .num_tokens = tokens,
          .computed = tokens - 1,
          .max_total = 100'000,
          .drafts = drafts,
          .pages = PagesFor(tokens + 2 * (kMaxDrafts + 1))};
}

PoolCounts Pool(int free) { return {.total = 1000, .free = free}; }

class BatchPlannerTest : public testing::Test {
 protected:
  StepPlan Next(int free) {
    const std::optional<StepPlan> plan = planner_.Next(Pool(free), absl::UnixEpoch());
    EXPECT_TRUE(plan.has_value());
    return plan.value_or(StepPlan{});
  }
  BatchPlanner planner_{{.max_sequences = 3, .max_rows = 80, .num_drafts = 3}};
};

TEST_F(BatchPlannerTest, VerifiesTheLastTokenAndTheDraftsOfEverySequence) {
  planner_.Apply(Admitted{Decoding(1, 100, 3)});
  planner_.Apply(Admitted{Decoding(2, 50, 0)});
  const StepPlan plan = Next(10);
  ASSERT_EQ(plan.runs.size(), 2u);
  EXPECT_EQ(plan.runs[0].first_position, 99);
  EXPECT_EQ(plan.runs[0].rows, 4);
  EXPECT_EQ(plan.runs[0].kind, RowKind::kVerify);
  EXPECT_EQ(plan.runs[1].rows, 1);
  EXPECT_EQ(plan.num_drafts, 3);
}

TEST_F(BatchPlannerTest, RunsNoRowsPastTheLastTokenAllowed) {
  SequenceFacts facts = Decoding(1, 100, 3);
  facts.max_total = 102;
  planner_.Apply(Admitted{facts});
  EXPECT_EQ(Next(10).runs[0].rows, 2);
}

TEST_F(BatchPlannerTest, ReplaysUpTo64KnownTokensAfterTheVerifyRows) {
  SequenceFacts facts = Decoding(1, 200);
  facts.prompt_tokens = 90;
  facts.computed = 90;
  planner_.Apply(Admitted{facts});
  planner_.Apply(Admitted{Decoding(2, 50, 3)});
  StepPlan plan = Next(10);
  ASSERT_EQ(plan.runs.size(), 2u);
  EXPECT_EQ(plan.runs[0].kind, RowKind::kVerify);
  EXPECT_EQ(plan.runs[1].kind, RowKind::kReplay);
  EXPECT_EQ(plan.runs[1].first_position, 90);
  EXPECT_EQ(plan.runs[1].rows, 64);

  facts.computed = 154;
  planner_.Apply(Harvested{facts});
  EXPECT_EQ(Next(10).runs[1].rows, 45);  // 154..198: the last token, at 199, is a verify row
  facts.computed = 199;
  planner_.Apply(Harvested{facts});
  EXPECT_EQ(Next(10).runs[0].kind, RowKind::kVerify);
}

TEST_F(BatchPlannerTest, GrantsPagesForTwoStepsAhead) {
  SequenceFacts facts = Decoding(1, 249);
  facts.pages = 1;
  planner_.Apply(Admitted{facts});
  StepPlan plan = Next(10);
  ASSERT_EQ(plan.grants.size(), 1u);  // 249 + 2 * 4 = 257 tokens
  EXPECT_EQ(plan.grants[0].pages, 1);
  planner_.SetNumDrafts(0);
  EXPECT_TRUE(Next(10).grants.empty());
  facts.max_total = 256;
  planner_.SetNumDrafts(3);
  planner_.Apply(Harvested{facts});
  EXPECT_TRUE(Next(10).grants.empty());
}

TEST_F(BatchPlannerTest, GrantsFromTheOwnBookingWhenThePoolIsDry) {
  SequenceFacts facts = Decoding(1, 256);
  facts.pages = 1;
  facts.booked = 1;
  planner_.Apply(Admitted{facts});
  EXPECT_EQ(Next(0).grants.size(), 1u);
}

TEST_F(BatchPlannerTest, ParksTheYoungestWhenThePoolIsDry) {
  SequenceFacts oldest = Decoding(1, 256);
  oldest.pages = 1;
  planner_.Apply(Admitted{oldest});
  planner_.Apply(Admitted{Decoding(2, 50)});
  planner_.Apply(Admitted{Decoding(3, 50)});
  StepPlan plan = Next(0);
  EXPECT_EQ(plan.parks, std::vector<SequenceId>{{3}});
  EXPECT_TRUE(plan.runs.empty());

  SequenceFacts parked = Decoding(3, 50);
  parked.pages = 0;
  planner_.Apply(Parked{parked});
  plan = Next(1);
  EXPECT_EQ(plan.grants.size(), 1u);
  EXPECT_EQ(plan.runs.size(), 2u);
  EXPECT_TRUE(plan.resumes.empty());
}

TEST_F(BatchPlannerTest, ALoneSequenceWaitsForPagesOthersHold) {
  SequenceFacts facts = Decoding(1, 256);
  facts.pages = 1;
  planner_.Apply(Admitted{facts});
  EXPECT_FALSE(planner_.Next(Pool(0), absl::UnixEpoch()).has_value());
}

TEST_F(BatchPlannerTest, ResumesTheOldestParkedWhenItsPagesAndOneForEachRunningFit) {
  planner_.Apply(Admitted{Decoding(1, 50)});
  SequenceFacts large = Decoding(2, 1000), small = Decoding(3, 50);
  planner_.Apply(Admitted{large});
  planner_.Apply(Admitted{small});
  large.pages = small.pages = 0;
  planner_.Apply(Parked{large});
  planner_.Apply(Parked{small});
  EXPECT_TRUE(Next(4).resumes.empty());  // the oldest needs 4 and one stays free
  const StepPlan plan = Next(5);
  EXPECT_EQ(plan.resumes, std::vector<SequenceId>{{2}});
  ASSERT_EQ(plan.grants.size(), 1u);
  EXPECT_EQ(plan.grants[0].pages, 4);
  EXPECT_EQ(Next(8).resumes.size(), 2u);
}

TEST_F(BatchPlannerTest, SequencesBeyondTheBatchWait) {
  for (uint64_t id = 1; id <= 5; ++id) planner_.Apply(Admitted{Decoding(id, 50)});
  EXPECT_EQ(Next(10).runs.size(), 3u);
  planner_.Apply(Released{{1}});
  planner_.Apply(Paused{{2}});
  const StepPlan plan = Next(10);
  ASSERT_EQ(plan.runs.size(), 3u);
  EXPECT_EQ(plan.runs[2].sequence, SequenceId{5});
}

TEST_F(BatchPlannerTest, LeavesPromptsAlone) {
  SequenceFacts facts = Decoding(1, 100);
  facts.prompt_tokens = 100;
  facts.computed = 0;
  planner_.Apply(Admitted{facts});
  EXPECT_FALSE(planner_.Next(Pool(10), absl::UnixEpoch()).has_value());
}

}  // namespace
}  // namespace baton::engine
