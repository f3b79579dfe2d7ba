#include "router/openai/grammar_checker.h"

#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "common/bounded_queue.h"
#include "common/clock.h"

namespace baton::router {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

class GrammarCheckerTest : public testing::Test {
 protected:
  explicit GrammarCheckerTest(GrammarChecker::Limits limits = {.threads = 2,
                                                               .max_waiting = 4,
                                                               .max_verdicts = 2})
      : checker_([this](std::string_view grammar) { return Check(grammar); }, limits) {}
  ~GrammarCheckerTest() override { gate_.Close(); }

  // "slow" ones wait at the gate; a "flaky" one fails the first time.
  absl::Status Check(std::string_view grammar) {
    ++num_checked_;
    if (grammar.substr(0, 4) == "slow") {
      std::vector<int> passes;
      while (!gate_.IsClosed() && gate_.Drain(passes, 1, absl::Seconds(1)) == 0) {
      }
    }
    if (grammar == "flaky" && num_checked_ == 1) return absl::InternalError("it broke");
    return grammar == "bad" ? absl::InvalidArgumentError("it is bad") : absl::OkStatus();
  }
  bool Ask(const std::string& grammar) {
    return checker_.Ask(grammar, [this, grammar](const absl::Status& verdict) {
      verdicts_.TryPush(absl::StrFormat("%s: %s", grammar, std::string(verdict.message())));
    });
  }
  // The next one that comes.
  std::string Next() {
    std::vector<std::string> next;
    verdicts_.Drain(next, 1, kPatience);
    return next.empty() ? "nothing" : next[0];
  }

  BoundedQueue<int> gate_{100};
  BoundedQueue<std::string> verdicts_{100};
  std::atomic<int> num_checked_ = 0;
  GrammarChecker checker_;
};

TEST_F(GrammarCheckerTest, KeepsItsVerdicts) {
  EXPECT_EQ(checker_.Find("good"), std::nullopt);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Ask("bad"));
    EXPECT_EQ(Next(), "bad: it is bad");
    ASSERT_TRUE(Ask("good"));
    EXPECT_EQ(Next(), "good: ");
  }
  EXPECT_EQ(num_checked_, 2);
  EXPECT_EQ(checker_.Find("bad"), absl::InvalidArgumentError("it is bad"));
  EXPECT_EQ(checker_.misses(), 2u);
  EXPECT_EQ(checker_.hits(), 5u);
}

TEST_F(GrammarCheckerTest, AFailureOfItsOwnIsNoVerdict) {
  ASSERT_TRUE(Ask("flaky"));
  EXPECT_EQ(Next(), "flaky: it broke");
  EXPECT_EQ(checker_.Find("flaky"), std::nullopt);
  EXPECT_EQ(checker_.waiting(), 0u);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Ask("flaky"));
    EXPECT_EQ(Next(), "flaky: ");
  }
  EXPECT_EQ(num_checked_, 2);
  EXPECT_EQ(checker_.Find("flaky"), absl::OkStatus());
}

TEST_F(GrammarCheckerTest, ForgetsTheVerdictUsedLongestAgo) {
  for (const char* grammar : {"a", "b", "a", "c"}) {
    ASSERT_TRUE(Ask(grammar));
    Next();
  }
  EXPECT_EQ(checker_.Find("b"), std::nullopt);
  EXPECT_TRUE(checker_.Find("a") && checker_.Find("c"));
  EXPECT_EQ(num_checked_, 3);
}

// However often it is asked for: its askers wait, one thread works.
TEST_F(GrammarCheckerTest, ASlowGrammarHoldsUpNoOther) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Ask("slow"));
  for (const char* grammar : {"a", "b", "c", "a"}) {
    ASSERT_TRUE(Ask(grammar));
    EXPECT_EQ(Next(), absl::StrFormat("%s: ", grammar));
  }
  EXPECT_EQ(checker_.waiting(), 3u);
  int pass = 0;
  gate_.TryPush(std::move(pass));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Next(), "slow: ");
  EXPECT_EQ(checker_.waiting(), 0u);
}

TEST_F(GrammarCheckerTest, BoundsWhatWaits) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Ask(absl::StrFormat("slow%d", i % 3)));
  EXPECT_FALSE(Ask("more"));
  for (int i = 0; i < 3; ++i) gate_.TryPush(0);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Next().substr(0, 4), "slow");
  EXPECT_TRUE(Ask("more"));
  EXPECT_EQ(Next(), "more: ");
}

TEST_F(GrammarCheckerTest, StopsWithWorkLeft) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Ask(absl::StrFormat("slow%d", i)));
  gate_.Close();
  checker_.Stop();
  EXPECT_FALSE(Ask("more"));
  EXPECT_EQ(checker_.waiting(), 0u);
}

}  // namespace
}  // namespace baton::router
