#include "router/text/tool_call_parser.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"
#include "router/text/parsed_text.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

constexpr std::string_view kOpen = "\n\n<｜DSML｜tool_calls>\n";
constexpr std::string_view kClose = "</｜DSML｜tool_calls>";

std::string Parameter(const std::string& key, const std::string& flag, const std::string& value) {
  const std::string attribute = flag.empty() ? "" : " string=\"" + flag + "\"";
  return "<｜DSML｜parameter name=\"" + key + "\"" + attribute + ">" + value +
         "</｜DSML｜parameter>\n";
}
std::string Invoke(const std::string& name, const std::string& body) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + body + "</｜DSML｜invoke>\n";
}
std::string Block(const std::string& body) {
  return std::string(kOpen) + body + std::string(kClose);
}

std::vector<size_t> EveryByte(size_t size) {
  std::vector<size_t> cuts;
  for (size_t i = 1; i < size; ++i) cuts.push_back(i);
  return cuts;
}

ParsedText Parse(std::string_view text, const ToolSchemas& schemas = {}) {
  const TextToParse in = {.text = text, .tools = &schemas};
  ParsedText whole = ParseText(in, {});
  EXPECT_EQ(ParseText(in, EveryByte(text.size())), whole) << text;
  return whole;
}

struct Vector {
  std::string id, text;
  TextToParse in;
  ToolSchemas schemas;
  ParsedText want;
  bool may_stream_partial = false;
};

std::vector<std::unique_ptr<Vector>> LoadParseVectors() {
  std::vector<std::unique_ptr<Vector>> out;
  const JsonValue file = LoadVectors("chat/parse.json");
  for (const JsonValue& item : file.Find("cases")->items()) {
    auto vector = std::make_unique<Vector>();
    vector->id = item.Find("id")->text();
    vector->text = item.Find("text")->text();
    vector->schemas = SchemasOf(item.Find("tools"));
    vector->in = {.text = vector->text,
                  .starts_in_reasoning = item.Find("thinking")->boolean(),
                  .tools = item.Find("tools_enabled")->boolean() ? &vector->schemas : nullptr,
                  .finish = "stop"};
    if (item.Find("finish")->text() == "length") vector->in.finish = "length";
    const JsonValue& expect = *item.Find("expect");
    vector->want = {.reasoning = expect.Find("reasoning_content")->text(),
                    .content = expect.Find("content")->text(),
                    .calls = {},
                    .finish_reason = expect.Find("finish_reason")->text()};
    for (const JsonValue& call : expect.Find("tool_calls")->items()) {
      vector->want.calls.push_back({.name = call.Find("name")->text(),
                                    .arguments = call.Find("arguments")->text(),
                                    .is_complete = true});
    }
    vector->may_stream_partial = item.Find("stream_partial_call_allowed") != nullptr;
    out.push_back(std::move(vector));
  }
  return out;
}

TEST(ToolCallParser, PassesTheVectorsHoweverCut) {
  size_t num_cases = 0;
  for (const auto& vector : LoadParseVectors()) {
    ++num_cases;
    std::vector<std::vector<size_t>> ways = {{}, EveryByte(vector->text.size())};
    for (size_t i = 1; i < vector->text.size(); ++i) ways.push_back({i});
    for (const std::vector<size_t>& cuts : ways) {
      ASSERT_EQ(ParseText(vector->in, cuts), vector->want)
          << vector->id << " in " << cuts.size() + 1 << " pieces";
      if (vector->may_stream_partial) continue;
      ASSERT_EQ(ParseTextStreamed(vector->in, cuts), vector->want) << vector->id << " streamed";
    }
  }
  EXPECT_EQ(num_cases, 37u);
}

// Pieces of markup and text that a wild output may be made of.
std::string RandomOutput(Rng& rng) {
  static const std::vector<std::string> kPieces = {
      "<｜DSML｜tool_calls>",
      "</｜DSML｜tool_calls>",
      "<｜DSML｜invoke name=\"f\">",
      "<｜DSML｜invoke name=\"工具\"  >",
      "</｜DSML｜invoke>",
      "<｜DSML｜parameter name=\"a\" string=\"true\">",
      "<｜DSML｜parameter name=\"b\" string=\"false\">",
      "<｜DSML｜parameter name=\"c\">",
      "</｜DSML｜parameter>",
      "\n",
      "\n\n",
      " ",
      "<",
      "</",
      "｜DSML｜",
      "<think>",
      "</think>",
      "text",
      "{\"x\": 1}",
      "[1, 2",
      "\"",
      "\\",
      "\t",
      "é",
      "｜",
      "<｜DSML｜",
      "</｜DSML｜inv",
      "<｜DSML｜parameter name=\"d\" string=\"tr",
      "<｜end▁of▁sentence｜>",
      ">",
      "7"};
  std::string out;
  const bool is_likely = rng.Below(2) == 0;
  if (is_likely) out = "t</think>" + std::string(kOpen) + "<｜DSML｜invoke name=\"f\">\n";
  for (uint64_t left = rng.Below(24); left > 0; --left) out += kPieces[rng.Below(kPieces.size())];
  return out;
}

