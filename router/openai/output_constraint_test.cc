#include "router/openai/output_constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::router {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

ApiResult<std::optional<OutputConstraint>> Parse(std::string_view text) {
  const auto body = JsonValue::Parse(text);
  EXPECT_TRUE(body.ok()) << body.status();
  return ParseConstraint(*body);
}

OutputConstraint Constraint(std::string_view text) {
  const auto parsed = Parse(text);
  EXPECT_TRUE(parsed.ok()) << text << (parsed.ok() ? "" : parsed.error().message);
  if (!parsed.ok()) return {};
  EXPECT_TRUE(parsed->has_value()) << text;
  return parsed->value_or(OutputConstraint{});
}

TEST(OutputConstraint, IsNoneWhereNothingAsks) {
  for (const char* body : {"{}", R"({"response_format": null, "guided_json": null})",
                           R"({"response_format": {"type": "text"}})"}) {
    const auto parsed = Parse(body);
    ASSERT_TRUE(parsed.ok()) << body;
    EXPECT_FALSE(parsed->has_value()) << body;
  }
}

TEST(OutputConstraint, TakesASchemaInEveryMember) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": )"
       R"({"type": "array"}}}})",
       "response_format"},
      {R"({"guided_json": {"type": "array"}})", "guided_json"},
      {R"({"guided_json": "{\"type\": \"array\"}"})", "guided_json"},
      {R"({"json_schema": "{\"type\": \"array\"}"})", "json_schema"},
      {R"({"structured_outputs": {"json": {"type": "array"}}})", "structured_outputs.json"}};
  for (const auto& [body, param] : cases) {
    const OutputConstraint constraint = Constraint(body);
    EXPECT_EQ(constraint.param, param);
    EXPECT_THAT(constraint.schema, HasSubstr(R"("type": "array"})")) << body;
    EXPECT_EQ(constraint.grammar, "start: %json " + constraint.schema + "\n");
  }
  for (const char* body : {R"({"response_format": {"type": "json_object"}})",
                           R"({"structured_outputs": {"json_object": true}})"})
    EXPECT_THAT(Constraint(body).schema, HasSubstr(R"("type": "object"})")) << body;
}

TEST(OutputConstraint, TakesRegexesChoicesAndGrammars) {
  for (const char* body : {R"({"guided_regex": "a/b"})", R"({"regex": "a/b"})",
                           R"({"structured_outputs": {"regex": "a/b"}})"})
    EXPECT_EQ(Constraint(body).grammar, "start: /a\\/b/\n") << body;
  for (const char* body : {R"({"guided_choice": ["yes", "n\"o"]})",
                           R"({"structured_outputs": {"choice": ["yes", "n\"o"]}})"})
    EXPECT_EQ(Constraint(body).grammar, "start: CHOICE\nCHOICE: \"yes\" | \"n\\\"o\"\n") << body;
  for (const char* body : {R"({"guided_grammar": "start: \"a\""})",
                           R"({"structured_outputs": {"grammar": "start: \"a\""}})"})
    EXPECT_EQ(Constraint(body).grammar, "start: \"a\"") << body;
  EXPECT_EQ(Constraint(R"({"ebnf": "root ::= \"a\""})").grammar, "start: R0\nR0: \"a\" \n");
  EXPECT_EQ(Constraint(R"({"guided_regex": "a"})").schema, "");
}

TEST(OutputConstraint, RefusesByName) {
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {R"({"guided_json": 7})", "guided_json", "expected object, got integer"},
      {R"({"guided_json": false})", "guided_json", "expected object, got boolean"},
      {R"({"guided_json": "{"})", "guided_json", "JSON decode error"},
      {R"({"guided_regex": ""})", "guided_regex", "must not be empty"},
      {R"({"regex": {}})", "regex", "expected string, got object"},
      {R"({"guided_choice": []})", "guided_choice", "must not be empty"},
      {R"({"guided_choice": ["a", 1]})", "guided_choice", "expected array of strings"},
      {R"({"guided_choice": ["a", ""]})", "guided_choice", "empty string"},
      {R"({"ebnf": "root ::="  , "regex": "a"})", "ebnf", "regex and ebnf cannot be used together"},
      {R"({"ebnf": "root ::= x"})", "ebnf", "ebnf: EBNF line 1: the rule x is not defined"},
      {R"({"structured_outputs": []})", "structured_outputs", "expected object, got array"},
      {R"({"structured_outputs": {}})", "structured_outputs", "needs one of"},
      {R"({"structured_outputs": {"json_object": false}})", "structured_outputs.json_object",
       "constrains nothing"},
      {R"({"structured_outputs": {"regex": "a", "choice": ["b"]}})", "structured_outputs",
       "structured_outputs.regex and structured_outputs.choice"},
      {R"({"response_format": {"type": "json_object"}, "guided_regex": "a"})", "guided_regex",
       "response_format and guided_regex cannot be used together"},
      {R"({"response_format": {"type": "structural_tag"}})", "response_format", "structural_tag"},
      {R"({"response_format": {"type": "json_schema"}})", "response_format",
       "'json_schema' field must be provided"}};
  for (const auto& [body, param, message] : cases) {
    const auto parsed = Parse(body);
    ASSERT_FALSE(parsed.ok()) << body;
    EXPECT_EQ(parsed.error().http_status, 400);
    EXPECT_EQ(parsed.error().param, param) << body;
    EXPECT_THAT(parsed.error().message, HasSubstr(message)) << body;
  }
}

}  // namespace
}  // namespace baton::router
