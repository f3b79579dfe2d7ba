#include "router/plan/request_state.h"

#include "gtest/gtest.h"

namespace baton::router {
namespace {

std::vector<TokenRecord> Records(std::initializer_list<int32_t> tokens) {
  std::vector<TokenRecord> records;
  for (const int32_t token : tokens) records.emplace_back().token = token;
  return records;
}

TEST(TakeTokens, KeepsWhatIsNewAndComparesWhatIsNot) {
  Choice choice;
  auto tokens = Records({7, 8});
  auto verdict = TakeTokens(choice, 10, 10, tokens);
  EXPECT_EQ(verdict.first_new, 10);
  EXPECT_EQ(verdict.num_new, 2);
  tokens = Records({8, 9});
  verdict = TakeTokens(choice, 10, 11, tokens);
  EXPECT_EQ(verdict.first_new, 12);
  EXPECT_EQ(verdict.num_new, 1);
  EXPECT_EQ(verdict.num_repeats, 1);
  EXPECT_EQ(verdict.num_mismatches, 0);
  ASSERT_EQ(tokens.size(), 1u);
  EXPECT_EQ(tokens[0].token, 9);
  tokens = Records({7, 1, 9});
  verdict = TakeTokens(choice, 10, 10, tokens);
  EXPECT_EQ(verdict.num_new, 0);
  EXPECT_EQ(verdict.num_repeats, 3);
  EXPECT_EQ(verdict.num_mismatches, 1);
  EXPECT_EQ(choice.received, (std::vector<int32_t>{7, 8, 9}));
}

TEST(TakeTokens, TakesNothingBeyondAGapOrInsideThePrompt) {
  Choice choice;
  auto tokens = Records({7});
  EXPECT_TRUE(TakeTokens(choice, 10, 11, tokens).has_gap);
  EXPECT_TRUE(TakeTokens(choice, 10, 9, tokens).has_gap);
  EXPECT_TRUE(choice.received.empty());
}

TEST(StageClock, GivesResiduesToTheNamedStages) {
  const absl::Time start = absl::UnixEpoch();
  const auto at = [start](int ms) { return start + absl::Milliseconds(ms); };
  StageClock clock;
  clock.Start(start, absl::Milliseconds(2), at(3));
  clock.Enter(StageClock::Stage::kBooking, at(5));
  clock.Enter(StageClock::Stage::kQueue, at(6));  // its decode worker was lost
  clock.Enter(StageClock::Stage::kBooking, at(8));
  clock.Enter(StageClock::Stage::kPrefill, at(9));
  clock.FirstToken(4'000, at(18), at(20));
  const StageTimes& t = clock.times;
  EXPECT_EQ(t.parse, absl::Milliseconds(2));
  EXPECT_EQ(t.queue, absl::Milliseconds(3 + 2));
  EXPECT_EQ(t.booking, absl::Milliseconds(1 + 1));
  EXPECT_EQ(t.prefill, absl::Milliseconds(4));
  EXPECT_EQ(t.prefill_queue, absl::Milliseconds(5));
  EXPECT_EQ(t.emit, absl::Milliseconds(2));
  EXPECT_EQ(t.parse + t.queue + t.booking + t.prefill_queue + t.prefill + t.emit,
            absl::Milliseconds(20));
}

TEST(StageClock, NeverExceedsTheWaitWhateverWorkersReport) {
  const absl::Time start = absl::UnixEpoch();
  StageClock clock;
  clock.Start(start + absl::Seconds(1), absl::Seconds(9), start);  // from the future
  clock.Enter(StageClock::Stage::kPrefill, start);
  clock.FirstToken(5'000'000, start, start + absl::Milliseconds(1));
  clock.SecondToken(9'000'000, 9'000'000, start + absl::Milliseconds(3));
  const StageTimes& t = clock.times;
  EXPECT_EQ(t.parse + t.queue + t.booking + t.prefill_queue + t.prefill + t.emit,
            absl::Milliseconds(1));
  EXPECT_EQ(t.transfer + t.decode_queue + t.first_step, absl::Milliseconds(2));
}

TEST(PlanConfig, RefusesNonsenseByName) {
  EXPECT_TRUE(PlanConfig{}.Validate().ok());
  PlanConfig config;
  config.max_attempts = 0;
  EXPECT_EQ(config.Validate().message(), "plan.max_attempts is 0, at least 1");
  config = {};
  config.answer_timeout = absl::ZeroDuration();
  EXPECT_EQ(config.Validate().message(), "plan.answer_timeout is 0, must be above 0");
  config = {};
  config.max_retry_after = absl::Milliseconds(1);
  EXPECT_FALSE(config.Validate().ok());
}

}  // namespace
}  // namespace baton::router
