#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/demo_vocabulary.h"
#include "router/openai/output_constraint.h"
#include "router/openai/tool_choice.h"
#include "router/text/choice_output.h"
#include "router/text/test_data.h"
#include "router/text/tokenizer.h"
#include "tests/fuzz/grammar_walk.h"

namespace baton::router {
namespace {

constexpr int kMaxTokens = 64;

const Tokenizer& DemoTokenizer() {
  static const Tokenizer tokenizer =
      *Tokenizer::Parse(ReadTestFile("models/demo/tokenizer.json"), "demo");
  return tokenizer;
}

// What a grammar leads to; `ends` says whether it may stop there.
std::string Written(const std::string& grammar, uint64_t choice, bool& ends) {
  std::string text;
  for (const int32_t id : WalkGrammar(grammar, choice, kMaxTokens, ends))
    text += DemoTokenizer().Bytes(id);
  return text;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// A number beyond the range of doubles is JSON too, though our parser takes none.
std::string WithSmallExponents(std::string_view json) {
  std::string out;
  bool is_quoted = false;
  for (size_t i = 0; i < json.size(); ++i) {
    out += json[i];
    if (is_quoted && json[i] == '\\' && i + 1 < json.size()) {
      out += json[++i];
    } else if (json[i] == '"') {
      is_quoted = !is_quoted;
    } else if (!is_quoted && (json[i] | 32) == 'e' && i > 0 && IsDigit(json[i - 1])) {
      if (i + 1 < json.size() && (json[i + 1] == '+' || json[i + 1] == '-')) out += json[++i];
      if (i + 1 < json.size() && IsDigit(json[i + 1])) out += '1';
      while (i + 1 < json.size() && IsDigit(json[i + 1])) ++i;
    }
  }
  return out;
}

bool IsFollowed(const std::string& grammar) {
  const absl::Status status = CheckGrammar(DemoVocabulary(), grammar);
  CHECK(status.message().size() <= kMaxGrammarMessage);
  return status.ok();
}

// An answer that must keep to a schema is JSON when it may end.
void ConstrainAnswer(const JsonValue& body, uint64_t choice) {
  const auto constraint = ParseConstraint(body);
  if (!constraint.ok()) {
    CHECK(constraint.error().http_status == 400 && !constraint.error().param.empty());
    return;
  }
  if (!*constraint || !IsFollowed((*constraint)->grammar)) return;
  bool ends = false;
  const std::string text = Written((*constraint)->grammar, choice, ends);
  if (!ends || (*constraint)->schema.empty()) return;
  const bool is_json = JsonValue::Parse(WithSmallExponents(text)).ok();
  if (!is_json) std::fprintf(stderr, "written: %s\n", text.c_str());
  CHECK(is_json);
}

// Calls, beside text, alone, or behind what the prompt has of them.
void ConstrainCalls(const JsonValue& body, uint64_t choice) {
  const auto tools = ParseToolRequest(body);
  if (!tools.ok()) {
    CHECK(tools.error().http_status == 400);
    return;
  }
  if (tools->tools.empty()) return;
  constexpr CallsBegin kBegins[] = {CallsBegin::kInText, CallsBegin::kAtName,
                                    CallsBegin::kInInvoke};
  const auto grammar = CallGrammar(tools->tools, {.begin = kBegins[choice % 3],
                                                  .is_single = tools->max_calls == 1,
                                                  .dsml = MarkupIds::Find(DemoTokenizer())->dsml});
  if (!grammar.ok()) {
    CHECK(grammar.error().http_status == 400 && !grammar.error().message.empty());
    return;
  }
  bool ends = false;
  if (IsFollowed(*grammar)) (void)Written(*grammar, choice, ends);
}

}  // namespace
}  // namespace baton::router

// Any bytes as a body with schemas, in response_format, structured_outputs, guided_* and tools:
// refused with 400 and the member, or a grammar, which the back end refuses with a reason or
// follows.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using baton::router::JsonValue;
  const auto body = JsonValue::Parse({reinterpret_cast<const char*>(data), size});
  if (!body.ok() || !body->is_object()) return 0;
  baton::router::ConstrainAnswer(*body, size);
  baton::router::ConstrainCalls(*body, size);
  return 0;
}
