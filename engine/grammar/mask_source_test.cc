#include "engine/grammar/mask_source.h"

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/clock.h"
#include "common/demo_vocabulary.h"
#include "common/rng.h"

namespace baton::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kEos = 1;
constexpr char kSchema[] =
    R"(start: %json {"type":"object","properties":{"name":{"type":"string","maxLength":12},)"
    R"("n":{"type":"integer"},"tags":{"type":"array","items":{"enum":["a","bc"]},"maxItems":3}},)"
    R"("required":["name","n","tags"],"additionalProperties":false})";

class MaskSourceTest : public testing::Test {
 protected:
  MaskSource Make(const MaskRules& rules) { return *MaskSource::Create(grammars_, rules); }
  std::vector<int32_t> Next(MaskSource& source) {
    std::vector<TokenMask> masks;
    EXPECT_TRUE(source.AppendMasks({}, buffer_, masks).ok());
    return AllowedIds(masks.at(0));
  }
  std::string ErrorOf(const MaskRules& rules) {
    const absl::Status status = MaskSource::Create(grammars_, rules).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  }
  // A text that the masks allow, picked at random; `masks` as they were before each token.
  std::vector<int32_t> Walk(const MaskRules& rules, Rng& rng,
                            std::vector<std::vector<int32_t>>& masks) {
    MaskSource source = Make(rules);
    std::vector<int32_t> tokens;
    while (tokens.size() < 200 && (tokens.empty() || tokens.back() != kEos)) {
      buffer_.Clear();
      masks.push_back(Next(source));
      const std::vector<int32_t>& allowed = masks.back();
      tokens.push_back(allowed.empty() ? static_cast<int32_t>(100 + rng.Below(900))
                                       : allowed[rng.Below(allowed.size())]);
      EXPECT_TRUE(source.Take(tokens.back()).ok());
    }
    return tokens;
  }

  const Vocabulary& vocabulary_ = DemoVocabulary();
  const int32_t end_of_thinking_ = *vocabulary_.FindSpecial("</think>");
  ManualClock clock_;
  GrammarCache grammars_{vocabulary_, clock_};
  MaskBuffer buffer_;
};

TEST_F(MaskSourceTest, GoesFromReasoningToPrefixToGrammarToEos) {
  MaskRules rules;
  rules.grammar = "start: <[4074]>";
  rules.forced_prefix = {300, 301};
  rules.starts_in_reasoning = true;
  MaskSource source = Make(rules);
  EXPECT_THAT(Next(source), IsEmpty());  // everything
  for (const int32_t token : {500, kEos, end_of_thinking_}) ASSERT_TRUE(source.Take(token).ok());
  EXPECT_THAT(Next(source), ElementsAre(300));
  ASSERT_TRUE(source.Take(300).ok());
  EXPECT_THAT(Next(source), ElementsAre(301));
  ASSERT_TRUE(source.Take(301).ok());
  EXPECT_THAT(Next(source), ElementsAre(4074));
  ASSERT_TRUE(source.Take(4074).ok());
  for (int i = 0; i < 3; ++i) {  // also where a request ignores eos
    EXPECT_THAT(Next(source), ElementsAre(kEos));
    ASSERT_TRUE(source.Take(kEos).ok());
  }
  EXPECT_EQ(source.num_taken(), 9);
}

TEST_F(MaskSourceTest, EndsReasoningWhenTheBudgetIsUsed) {
  MaskRules rules;
  rules.starts_in_reasoning = true;
  rules.thinking_budget = 2;
  rules.reasoning_bans = {kEos, 4074};
  MaskSource source = Make(rules);
  for (int i = 0; i < 2; ++i) {
    const std::vector<int32_t> allowed = Next(source);
    EXPECT_THAT(allowed, testing::Not(testing::Contains(kEos)));
    EXPECT_THAT(allowed, testing::Not(testing::Contains(4074)));
    EXPECT_THAT(allowed, testing::Contains(end_of_thinking_));
    ASSERT_TRUE(source.Take(400).ok());
  }
  EXPECT_THAT(Next(source), ElementsAre(end_of_thinking_));
  ASSERT_TRUE(source.Take(end_of_thinking_).ok());
  EXPECT_THAT(Next(source), IsEmpty());

  rules.thinking_budget = 0;
  MaskSource none = Make(rules);
  EXPECT_THAT(Next(none), ElementsAre(end_of_thinking_));
}

TEST_F(MaskSourceTest, SaysWhichTokenBrokeTheRules) {
  MaskRules rules;
  rules.forced_prefix = {300};
  MaskSource source = Make(rules);
  const absl::Status status = source.Take(301);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 301, the answer's 1."));
}