std::vector<size_t> RandomCuts(Rng& rng, size_t size) {
  std::vector<size_t> cuts(rng.Below(12));
  for (size_t& cut : cuts) cut = rng.Below(size + 1);
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

TEST(ToolCallParser, DoesNotDependOnTheCuts) {
  SeededRng rng(11);
  ToolSchemas schemas;
  schemas.Add(*JsonValue::Parse(
      R"({"name": "f", "parameters": {"properties": {"c": {"type": "integer"}}}})"));
  const auto vectors = LoadParseVectors();
  size_t num_calls = 0, num_texts = 0;
  for (int round = 0; round < 12'000; ++round) {
    std::string text = RandomOutput(rng);
    if (round % 4 == 0) text = vectors[rng.Below(vectors.size())]->text;
    if (round % 8 == 0) text.resize(rng.Below(text.size() + 1));
    const TextToParse in = {.text = text,
                            .starts_in_reasoning = rng.Below(2) == 0,
                            .tools = rng.Below(8) == 0 ? nullptr : &schemas,
                            .finish = rng.Below(4) == 0 ? "length" : "stop"};
    const ParsedText whole = ParseText(in, {});
    const ParsedText streamed = ParseTextStreamed(in, {});
    const std::vector<size_t> cuts = RandomCuts(rng, text.size());
    ASSERT_EQ(ParseText(in, cuts), whole) << text;
    ASSERT_EQ(ParseTextStreamed(in, cuts), streamed) << text;
    for (const ParsedCall& call : whole.calls) {
      const auto parsed = JsonValue::Parse(call.arguments);
      ASSERT_TRUE(parsed.ok() && parsed->is_object()) << call.arguments << " of " << text;
    }
    num_calls += whole.calls.size();
    num_texts += whole.calls.empty() ? 1 : 0;
  }
  EXPECT_GT(num_calls, 1'000u);
  EXPECT_GT(num_texts, 1'000u);
}

TEST(ToolCallParser, ReadsAValueWithoutItsAttributeByTheSchema) {
  ToolSchemas schemas;
  schemas.Add(*JsonValue::Parse(R"({"name": "f", "parameters": {"properties": {
      "n": {"type": "integer"}, "s": {"type": "string"}, "m": {"type": ["string", "null"]},
      "l": {"type": ["integer", "null"]}, "o": {}}}})"));
  const std::string body = Parameter("n", "", "1") + Parameter("s", "", "2") +
                           Parameter("m", "", "3") + Parameter("l", "", "4") +
                           Parameter("o", "", "5") + Parameter("x", "", "6");
  EXPECT_EQ(Parse(Block(Invoke("f", body)), schemas).calls.at(0).arguments,
            R"({"n": 1, "s": "2", "m": "3", "l": 4, "o": "5", "x": "6"})");
  EXPECT_EQ(Parse(Block(Invoke("g", Parameter("n", "", "1"))), schemas).calls.at(0).arguments,
            R"({"n": "1"})");
}

TEST(ToolCallParser, KeepsRawNumbersAndFallsBackToStrings) {
  const auto arguments = [](const std::string& value) {
    return Parse(Block(Invoke("f", Parameter("v", "false", value)))).calls.at(0).arguments;
  };
  EXPECT_EQ(arguments("123456789012345678901234567890"),
            R"({"v": 123456789012345678901234567890})");
  EXPECT_EQ(arguments(" {\"a\" :1.50} \n"), R"({"v": {"a" :1.50}})");
  EXPECT_EQ(arguments("NaN"), R"({"v": "NaN"})");
  EXPECT_EQ(arguments(""), R"({"v": ""})");
  EXPECT_EQ(arguments("[1,"), R"({"v": "[1,"})");
}

TEST(ToolCallParser, EndsAnOpenValueAtTheNextTag) {
  const std::string open = "<｜DSML｜parameter name=\"a\" string=\"true\">";
  EXPECT_EQ(Parse(Block(Invoke("f", open + "x\n\n"))).calls.at(0).arguments, R"({"a": "x\n"})");
  EXPECT_EQ(Parse(Block(Invoke("f", open + "x\n" + Parameter("b", "true", "y\n")))).calls.at(0),
            (ParsedCall{"f", R"({"a": "x", "b": "y\n"})", true}));
  EXPECT_EQ(
      Parse(Block(Invoke("f", Parameter("a", "true", "</｜DSML｜invok <｜DSML｜tool_calls>")))),
      (ParsedText{"",
                  "",
                  {{"f", R"({"a": "</｜DSML｜invok <｜DSML｜tool_calls>"})", true}},
                  "tool_calls"}));
}

TEST(ToolCallParser, ClosesACallAtTheEndOfTheBlock) {
  const std::string body = "<｜DSML｜invoke name=\"f\">\n" + Parameter("a", "true", "x");
  EXPECT_EQ(Parse(Block(body)).calls.at(0), (ParsedCall{"f", R"({"a": "x"})", true}));
}

TEST(ToolCallParser, GivesTheTextBackWhenNoCallIsComplete) {
  for (const std::string& text :
       {Block(""), Block("<｜DSML｜invoke name=f>\n"), Block("<｜DSML｜invoke name=\"f\" x>"),
        Block("<｜DSML｜invoke name=\"f\">\nhello</｜DSML｜invoke>\n"),
        Block("<｜DSML｜invoke name=\"f\">\n{\"a\": }\n</｜DSML｜invoke>\n"),
        Block("<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"maybe\">x"),
        Block("</｜DSML｜invoke>"), std::string(kOpen) + "<｜DSML｜invoke name=\"f\">\n"}) {
    EXPECT_EQ(Parse("Hi." + text), (ParsedText{"", "Hi." + text, {}, "stop"}));
  }
}

TEST(ToolCallParser, ReadsACallBehindAMereMentionOfTheTag) {
  const std::string mention = "Use `<｜DSML｜tool_calls>` so:";
  EXPECT_EQ(Parse(mention + Block(Invoke("f", ""))),
            (ParsedText{"", mention, {{"f", "{}", true}}, "tool_calls"}));
}

TEST(ToolCallParser, StopsAtItsLimitOfCalls) {
  const std::string text = Block(Invoke("f", "") + Invoke("g", "")) + Block(Invoke("h", ""));
  const ToolSchemas schemas;
  for (const size_t step : {size_t{1}, text.size()}) {
    ToolCallParser parser(schemas, 1);
    std::vector<OutputDelta> out;
    parser.OnStart(kOpen);
    // Text only: the markup tokens are pushed as such by hand.
    const std::string rest = text.substr(kOpen.size());
    for (size_t at = 0; at < rest.size();) {
      constexpr std::string_view kToken = "｜DSML｜";
      const bool is_token = rest.compare(at, kToken.size(), kToken) == 0;
      const size_t size = is_token
                              ? kToken.size()
                              : std::min(step, std::min(rest.find(kToken, at), rest.size()) - at);
      parser.OnPiece({.text = std::string_view(rest).substr(at, size),
                      .markup = is_token ? Markup::kDsml : Markup::kNone},
                     out);
      at += size;
    }
    parser.OnFinish(out);
    EXPECT_TRUE(parser.is_full());
    ASSERT_EQ(parser.calls().size(), 1u);
    EXPECT_EQ(parser.block().text, Block("<｜DSML｜invoke name=\"f\">\n</｜DSML｜invoke>\n"));
    EXPECT_EQ(parser.outcome(), DsmlOutcome::kOk);
  }
}

TEST(ToolCallParser, TakesTagsByTokenOnly) {
  const ToolSchemas schemas;
  ToolCallParser parser(schemas, 0);
  std::vector<OutputDelta> out;
  const auto token = [&] { parser.OnPiece({.text = "｜DSML｜", .markup = Markup::kDsml}, out); };
  const auto text = [&](std::string_view part) { parser.OnPiece({.text = part}, out); };
  parser.OnStart("<｜DSML｜tool_calls>");
  text("<"), token(), text("invoke name=\"f\"><"), token();
  text("parameter name=\"a\" string=\"true\">x</｜DSML｜parameter>y</"), token(),
      text("parameter></");
  token(), text("invoke></"), token(), text("tool_calls>");
  parser.OnFinish(out);
  ASSERT_EQ(parser.calls().size(), 1u);
  EXPECT_EQ(parser.calls()[0].arguments, R"({"a": "x</｜DSML｜parameter>y"})");
  EXPECT_EQ(parser.block().tokens_at.size(), 6u);
  EXPECT_TRUE(parser.is_closed());
}

TEST(ToolCallParser, AThinkTokenIsTakenWholeOrNotAtAll) {
  for (const std::string_view think : {"</think>", "<think>"}) {
    for (const std::string_view before : {"", "\n", "\n</", "\n<"}) {
      const ToolSchemas schemas;
      ToolCallParser parser(schemas, 0);
      ReasoningParser reasoning(false, &parser);
      std::vector<OutputDelta> out;
      const auto token = [&] {
        reasoning.Push({.text = "｜DSML｜", .markup = Markup::kDsml}, out);
      };
      reasoning.Push({.text = "a<"}, out), token(), reasoning.Push({.text = "tool_calls>"}, out);
      reasoning.Push({.text = before}, out);
      reasoning.Push({.text = think, .markup = Markup::kThinkClose}, out);
      reasoning.Push({.text = "x"}, out);
      reasoning.Finish(out);
      std::string content;
      for (const OutputDelta& delta : out) content += delta.text;
      EXPECT_EQ(content, "a<｜DSML｜tool_calls>" + std::string(before) + "x");
    }
  }
}

TEST(ToolCallParser, ASecondStartTagBeginsTheBlock) {
  const std::string block = Block(Invoke("f", Parameter("a", "true", "x")));
  const std::string tag(kOpen.substr(2, kOpen.size() - 3));
  for (const std::string between : {"", "\n", "\n\n", " \n"}) {
    const ParsedText parsed = Parse("t\n\n" + tag + between + block.substr(2));
    EXPECT_EQ(parsed.content, "t\n\n" + tag + between);
    ASSERT_EQ(parsed.calls.size(), 1u);
    EXPECT_EQ(parsed.calls[0].arguments, R"({"a": "x"})");
  }
  EXPECT_EQ(Parse(tag + tag + "x").content, tag + tag + "x");
  EXPECT_EQ(Parse(tag + tag + tag + block.substr(2)).calls.size(), 1u);
}

TEST(ToolCallParser, ArgumentsAreJsonWhateverAValueIs) {
  const auto value = [](const std::string& text) {
    return Parse(Block(Invoke("f", Parameter("k", "false", text)))).calls.at(0).arguments;
  };
  const std::string digits(400, '7');
  EXPECT_EQ(value(digits), "{\"k\": " + digits + "}");
  EXPECT_EQ(value("\xEF\xBB\xBF"
                  "7"),
            "{\"k\": \"\xEF\xBB\xBF"
            "7\"}");
  EXPECT_EQ(value("0" + digits), "{\"k\": \"0" + digits + "\"}");
}

TEST(ToolCallParser, SaysHowItWent) {
  const auto outcome = [](const std::string& text) {
    const ToolSchemas schemas;
    ToolCallParser parser(schemas, 0);
    ReasoningParser reasoning(false, &parser);
    std::vector<OutputDelta> out;
    size_t at = 0;
    constexpr std::string_view kToken = "｜DSML｜";
    for (size_t next; (next = text.find(kToken, at)) != std::string::npos;
         at = next + kToken.size()) {
      reasoning.Push({.text = std::string_view(text).substr(at, next - at)}, out);
      reasoning.Push({.text = kToken, .markup = Markup::kDsml}, out);
    }
    reasoning.Push({.text = std::string_view(text).substr(at)}, out);
    reasoning.Finish(out);
    return parser.outcome();
  };
  EXPECT_EQ(outcome("hello"), DsmlOutcome::kNone);
  EXPECT_EQ(outcome(Block(Invoke("f", Parameter("a", "true", "x")))), DsmlOutcome::kOk);
  EXPECT_EQ(outcome(Block(Invoke("f", "") + "junk")), DsmlOutcome::kRepaired);
  EXPECT_EQ(outcome(Block(Invoke("f", Parameter("a", "", "x")))), DsmlOutcome::kRepaired);
  EXPECT_EQ(outcome(Block("junk")), DsmlOutcome::kText);
  EXPECT_EQ(outcome(std::string(kOpen) + Invoke("f", "") + "<｜DSML｜invoke na"),
            DsmlOutcome::kCut);
  EXPECT_EQ(outcome(std::string(kOpen) + "<｜DSML｜invoke name=\"f\">\n"), DsmlOutcome::kCut);
}

// Values, dropped text and held tags are taken in stretches: the work per byte is bounded.
TEST(ToolCallParser, TakesAMegabyteOfAnything) {
  for (const char* unit : {"a", "\n", "<", "</", "\\", "<｜DSML｜", "</｜DSML｜inv"}) {
    std::string value;
    while (value.size() < (1u << 20)) value += unit;
    const std::string text = Block(Invoke("f", Parameter("a", "true", value)));
    const ToolSchemas schemas;
    const ParsedText parsed = ParseText({.text = text, .tools = &schemas}, {});
    ASSERT_EQ(parsed.calls.size(), 1u) << unit;
    const auto arguments = JsonValue::Parse(parsed.calls[0].arguments);
    ASSERT_TRUE(arguments.ok());
    EXPECT_TRUE(arguments->Find("a")->text() == value) << unit;
  }
}

}  // namespace
}  // namespace baton::router
