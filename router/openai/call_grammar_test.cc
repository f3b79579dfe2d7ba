#include "router/openai/call_grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "common/sampling_spec.h"
#include "router/openai/lark_text.h"
#include "router/openai/strict_parameter.h"

namespace baton::router {
namespace {

using testing::HasSubstr;
using testing::Not;

JsonValue Json(std::string_view text) {
  auto value = JsonValue::Parse(text);
  EXPECT_TRUE(value.ok()) << value.status() << text;
  return *std::move(value);
}

CallableTool Free(const std::string& name) {
  return {.name = name, .is_strict = false, .parameters = {}, .path = "tools[0].function"};
}
CallableTool Strict(const std::string& name, std::string_view schema) {
  return {.name = name, .is_strict = true, .parameters = Json(schema), .path = "tools[1].function"};
}

std::string Grammar(const std::vector<CallableTool>& tools, CallRules rules) {
  rules.dsml = 7;
  ApiResult<std::string> grammar = CallGrammar(tools, rules);
  return grammar.ok() ? *grammar : "error: " + grammar.error().message;
}

TEST(CallGrammar, BeginsWhereTheCallerSays) {
  const std::vector<CallableTool> tools = {Free("look"), Free("now")};
  EXPECT_THAT(Grammar(tools, {.begin = CallsBegin::kAtName}), HasSubstr("start: call rest\n"));
  EXPECT_THAT(Grammar(tools, {.begin = CallsBegin::kInInvoke}), HasSubstr("start: body0 rest\n"));
  EXPECT_THAT(Grammar(tools, {.begin = CallsBegin::kInText}),
              testing::AllOf(HasSubstr("start: FREE | HEAD <[7]> \"tool_calls>\\n\" OPEN <[7]> "
                                       "\"invoke name=\\\"\" call rest\n"),
                             HasSubstr("FREE: /(?s:.*)/\nHEAD: /(?s:.*)\\n\\n</\n")));
  EXPECT_THAT(Grammar(tools, {.begin = CallsBegin::kAtBlock, .answer = "answer: \"x\""}),
              testing::AllOf(HasSubstr("start: answer | HEAD <[7]>"),
                             HasSubstr("HEAD: \"\\n\\n<\"\nanswer: \"x\"\n")));
}

TEST(CallGrammar, LimitsNamesAndNumber) {
  const std::vector<CallableTool> tools = {Free("look"), Free("now")};
  const std::string any = Grammar(tools, {});
  EXPECT_THAT(any, HasSubstr("call: call0 | call1\n"));
  EXPECT_THAT(any, HasSubstr("call1: \"now\\\">\\n\" body1\n"));
  EXPECT_THAT(any, HasSubstr("rest: (OPEN <[7]> \"invoke name=\\\"\" call)* CLOSE <[7]> "
                             "\"tool_calls>\"\n"));
  EXPECT_THAT(Grammar(tools, {.is_single = true}),
              HasSubstr("rest: CLOSE <[7]> \"tool_calls>\"\n"));
}

TEST(CallGrammar, KeepsStrictParametersInOrder) {
  const std::string grammar = Grammar(
      {Free("now"), Strict("look", R"({"type": "object", "properties": {"q": {"type": "string"},
        "n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})")},
      {});
  EXPECT_THAT(grammar, HasSubstr("body1: p1_0? p1_1 CLOSE <[7]> \"invoke>\\n\"\n"));
  EXPECT_THAT(grammar, HasSubstr("p1_0: OPEN <[7]> \"parameter name=\\\"q\\\" string=\\\"\" "
                                 "(\"true\\\">\" TEXT) <[7]> \"parameter>\\n\"\n"));
  EXPECT_THAT(grammar, HasSubstr("(\"false\\\">\" jp1_1 CLOSE) <[7]>"));
  EXPECT_THAT(grammar, HasSubstr("jp1_1: %json {\"x-guidance\""));
  EXPECT_THAT(Grammar({Strict("f", "{}")}, {}), HasSubstr("body0: CLOSE <[7]>"));
}

TEST(CallGrammar, NamesWhatAStrictToolCannotHave) {
  const auto refused = [](std::string_view schema) {
    ApiResult<std::string> grammar = CallGrammar({Strict("f", schema)}, {.dsml = 7});
    EXPECT_FALSE(grammar.ok()) << schema;
    if (grammar.ok()) return std::string();
    EXPECT_EQ(grammar.error().http_status, 400);
    EXPECT_THAT(grammar.error().param, HasSubstr("tools[1].function.parameters"));
    return grammar.error().message;
  };
  EXPECT_THAT(refused(R"({"anyOf": []})"), HasSubstr("\"anyOf\""));
  EXPECT_THAT(refused(R"({"type": "array"})"), HasSubstr("\"type\""));
  EXPECT_THAT(refused(R"({"required": ["a"]})"), HasSubstr("\"required\" names \"a\""));
  EXPECT_THAT(refused(R"({"properties": []})"), HasSubstr("\"properties\""));
  EXPECT_THAT(refused("[]"), HasSubstr("expected object, got array"));
  const auto refused_member = [&](const std::string& schema) {
    return refused(absl::StrFormat(R"({"properties": {"a": %s}, "$defs": {"A": {"$ref": )"
                                   R"("#/$defs/A"}, "B": {"anyOf": [{"$ref": "#/$defs/C"}, )"
                                   R"({"$ref": "#/$defs/C"}]}, "C": {"anyOf": [{"$ref": )"
                                   R"("#/$defs/B"}, {"$ref": "#/$defs/B"}]}}})",
                                   schema));
  };
  EXPECT_THAT(refused_member(R"({"not": {}})"), HasSubstr("\"not\""));
  EXPECT_THAT(refused_member(R"({"type": "string", "format": "uri"})"), HasSubstr("\"format\""));
  EXPECT_THAT(refused_member(R"({"type": "string", "pattern": "^a|b"})"), HasSubstr("\"pattern\""));
  EXPECT_THAT(refused_member(R"({"type": "string", "pattern": "a)|(b"})"),
              HasSubstr("\"pattern\""));
  EXPECT_THAT(refused_member(R"({"type": "string", "minLength": 3, "maxLength": 2})"),
              HasSubstr("\"maxLength\""));
  EXPECT_THAT(refused_member(R"({"$ref": "#"})"), HasSubstr("\"$ref\""));
  EXPECT_THAT(refused_member(R"({"$ref": "#/$defs/A"})"), HasSubstr("more than 256 schemas"));
  EXPECT_THAT(refused_member(R"({"$ref": "#/$defs/B"})"), HasSubstr("more than 256 schemas"));
  EXPECT_THAT(refused_member(R"({"enum": []})"), HasSubstr("\"enum\""));
  EXPECT_THAT(refused_member(R"({"oneOf": [{"type": "string"}, {"enum": ["a"]}]})"),
              HasSubstr("\"oneOf\""));
  EXPECT_THAT(refused_member("7"), HasSubstr("expected an object as schema, got integer"));
  EXPECT_THAT(Grammar({Free("a\"b")}, {}), HasSubstr("tools[0].function.name"));
  const std::string large(kMaxGrammarBytes, 'x');
  EXPECT_THAT(Grammar({Free(large)}, {}), HasSubstr("more than 262144 bytes"));
}

struct Forms {
  std::string schema, texts, json;  // texts: one behind the other
};

TEST(StrictParameter, SplitsTextAndJson) {
  const std::string any(kAnyText);
  const std::string others = R"({"type": ["object", "array", "number", "boolean", "null"]})";
  const Forms cases[] = {
      {R"({"type": "string", "description": "d"})", any, ""},
      {R"({"type": "integer", "minimum": 1})", "", R"({"type": "integer", "minimum": 1})"},
      {"true", any, others},
      {R"({"type": ["string", "null"], "minLength": 2})", R"(/(?:(?s:.{2,}))<\//)",
       R"({"type": ["null"]})"},
      {R"({"type": "string", "maxLength": 3, "pattern": "^a/b$"})",
       R"(/(?:(?:a\/b))<\// & /(?:(?s:.{0,3}))<\//)", ""},
      {R"({"type": "string", "pattern": "a|b"})", R"(/(?:(?s:.*)(?:a|b)(?s:.*))<\//)", ""},
      {R"({"type": "string", "pattern": "a\\$"})", R"(/(?:(?s:.*)(?:a\$)(?s:.*))<\//)", ""},
      {R"({"enum": ["a", "b\"", 3, null]})", R"(("a" | "b\"") "</")", R"({"enum": [3, null]})"},
      {R"({"const": "x"})", R"(("x") "</")", ""},
      {R"({"anyOf": [{"type": "string"}, {"type": "null"}], "title": "t"})", any,
       R"({"anyOf": [{"type": "null"}]})"},
      {R"({"allOf": [{"$ref": "#/$defs/S"}]})", any, ""},
      {R"({"$ref": "#/$defs/O"})", "",
       R"({"$defs": {"S": {"type": "string"}, "O": {"type": "object", "properties": {"s": )"
       R"({"$ref": "#/$defs/S"}}}}, "type": "object", "properties": {"s": )"
       R"({"$ref": "#/$defs/S"}}})"},
  };
  const JsonValue root = Json(R"({"$defs": {"S": {"type": "string"}, "O": {"type": "object", )"
                              R"("properties": {"s": {"$ref": "#/$defs/S"}}}}})");
  for (const Forms& expected : cases) {
    ApiResult<ParameterForms> forms = SplitParameter(Json(expected.schema), root, "p");
    ASSERT_TRUE(forms.ok()) << expected.schema << forms.error().message;
    std::string texts;
    for (const std::string& text : forms->texts) texts += text;
    EXPECT_EQ(texts, expected.texts) << expected.schema;
    EXPECT_EQ(forms->json, expected.json) << expected.schema;
  }
}

TEST(LarkText, CannotBeLeft) {
  EXPECT_EQ(LarkLiteral("a\"\n\\"), R"("a\"\n\\")");
  EXPECT_EQ(LarkRegex("a/b\\/c\n\\\nd\\"), "a\\/b\\/c\\n\\nd\\");
  EXPECT_THAT(LarkSchema(Json(R"({"type": "object", "x-guidance": {"lenient": true}})")),
              testing::AllOf(Not(HasSubstr("lenient")), HasSubstr(R"(, "type": "object"})")));
}

}  // namespace
}  // namespace baton::router
