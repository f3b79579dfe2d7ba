#include "router/text/reasoning_parser.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"
#include "router/text/markup_scanner.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

constexpr std::string_view kStartTag = "<｜DSML｜tool_calls>";

// Keeps what it is handed, to show what the parser hands over.
class RecordingSink final : public ToolBlockSink {
 public:
  void OnStart(std::string_view marker) override { marker_ = marker; }
  size_t OnPiece(const OutputPiece& piece, std::vector<OutputDelta>&) override {
    rest_ += piece.text;
    return piece.text.size();
  }
  void OnFinish(std::vector<OutputDelta>&) override { is_finished_ = true; }
  std::string marker_, rest_;
  bool is_finished_ = false;
};

struct Split {
  std::string reasoning, content;
  bool operator==(const Split&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Split& split) {
  return out << "reasoning \"" << split.reasoning << "\" content \"" << split.content << '"';
}

Split Collect(const std::vector<OutputDelta>& deltas) {
  Split split;
  for (const OutputDelta& delta : deltas) {
    EXPECT_FALSE(delta.text.empty());
    (delta.field == OutputField::kReasoning ? split.reasoning : split.content) += delta.text;
  }
  return split;
}

// Text-only parsing: markup by its spelling. `cuts` are ascending offsets.
Split Parse(std::string_view text, bool thinking, ToolBlockSink* sink,
            const std::vector<size_t>& cuts) {
  MarkupScanner scanner;
  ReasoningParser parser(thinking, sink);
  std::vector<OutputDelta> out;
  const auto pass_on = [&](const std::vector<MarkupScanner::Piece>& pieces) {
    for (const auto& piece : pieces) parser.Push({.text = piece.text, .markup = piece.markup}, out);
  };
  size_t begin = 0;
  for (const size_t cut : cuts) {
    pass_on(scanner.Push(text.substr(begin, cut - begin)));
    begin = cut;
  }
  pass_on(scanner.Push(text.substr(begin)));
  pass_on(scanner.Finish());
  parser.Finish(out);
  return Collect(out);
}

std::vector<size_t> EveryByte(size_t size) {
  std::vector<size_t> cuts;
  for (size_t i = 1; i < size; ++i) cuts.push_back(i);
  return cuts;
}

TEST(ReasoningParser, PassesTheVectorsWithoutBlocksHoweverCut) {
  const JsonValue file = LoadVectors("chat/parse.json");
  size_t num_covered = 0, num_blocks = 0;
  SeededRng rng(3);
  for (const JsonValue& item : file.Find("cases")->items()) {
    const std::string& text = item.Find("text")->text();
    const bool has_tools = item.Find("tools_enabled")->boolean();
    const bool thinking = item.Find("thinking")->boolean();
    if (has_tools && text.find(kStartTag) != std::string::npos) {
      ++num_blocks;
      continue;
    }
    ++num_covered;
    const JsonValue& expect = *item.Find("expect");
    const Split want = {expect.Find("reasoning_content")->text(), expect.Find("content")->text()};
    std::vector<std::vector<size_t>> ways = {{}, EveryByte(text.size())};
    for (int i = 0; i < 20; ++i) ways.push_back({rng.Below(text.size() + 1)});
    for (size_t i = 1; i < text.size(); ++i) ways.push_back({i});
    for (const std::vector<size_t>& cuts : ways) {
      RecordingSink sink;
      EXPECT_EQ(Parse(text, thinking, has_tools ? &sink : nullptr, cuts), want)
          << item.Find("id")->text() << " in " << cuts.size() + 1 << " pieces";
      EXPECT_EQ(sink.marker_, "");
    }
  }
  std::printf("parse.json: %zu cases covered, %zu skipped (tool call block)\n", num_covered,
              num_blocks);
  EXPECT_EQ(num_covered, 9u);
  EXPECT_EQ(num_covered + num_blocks, 37u);
}

// Every vector with a block, up to the block: what stands before it, and the exact bytes handed
// over.
TEST(ReasoningParser, HandsTheBlocksOfTheVectorsOver) {
  const JsonValue file = LoadVectors("chat/parse.json");
  size_t num_blocks = 0;
  for (const JsonValue& item : file.Find("cases")->items()) {
    std::string text = item.Find("text")->text();
    const size_t eos = text.find("<｜end▁of▁sentence｜>");
    if (eos != std::string::npos) text.resize(eos);
    const size_t tag = text.find(kStartTag);
    if (!item.Find("tools_enabled")->boolean() || tag == std::string::npos) continue;
    ++num_blocks;
    size_t marker = tag;
    while (marker > 0 && tag - marker < 2 && text[marker - 1] == '\n') --marker;
    const bool thinking = item.Find("thinking")->boolean();
    const Split want = Parse(text.substr(0, marker), thinking, nullptr, {});
    for (const std::vector<size_t>& cuts : {std::vector<size_t>{}, EveryByte(text.size())}) {
      RecordingSink sink;
      EXPECT_EQ(Parse(text, thinking, &sink, cuts), want) << item.Find("id")->text();
      EXPECT_EQ(sink.marker_ + sink.rest_, text.substr(marker)) << item.Find("id")->text();
      EXPECT_TRUE(sink.is_finished_);
    }
  }
  EXPECT_EQ(num_blocks, 28u);
}

TEST(ReasoningParser, TakesMarkupByTokenOnly) {
  ReasoningParser parser(true, nullptr);
  std::vector<OutputDelta> out;
  parser.Push({.text = "a</think>b"}, out);
  EXPECT_EQ(parser.state(), ReasoningParser::State::kReason);
  parser.Push({.text = "</think>", .markup = Markup::kThinkClose}, out);
  parser.Push({.text = "c"}, out);
  parser.Push({.text = "</think>", .markup = Markup::kThinkClose}, out);
  parser.Push({.text = "<think>", .markup = Markup::kThinkOpen}, out);
  parser.Push({.text = "d"}, out);
  parser.Finish(out);
  EXPECT_EQ(Collect(out), (Split{"a</think>b", "cd"}));
}

TEST(ReasoningParser, NeedsTheTokenToStartABlock) {
  RecordingSink sink;
  ReasoningParser parser(false, &sink);
  std::vector<OutputDelta> out;
  parser.Push({.text = std::string_view("x\n\n<｜DSML｜tool_calls>")}, out);
  EXPECT_EQ(parser.state(), ReasoningParser::State::kContent);
  parser.Push({.text = "\n\n\n<"}, out);
  parser.Push({.text = "｜DSML｜", .markup = Markup::kDsml}, out);
  parser.Push({.text = "tool_calls>\nrest"}, out);
  EXPECT_EQ(parser.state(), ReasoningParser::State::kBlock);
  parser.Finish(out);
  EXPECT_EQ(Collect(out), (Split{"", "x\n\n<｜DSML｜tool_calls>\n"}));
  EXPECT_EQ(sink.marker_, "\n\n<｜DSML｜tool_calls>");
  EXPECT_EQ(sink.rest_, "\nrest");
}

TEST(ReasoningParser, ABlockIsNotJoinedAcrossAThinkToken) {
  for (const Markup think : {Markup::kThinkOpen, Markup::kThinkClose}) {
    RecordingSink sink;
    ReasoningParser parser(false, &sink);
    std::vector<OutputDelta> out;
    parser.Push({.text = "a<"}, out);
    parser.Push({.text = "<think>", .markup = think}, out);
    parser.Push({.text = "｜DSML｜", .markup = Markup::kDsml}, out);
    parser.Push({.text = "tool_calls>\n\n"}, out);
    EXPECT_EQ(parser.state(), ReasoningParser::State::kContent);
    parser.Push({.text = "<think>", .markup = think}, out);
    parser.Push({.text = "<"}, out);
    parser.Push({.text = "｜DSML｜", .markup = Markup::kDsml}, out);
    parser.Push({.text = "tool_calls>"}, out);
    EXPECT_EQ(parser.state(), ReasoningParser::State::kBlock);
    parser.Finish(out);
    EXPECT_EQ(Collect(out), (Split{"", "a<｜DSML｜tool_calls>\n\n"}));
    EXPECT_EQ(sink.marker_, "<｜DSML｜tool_calls>");
  }
}

TEST(ReasoningParser, GivesHeldTextBackWhenNoBlockComes) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\n", "a\n"},
      {"a\n\n\n\n", "a\n\n\n\n"},
      {"\n\n", "\n\n"},
      {"<", "<"},
      {"a\n\n<｜DSML｜tool_callz", "a\n\n<｜DSML｜tool_callz"},
      {"<<｜DSML｜x", "<<｜DSML｜x"},
      {"｜DSML｜tool_calls>", "｜DSML｜tool_calls>"},
      {"\n \n</think>x", "\n \nx"},
      {"\n\n｜DSML｜", "\n\n｜DSML｜"},
  };
  for (const auto& [text, want] : cases) {
    RecordingSink sink;
    EXPECT_EQ(Parse(text, false, &sink, {}), (Split{"", want}));
    EXPECT_EQ(Parse(text, false, &sink, EveryByte(std::string(text).size())), (Split{"", want}));
  }
}

TEST(ReasoningParser, DropsNewlinesOfABlockAtTheVeryStart) {
  RecordingSink sink;
  EXPECT_EQ(Parse("\n\n<｜DSML｜tool_calls>", true, &sink, {}), Split{});
  EXPECT_EQ(sink.marker_, "\n\n<｜DSML｜tool_calls>");
}

}  // namespace
}  // namespace baton::router
