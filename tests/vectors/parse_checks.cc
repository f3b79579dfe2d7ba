#include <algorithm>
#include <sstream>

#include "common/rng.h"
#include "router/text/choice_output.h"
#include "router/text/parsed_text.h"
#include "tests/vectors/vector_file.h"

// chat/parse.json: whole, cut at every byte and at random places, and token by token.
namespace baton::vectors {

using router::MarkupIds;
using router::OutputDelta;
using router::OutputField;
using router::ParsedCall;
using router::ParsedText;
using router::TextToParse;
using router::Tokenizer;

namespace {

constexpr int kRandomWays = 40;

std::vector<std::vector<size_t>> WaysToCut(size_t size, Rng& rng) {
  std::vector<std::vector<size_t>> ways(2);
  for (size_t i = 1; i < size; ++i) ways[1].push_back(i);
  for (int way = 0; way < kRandomWays; ++way) {
    std::vector<size_t> cuts(1 + rng.Below(8));
    for (size_t& cut : cuts) cut = rng.Below(size + 1);
    std::sort(cuts.begin(), cuts.end());
    ways.push_back(std::move(cuts));
  }
  return ways;
}

ParsedText WantOf(const JsonValue& expect) {
  ParsedText want = {.reasoning = TextOf(expect, "reasoning_content"),
                     .content = TextOf(expect, "content"),
                     .calls = {},
                     .finish_reason = TextOf(expect, "finish_reason")};
  if (const JsonValue* calls = expect.Find("tool_calls")) {
    for (const JsonValue& call : calls->items())
      want.calls.push_back({.name = TextOf(call, "name"),
                            .arguments = TextOf(call, "arguments"),
                            .is_complete = true});
  }
  return want;
}

// Byte for byte, or the same JSON (the file's own rule).
bool SameArguments(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const auto left = JsonValue::Parse(a), right = JsonValue::Parse(b);
  return left.ok() && right.ok() && JsonEqual(*left, *right);
}

bool SameCall(const ParsedCall& a, const ParsedCall& b) {
  return a.name == b.name && a.is_complete == b.is_complete &&
         SameArguments(a.arguments, b.arguments);
}

Failure CompareParsed(const std::string& way, const ParsedText& got, const ParsedText& want) {
  const bool same_calls = std::equal(got.calls.begin(), got.calls.end(), want.calls.begin(),
                                     want.calls.end(), SameCall);
  if (got.reasoning == want.reasoning && got.content == want.content && same_calls &&
      got.finish_reason == want.finish_reason)
    return std::nullopt;
  std::ostringstream text;
  text << way << ": " << got << ", want " << want;
  return text.str();
}

// The same text as the tokens of a model, through all stages of a choice.
ParsedText ParseTokens(const TextToParse& in, const Tokenizer& tokenizer, const MarkupIds& markup) {
  const router::ToolSchemas none;
  router::ToolCallParser calls(in.tools == nullptr ? none : *in.tools, 0);
  router::ChoiceOutput output(tokenizer, markup,
                              {.starts_in_reasoning = in.starts_in_reasoning,
                               .tools = in.tools == nullptr ? nullptr : &calls});
  std::vector<OutputDelta> deltas;
  for (const router::TokenId id : tokenizer.Encode(in.text, router::SpecialTokens::kRecognise))
    output.Push(id, deltas);
  output.Finish(deltas);
  ParsedText out;
  for (const OutputDelta& delta : deltas) {
    if (delta.field == OutputField::kReasoning) out.reasoning += delta.text;
    if (delta.field == OutputField::kContent) out.content += delta.text;
  }
  for (const ParsedCall& call : calls.calls())
    if (call.is_complete) out.calls.push_back(call);
  if (in.tools != nullptr) out.content += calls.fallback_text();
  out.finish_reason = !out.calls.empty() && in.finish == "stop" ? "tool_calls" : in.finish;
  return out;
}

Failure CheckParseCase(const JsonValue& item, const Tokenizer& tokenizer, const MarkupIds& markup,
                       Rng& rng) {
  const std::string text = TextOf(item, "text"), finish = TextOf(item, "finish");
  const router::ToolSchemas schemas = router::SchemasOf(item.Find("tools"));
  const TextToParse in = {.text = text,
                          .starts_in_reasoning = FlagOf(item, "thinking"),
                          .tools = FlagOf(item, "tools_enabled") ? &schemas : nullptr,
                          .finish = finish};
  const JsonValue* expect = item.Find("expect");
  if (expect == nullptr) return "the file expects nothing";
  const ParsedText want = WantOf(*expect);
  for (const std::vector<size_t>& cuts : WaysToCut(text.size(), rng)) {
    const std::string way = std::to_string(cuts.size() + 1) + " pieces";
    if (auto failure = CompareParsed(way, ParseText(in, cuts), want)) return failure;
    ParsedText streamed = ParseTextStreamed(in, cuts);
    if (FlagOf(item, "stream_partial_call_allowed")) {
      std::erase_if(streamed.calls, [](const ParsedCall& call) { return !call.is_complete; });
      if (want.calls.empty()) streamed.content = want.content;  // the name was sent instead
    }
    if (auto failure = CompareParsed(way + ", streamed", streamed, want)) return failure;
  }
  return CompareParsed("as tokens", ParseTokens(in, tokenizer, markup), want);
}

}  // namespace

FileResult CheckParse(const JsonValue& file, const Tokenizer& tokenizer) {
  FileResult result;
  const auto markup = MarkupIds::Find(tokenizer);
  if (!markup.ok()) {
    result.Count("tokenizer", std::string(markup.status().message()));
    return result;
  }
  SeededRng rng(5);
  return CheckCases(
      file, [&](const JsonValue& item) { return CheckParseCase(item, tokenizer, *markup, rng); });
}

}  // namespace baton::vectors
