#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "router/openai/api_fixture.h"

// Constraints on answers over the API: compiled before anything is submitted (protocol.md 3.5, 4,
// 5.4).
namespace baton::router {
namespace {

using testing::HasSubstr;

class ApiConstraintTest : public ApiTest {
 protected:
  ApiConstraintTest() { waits_for_verdicts_ = false; }
  // A chat without thinking; returns when the grammar was compiled.
  std::shared_ptr<FakeExchange> Ask(const std::string& members) { return Settle(Chat(members)); }
  std::shared_ptr<FakeExchange> AskThinking(const std::string& members) {
    return Settle(Post("/v1/chat/completions",
                       R"({"messages": [{"role": "user", "content": "hi"}], )" + members + "}"));
  }
  std::shared_ptr<FakeExchange> Settle(std::shared_ptr<FakeExchange> exchange) {
    while (!exchange->is_over() && dispatcher_.submitted.size() == num_settled_) {
      if (!exchange->RunTasksFor(absl::Seconds(20))) break;
    }
    num_settled_ = dispatcher_.submitted.size();
    return exchange;
  }
  const MaskRules& Masks() { return dispatcher_.submitted.back().request.masks; }
  // The error of a request that must be refused before anything is submitted.
  std::pair<std::string, std::string> Refused(const std::string& members) {
    const size_t before = dispatcher_.submitted.size();
    const auto answer = Ask(members);
    EXPECT_EQ(answer->status, 400) << members << answer->body;
    EXPECT_EQ(dispatcher_.submitted.size(), before) << members;
    if (answer->status != 400) return {};
    const JsonValue error = Member(Json(answer->body), "error");
    return {Member(error, "param").text(), Member(error, "message").text()};
  }
  size_t num_settled_ = 0;
};

std::string Tool(const char* strict, const char* schema) {
  return absl::StrFormat(
      R"("tools": [{"type": "function", "function": {"name": "f", "strict": %s, )"
      R"("parameters": {"type": "object", "properties": {"a": %s}, )"
      R"("required": ["a"]}}}])",
      strict, schema);
}

TEST_F(ApiConstraintTest, SendsTheGrammarOnceItIsCompiled) {
  const auto answer = Chat(R"("response_format": {"type": "json_object"})");
  Settle(answer);
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  EXPECT_THAT(Masks().grammar, HasSubstr("start: %json {"));
  EXPECT_TRUE(Masks().reasoning_bans.empty());
  EXPECT_TRUE(Masks().forced_prefix.empty());
  Say(0, {RequestAccepted{}, Tokens("{}"), Eos(), RequestEnded{}}, *answer);
  EXPECT_EQ(answer->status, 200);
}

TEST_F(ApiConstraintTest, ConstrainsWhatFollowsTheReasoning) {
  AskThinking(R"("guided_regex": "[0-9]+")");
  EXPECT_TRUE(Masks().starts_in_reasoning);
  EXPECT_EQ(Masks().reasoning_bans, (std::vector<int32_t>{markup_.eos, markup_.dsml}));
}

TEST_F(ApiConstraintTest, ConstrainsTextCompletionsToo) {
  Settle(Post("/v1/completions", R"({"prompt": "Hi", "guided_choice": ["a", "b"]})"));
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  EXPECT_EQ(Masks().grammar, "start: CHOICE\nCHOICE: \"a\" | \"b\"\n");
  EXPECT_FALSE(Masks().starts_in_reasoning);
}

TEST_F(ApiConstraintTest, RefusesByKeywordBeforeAnythingIsSubmitted) {
  const auto schema = [](const std::string& text) {
    return R"("response_format": {"type": "json_schema", "json_schema": {"schema": )" + text + "}}";
  };
  const std::pair<std::string, std::string> cases[] = {
      {schema(R"({"type": "array", "uniqueItems": true})"), "uniqueItems"},
      {schema(R"({"type": "object", "properties": {"a": {"not": {}}}})"), "not"},
      {schema(R"({"type": "nothing"})"), "nothing"},
      {schema(R"({"type": "string", "format": "no-format"})"), "no-format"},
      {schema(R"x({"type": "string", "pattern": "(?=a)"})x"), "look-around"},
      {schema(R"({"type": "number", "minimum": 2, "maximum": 1})"), "minimum"}};
  for (const auto& [members, keyword] : cases) {
    const auto [param, message] = Refused(members);
    EXPECT_EQ(param, "response_format");
    EXPECT_THAT(message, HasSubstr(keyword));
  }
  EXPECT_THAT(Refused(R"x("regex": "(a")x").second, HasSubstr("unclosed group"));
  EXPECT_EQ(Refused(R"("guided_grammar": "start: nothing")").first, "guided_grammar");
  const auto [param, message] =
      Refused(R"("guided_choice": [")" + std::string(kMaxGrammarBytes, 'x') + "\"]");
  EXPECT_EQ(param, "guided_choice");
  EXPECT_THAT(message, HasSubstr("the limit is 262144"));
}

TEST_F(ApiConstraintTest, RefusesWhatCannotGoTogether) {
  const std::string json = R"("response_format": {"type": "json_object"}, )";
  EXPECT_EQ(Refused(json + R"("min_tokens": 2)").first, "min_tokens");
  EXPECT_EQ(Refused(json + R"("bad_words": ["a"])").first, "bad_words");
  EXPECT_EQ(Refused(json + R"("allowed_token_ids": [5])").first, "allowed_token_ids");
  EXPECT_EQ(Refused(json + R"("regex": "a")").first, "regex");
  EXPECT_EQ(Refused(json + Tool("false", "true") + R"(, "tool_choice": "required")").first,
            "response_format");
  EXPECT_EQ(Refused(R"("regex": "a", )" + Tool("false", "true")).first, "regex");
}

TEST_F(ApiConstraintTest, EndsWhereTheGrammarDoesWithoutEosToo) {
  Ask(R"("ignore_eos": true, "stop_token_ids": [9])");
  EXPECT_EQ(dispatcher_.submitted.back().request.finish.stop_tokens, (std::vector<int32_t>{9}));
  Ask(R"("ignore_eos": true, "stop_token_ids": [9], "regex": "a+")");
  EXPECT_EQ(dispatcher_.submitted.back().request.finish.stop_tokens,
            (std::vector<int32_t>{markup_.eos, 9}));
}

TEST_F(ApiConstraintTest, MixesJsonWithCallsButNotWithBannedOnes) {
  const std::string json = R"("response_format": {"type": "json_object"}, )";
  Ask(json + Tool("false", "true"));
  EXPECT_THAT(Masks().grammar, HasSubstr("start: answer | HEAD"));
  Ask(json + Tool("false", "true") + R"(, "tool_choice": "none")");
  EXPECT_THAT(Masks().grammar, HasSubstr("start: %json"));
  EXPECT_EQ(dispatcher_.submitted.back().request.sampling.bad_words.size(), 1u);
}

TEST_F(ApiConstraintTest, HoldsStrictToolsToTheirSchemas) {
  Ask(Tool("false", R"({"type": "integer"})"));
  EXPECT_TRUE(Masks().IsEmpty());
  Ask(Tool("true", R"({"type": "integer"})"));
  EXPECT_THAT(Masks().grammar, HasSubstr("start: FREE | HEAD"));
  AskThinking(Tool("true", R"({"type": "integer"})"));
  EXPECT_EQ(Masks().reasoning_bans, (std::vector<int32_t>{markup_.dsml})) << "text may end";
  EXPECT_EQ(Refused(Tool("7", "true")).first, "tools[0].function.strict");
  const auto [param, message] = Refused(Tool("true", R"({"type": "string", "format": "uri"})"));
  EXPECT_EQ(param, "tools[0].function.parameters.properties.a");
  EXPECT_THAT(message, HasSubstr("\"format\""));
  const auto [outer, inner] = Refused(Tool("true", R"({"type": "array", "uniqueItems": true})"));
  EXPECT_EQ(outer, "tools");
  EXPECT_THAT(inner, HasSubstr("uniqueItems"));
}

TEST_F(ApiConstraintTest, AnswersInTheFormOfItsSurface) {
  const auto answer = Settle(Post(
      "/v1/responses", R"({"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", )"
                       R"("schema": {"not": {}}}}})"));
  EXPECT_EQ(answer->status, 400);
  const JsonValue error = Member(Json(answer->body), "error");
  EXPECT_EQ(Member(error, "param").text(), "text.format");
  EXPECT_THAT(Member(error, "message").text(), HasSubstr("text.format: "));
  EXPECT_THAT(Member(error, "message").text(), HasSubstr("not"));
  const auto generate = Settle(Post("/generate", R"({"text": "hi", "sampling_params": )"
                                                 R"({"json_schema": {"not": {}}}})"));
  EXPECT_EQ(Member(Member(Json(generate->body), "error"), "param").text(),
            "sampling_params.json_schema");
  EXPECT_TRUE(dispatcher_.submitted.empty());
}

TEST_F(ApiConstraintTest, QuotesInTheLogWhatAClientSaid) {
  testing::internal::CaptureStdout();
  Refused(R"("guided_json": {"\" status=200": {}, "$ref": "\" status=200"})");
  const std::string log = testing::internal::GetCapturedStdout();
  EXPECT_THAT(log, HasSubstr("param=\"guided_json\" error=\"guided_json: "));
  EXPECT_THAT(log, HasSubstr("\\\" status=200"));
}

TEST_F(ApiConstraintTest, SubmitsNothingForAClientThatLeft) {
  const auto exchange = Chat(R"("response_format": {"type": "json_object"})");
  exchange->Gone();
  EXPECT_TRUE(exchange->RunTasksFor(absl::Seconds(20))) << "the compiled grammar comes back";
  EXPECT_TRUE(dispatcher_.submitted.empty());
}

// What is known is neither compiled nor waited for again, good or bad.
TEST_F(ApiConstraintTest, AnswersAtOnceWhatItKnows) {
  for (const char* members : {R"("regex": "a+")", R"("regex": "(a")"}) {
    const size_t before = dispatcher_.submitted.size();
    const auto first = Ask(members);
    const auto again = Chat(members);  // nothing runs but what is posted already
    EXPECT_EQ(dispatcher_.submitted.size() - before, first->is_over() ? 0u : 2u);
    EXPECT_EQ(again->status, first->status);
    EXPECT_EQ(again->body, first->body);
    num_settled_ = dispatcher_.submitted.size();
  }
  EXPECT_EQ(grammars_.misses(), 2u);
  EXPECT_EQ(grammars_.hits(), 2u);
}

TEST_F(ApiConstraintTest, AFailureOfTheServersOwnIsItsErrorAndDoesNotLast) {
  const std::string members = R"("response_format": {"type": "json_object"})";
  std::vector<absl::Status> failures = {absl::UnavailableError("grammar: no thread"),
                                        absl::InternalError("grammar: internal: panic")};
  check_ = [&](std::string_view) {
    if (failures.empty()) return absl::OkStatus();
    const absl::Status next = failures.back();
    failures.pop_back();
    return next;
  };
  const auto broken = Ask(members);
  EXPECT_EQ(broken->status, 500) << broken->body;
  EXPECT_THAT(broken->body, HasSubstr("\"InternalServerError\""));
  const auto busy = Ask(members);
  EXPECT_EQ(busy->status, 503) << busy->body;
  EXPECT_THAT(busy->headers, testing::Contains(testing::Pair("Retry-After", "1")));
  EXPECT_TRUE(dispatcher_.submitted.empty());
  Ask(members);
  EXPECT_EQ(dispatcher_.submitted.size(), 1u);
  EXPECT_EQ(grammars_.misses(), 3u);
}

// What the grammars of calls let through, token by token.
class CallGrammarMasks : public testing::Test {
 protected:
  static std::string Run(const std::string& grammar, const std::string& text) {
    absl::StatusOr<Matcher> matcher = Matcher::Create(RealVocabulary(), grammar);
    if (!matcher.ok()) return matcher.status().ToString();
    const std::vector<int32_t> ids = RealTokenizer().Encode(text, SpecialTokens::kRecognise);
    for (size_t taken = 0; taken < ids.size(); ++taken) {
      if (!matcher->Consume(ids[taken]).ok())
        return "refused behind: " + RealTokenizer().Decode(std::span(ids).first(taken), false);
    }
    return matcher->IsStopped() ? "complete" : matcher->IsAccepting() ? "may end" : "open";
  }
  static std::string Grammar(const std::string& schema, CallRules rules) {
    rules.dsml = MarkupIds::Find(RealTokenizer())->dsml;
    const CallableTool strict = {
        .name = "look", .is_strict = true, .parameters = *JsonValue::Parse(schema), .path = "t"};
    ApiResult<std::string> grammar = CallGrammar(
        {strict, {.name = "now", .is_strict = false, .parameters = {}, .path = "u"}}, rules);
    return grammar.ok() ? *grammar : grammar.error().message;
  }
};

std::string Parameter(const std::string& key, bool is_text, const std::string& value) {
  return absl::StrFormat("<｜DSML｜parameter name=\"%s\" string=\"%s\">%s</｜DSML｜parameter>\n",
                         key, is_text ? "true" : "false", value);
}
constexpr const char* kInvokeEnd = "</｜DSML｜invoke>\n";
constexpr const char* kBlockEnd = "</｜DSML｜tool_calls>";

TEST_F(CallGrammarMasks, LetWellFormedCallsThrough) {
  const std::string schema =
      R"({"type": "object", "properties": {"q": {"type": "string"}, "e": {"enum": ["red", 3]},
          "d": {"type": "string", "format": "date"}, "n": {"type": ["integer", "null"]},
          "o": {"$ref": "#/$defs/O"}}, "required": ["q", "e"], "$defs": {"O": {"type": "object",
          "properties": {"b": {"type": "boolean"}}, "required": ["b"],
          "additionalProperties": false}}})";
  const std::string calls = Grammar(schema, {});
  const std::string look = "look\">\n";
  const std::string q = Parameter("q", true, "a\nb</c <x>"), e = Parameter("e", true, "red");
  const std::string end = std::string(kInvokeEnd) + kBlockEnd;
  EXPECT_EQ(Run(calls, look + q + e + end), "complete");
  EXPECT_EQ(
      Run(calls, look + q + Parameter("e", false, "3") + Parameter("d", true, "2024-02-29") +
                     Parameter("n", false, "-7") + Parameter("o", false, "{\"b\": true}") + end),
      "complete");
  EXPECT_EQ(
      Run(calls, look + q + e + kInvokeEnd + "<｜DSML｜invoke name=\"now\">\n" +
                     Parameter("k", false, "[1, {\"a\": \"b\"}]") + Parameter("m", true, "") + end),
      "complete");
  EXPECT_THAT(Run(calls, look + e), HasSubstr("refused")) << "q comes first and is required";
  EXPECT_THAT(Run(calls, look + q + end), HasSubstr("refused")) << "e is required";
  EXPECT_THAT(Run(calls, look + q + Parameter("e", true, "blue")), HasSubstr("refused"));
  EXPECT_THAT(Run(calls, look + q + e + Parameter("d", true, "2024-13-01")), HasSubstr("refused"));
  EXPECT_THAT(Run(calls, look + q + e + Parameter("o", false, "{\"b\": 1}")), HasSubstr("refused"));
  EXPECT_THAT(Run(calls, look + q + e + Parameter("z", true, "")), HasSubstr("refused"));
  EXPECT_EQ(Run(calls, "other\">\n"), "refused behind: ");
}

