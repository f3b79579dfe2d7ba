#include "router/text/choice_output.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "router/text/test_data.h"

namespace baton::router {
namespace {

struct Answer {
  std::string reasoning, content;
  std::string stop;
  int64_t reasoning_tokens = 0;
  bool operator==(const Answer&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Answer& answer) {
  return out << "reasoning \"" << answer.reasoning << "\" (" << answer.reasoning_tokens
             << ") content \"" << answer.content << "\" stop \"" << answer.stop << '"';
}

Answer Answers(const std::vector<TokenId>& ids, ChoiceOutputOptions options) {
  const MarkupIds markup = *MarkupIds::Find(RealTokenizer());
  ChoiceOutput output(RealTokenizer(), markup, std::move(options));
  std::vector<OutputDelta> deltas;
  for (const TokenId id : ids) output.Push(id, deltas);
  output.Finish(deltas);
  Answer answer;
  for (const OutputDelta& delta : deltas) {
    (delta.field == OutputField::kReasoning ? answer.reasoning : answer.content) += delta.text;
  }
  if (output.matched_stop() != nullptr) answer.stop = *output.matched_stop();
  answer.reasoning_tokens = output.reasoning_tokens();
  return answer;
}

// Ids of a text in which literals are tokens.
std::vector<TokenId> Ids(std::string_view text) {
  return RealTokenizer().Encode(text, SpecialTokens::kRecognise);
}

std::vector<TokenId> PlainIds(std::string_view text) {
  return RealTokenizer().Encode(text, SpecialTokens::kPlain);
}

TEST(ChoiceOutput, SplitsByTokenAndCountsReasoningTokens) {
  const std::vector<TokenId> ids = Ids("One two.</think>Three<｜end▁of▁sentence｜>");
  const int64_t num_reasoning = static_cast<int64_t>(Ids("One two.").size());
  EXPECT_EQ(Answers(ids, {.starts_in_reasoning = true}),
            (Answer{"One two.", "Three", "", num_reasoning}));
  EXPECT_EQ(Answers(ids, {}), (Answer{"", "One two.Three", "", 0}));
}

TEST(ChoiceOutput, TakesSpelledOutMarkupAsText) {
  std::vector<TokenId> ids = PlainIds("a</think>b");
  const int64_t count = static_cast<int64_t>(ids.size());
  EXPECT_EQ(Answers(ids, {.starts_in_reasoning = true}), (Answer{"a</think>b", "", "", count}));
}

TEST(ChoiceOutput, CountsAllTokensAsReasoningWithoutAnEndTag) {
  const std::vector<TokenId> ids = Ids("Long unfinished<｜end▁of▁sentence｜>");
  EXPECT_EQ(Answers(ids, {.starts_in_reasoning = true}).reasoning_tokens,
            static_cast<int64_t>(ids.size()) - 1);
}

TEST(ChoiceOutput, LeavesMarkupInTheTextWhenItDoesNotSplit) {
  const Answer got =
      Answers(Ids("a</think>b"), {.splits_reasoning = false, .starts_in_reasoning = true});
  EXPECT_EQ(got, (Answer{"", "a</think>b", "", 0}));
}

// Keeps the raw text of a block.
class RecordingSink final : public ToolBlockSink {
 public:
  void OnStart(std::string_view marker) override { text += marker; }
  size_t OnPiece(const OutputPiece& piece, std::vector<OutputDelta>&) override {
    text += piece.text;
    return piece.text.size();
  }
  void OnFinish(std::vector<OutputDelta>&) override {}
  std::string text;
};

TEST(ChoiceOutput, HandsABlockOverByItsToken) {
  for (const bool splits : {true, false}) {
    RecordingSink sink;
    const Answer got =
        Answers(Ids("a\n\n<｜DSML｜tool_calls>\nx"), {.splits_reasoning = splits, .tools = &sink});
    EXPECT_EQ(got.content, "a");
    EXPECT_EQ(sink.text, "\n\n<｜DSML｜tool_calls>\nx");
  }
  RecordingSink sink;
  EXPECT_EQ(Answers(PlainIds("a\n\n<｜DSML｜tool_calls>"), {.tools = &sink}).content,
            "a\n\n<｜DSML｜tool_calls>");
  EXPECT_EQ(sink.text, "");
}

TEST(ChoiceOutput, StopsAcrossTokensAndInsideReasoning) {
  const std::vector<TokenId> ids = Ids("alpha beta gamma</think>delta");
  const Answer got = Answers(ids, {.stops = {"ta gam"}, .starts_in_reasoning = true});
  EXPECT_EQ(got.reasoning, "alpha be");
  EXPECT_EQ(got.content, "");
  EXPECT_EQ(got.stop, "ta gam");
  const Answer kept =
      Answers(ids, {.stops = {"ta gam"}, .include_stop = true, .starts_in_reasoning = true});
  EXPECT_EQ(kept.reasoning, "alpha beta gam");
}

TEST(ChoiceOutput, HoldsMarkupWithTheTextOfAStopString) {
  const std::vector<TokenId> ids = Ids("x</think>yz");
  EXPECT_EQ(Answers(ids, {.stops = {">yq"}, .starts_in_reasoning = true}),
            (Answer{"x", "yz", "", 1}));
  // The match begins inside the tag: what is left of the tag is text.
  EXPECT_EQ(Answers(ids, {.stops = {">y"}, .starts_in_reasoning = true}),
            (Answer{"x</think", "", ">y", 1}));
  EXPECT_EQ(Answers(ids, {.stops = {"y"}, .starts_in_reasoning = true}), (Answer{"x", "", "y", 1}));
}

TEST(ChoiceOutput, ReplacesAnInterruptedCharacterInFrontOfMarkup) {
  const TokenId think_close = *RealTokenizer().IdOf("</think>");
  std::vector<TokenId> ids = PlainIds("\xF0\x9F");
  const int64_t count = static_cast<int64_t>(ids.size());
  ids.push_back(think_close);
  for (const TokenId id : PlainIds("ok\xE4")) ids.push_back(id);
  EXPECT_EQ(Answers(ids, {.starts_in_reasoning = true}), (Answer{"\uFFFD", "ok\uFFFD", "", count}));
}

TEST(ChoiceOutput, ShowsSpecialTokensWhenAsked) {
  const Answer got = Answers(Ids("a<｜end▁of▁sentence｜>"), {.skip_special = false});
  EXPECT_EQ(got.content, "a<｜end▁of▁sentence｜>");
}

TEST(ChoiceOutput, EmitsTextAsSoonAsItIsCertain) {
  ChoiceOutput output(RealTokenizer(), *MarkupIds::Find(RealTokenizer()), {.stops = {"STOP"}});
  std::vector<OutputDelta> deltas;
  for (const TokenId id : PlainIds("hello")) output.Push(id, deltas);
  ASSERT_EQ(deltas.size(), 1u);
  EXPECT_EQ(deltas[0].text, "hello");
}

TEST(StartsInReasoning, LooksAtThePromptsLastToken) {
  EXPECT_TRUE(StartsInReasoning(Ids("a<think>"), *MarkupIds::Find(RealTokenizer())));
  EXPECT_FALSE(StartsInReasoning(Ids("a</think>"), *MarkupIds::Find(RealTokenizer())));
  EXPECT_FALSE(StartsInReasoning({}, *MarkupIds::Find(RealTokenizer())));
}

}  // namespace
}  // namespace baton::router