TEST_F(MaskSourceTest, RefusesRulesByField) {
  EXPECT_THAT(ErrorOf({.grammar = "start: (",
                       .forced_prefix = {},
                       .thinking_budget = {},
                       .reasoning_bans = {}}),
              HasSubstr("masks.grammar: "));
  EXPECT_THAT(
      ErrorOf(
          {.grammar = "", .forced_prefix = {99'999}, .thinking_budget = {}, .reasoning_bans = {}}),
      HasSubstr("masks.forced_prefix: token id 99999, the vocabulary has 4096"));
  EXPECT_THAT(
      ErrorOf({.grammar = "", .forced_prefix = {}, .thinking_budget = {}, .reasoning_bans = {-1}}),
      HasSubstr("masks.reasoning_bans: token id -1"));
}

TEST_F(MaskSourceTest, CompilesAGrammarOnce) {
  MaskRules rules;
  rules.grammar = kSchema;
  MaskSource first = Make(rules), second = Make(rules);
  EXPECT_EQ(grammars_.counters().compiled, 1u);
  const std::vector<int32_t> start = Next(first);
  ASSERT_TRUE(first.Take(start[0]).ok());
  EXPECT_EQ(Next(second), start);  // the copies do not meet
  rules.grammar = "start: (";
  EXPECT_FALSE(MaskSource::Create(grammars_, rules).ok());
  EXPECT_EQ(grammars_.counters().refused, 1u);
}

// Drafts: right ones, a wrong one at any place, and none of them leaves a trace.
TEST_F(MaskSourceTest, MasksOfDraftsAreThoseOfTheirTexts) {
  SeededRng rng(7);
  MaskRules rules;
  rules.grammar = kSchema;
  rules.forced_prefix = {300};
  rules.starts_in_reasoning = true;
  rules.thinking_budget = 5;
  for (int round = 0; round < 10; ++round) {
    std::vector<std::vector<int32_t>> expected;
    const std::vector<int32_t> tokens = Walk(rules, rng, expected);
    MaskSource source = Make(rules);
    for (size_t at = 0; at < tokens.size(); ++at) {
      const size_t count = std::min<size_t>(rng.Below(5), tokens.size() - at);
      std::vector<int32_t> drafts(tokens.begin() + static_cast<long>(at),
                                  tokens.begin() + static_cast<long>(at + count));
      size_t valid = count;
      if (count > 0 && rng.Below(2) == 0) {
        const size_t wrong = rng.Below(count);
        const std::vector<int32_t>& allowed = expected[at + wrong];
        drafts[wrong] = 299;
        if (!allowed.empty() && !std::ranges::binary_search(allowed, 299))
          valid = wrong;
        else
          drafts[wrong] = tokens[at + wrong];
      }
      buffer_.Clear();
      std::vector<TokenMask> masks;
      ASSERT_TRUE(source.AppendMasks(drafts, buffer_, masks).ok());
      ASSERT_EQ(masks.size(), count + 1);
      for (size_t i = 0; i <= count; ++i) {
        if (at + i == expected.size()) break;
        EXPECT_EQ(AllowedIds(masks[i]), i <= valid ? expected[at + i] : std::vector<int32_t>());
      }
      ASSERT_TRUE(source.Take(tokens[at]).ok());
    }
  }
}

// Replay: a source made anew takes the tokens in runs cut anywhere, and masks alike.
TEST_F(MaskSourceTest, AReplayMakesTheSameMasks) {
  SeededRng rng(11);
  MaskRules rules;
  rules.grammar = kSchema;
  rules.starts_in_reasoning = true;
  rules.thinking_budget = 3;
  rules.reasoning_bans = {kEos};
  for (int round = 0; round < 20; ++round) {
    std::vector<std::vector<int32_t>> expected;
    const std::vector<int32_t> tokens = Walk(rules, rng, expected);
    MaskSource source = Make(rules);
    size_t at = 0;
    while (at < tokens.size()) {
      const size_t rows = std::min<size_t>(1 + rng.Below(64), tokens.size() - at);
      const std::span<const int32_t> run = std::span(tokens).subspan(at, rows);
      buffer_.Clear();
      std::vector<TokenMask> masks;
      ASSERT_TRUE(source.AppendMasks(run.first(rows - 1), buffer_, masks).ok());
      for (size_t i = 0; i < rows; ++i) EXPECT_EQ(AllowedIds(masks[i]), expected[at + i]);
      for (const int32_t token : run) ASSERT_TRUE(source.Take(token).ok());
      at += rows;
    }
  }
}

}  // namespace
}  // namespace baton::engine