TEST_F(CallGrammarMasks, LetTextOrABlockThrough) {
  const std::string block =
      std::string("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n") + kInvokeEnd +
      kBlockEnd;
  const std::string in_text = Grammar("{}", {.begin = CallsBegin::kInText});
  EXPECT_EQ(Run(in_text, "Hello.\n\n<b>"), "may end");
  EXPECT_EQ(Run(in_text, "Hello." + block), "complete");
  EXPECT_EQ(Run(in_text, block), "complete");
  EXPECT_THAT(Run(in_text, "Hello.<｜DSML｜tool_calls>"), HasSubstr("refused behind: Hello.<"));
  const std::string or_json = Grammar(
      "{}", {.begin = CallsBegin::kAtBlock, .answer = "answer: %json {\"type\": \"null\"}"});
  EXPECT_EQ(Run(or_json, "null"), "complete");
  EXPECT_EQ(Run(or_json, block), "complete");
  EXPECT_THAT(Run(or_json, "Hello"), HasSubstr("refused"));
  const std::string one = Grammar("{}", {.is_single = true});
  EXPECT_EQ(Run(one, std::string("now\">\n") + kInvokeEnd + kBlockEnd), "complete");
  EXPECT_THAT(Run(one, std::string("now\">\n") + kInvokeEnd + "<｜DSML｜invoke"),
              HasSubstr("refused"));
}

}  // namespace
}  // namespace baton::router
