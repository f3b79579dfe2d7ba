#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "router/openai/api_fixture.h"
#include "router/openai/responses_request.h"

// /v1/responses (protocol.md 5.8): the translation, and answers over the API.
namespace baton::router {
namespace {

const TextSealer kSealer("secret");

std::string Chat(const std::string& body) {
  const auto out = TranslateResponses(*JsonValue::Parse(body), kSealer);
  return out.ok() ? JsonValue::Parse(out->chat)->Dump() : "refused: " + out.error().message;
}
std::string Param(const std::string& body) {
  const auto out = TranslateResponses(*JsonValue::Parse(body), kSealer);
  return out.ok() ? "accepted" : out.error().param;
}

TEST(TranslateResponses, TakesATextOrItems) {
  EXPECT_EQ(Chat(R"({"input": "hi", "instructions": "be brief"})"),
            R"({"messages": [{"role": "system", "content": "be brief"}, )"
            R"({"role": "user", "content": "hi"}]})");
  EXPECT_EQ(Chat(R"({"input": [{"role": "developer", "content": "d"}, {"type": "message", )"
                 R"("role": "user", "content": [{"type": "input_text", "text": "q"}]}]})"),
            R"({"messages": [{"role": "developer", "content": "d"}, {"role": "user", )"
            R"("content": [{"type": "input_text", "text": "q"}]}]})");
}

TEST(TranslateResponses, JoinsReasoningTextAndCallsToOneMessage) {
  EXPECT_EQ(
      Chat(R"({"input": [{"role": "user", "content": "q"},
        {"type": "reasoning", "id": "rs", "summary": [], "content":
            [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content":
            [{"type": "output_text", "text": "Let me."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{\"x\":1}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output":
            [{"type": "input_text", "text": "2"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]})"),
      R"({"messages": [{"role": "user", "content": "q"}, )"
      R"({"role": "assistant", "content": [{"type": "output_text", "text": "Let me."}], )"
      R"("reasoning_content": "hm", "tool_calls": [)"
      R"({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}, )"
      R"({"id": "b", "type": "function", "function": {"name": "g", "arguments": "{\"x\":1}"}}]}, )"
      R"({"role": "tool", "content": "1", "tool_call_id": "a"}, )"
      R"({"role": "tool", "content": [{"type": "input_text", "text": "2"}], )"
      R"("tool_call_id": "b"}, )"
      R"({"role": "assistant", "content": null, "reasoning_content": "so", "tool_calls": [)"
      R"({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]})");
}

// What was cut off before any text stays where it was, and joins no later answer.
TEST(TranslateResponses, ReasoningStaysInItsTurn) {
  EXPECT_EQ(Chat(R"({"input": [{"role": "user", "content": "q"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "user", "content": "go on"},
        {"type": "message", "role": "assistant", "content": "a"},
        {"role": "user", "content": "b"}]})"),
            R"({"messages": [{"role": "user", "content": "q"}, )"
            R"({"role": "assistant", "content": "", "reasoning_content": "hm"}, )"
            R"({"role": "user", "content": "go on"}, {"role": "assistant", "content": "a"}, )"
            R"({"role": "user", "content": "b"}]})");
}

TEST(TranslateResponses, TakesBackReasoningThatItSealed) {
  const std::string blob = kSealer.Seal("hm \"so\"");
  const auto with = [](const std::string& sealed) {
    return absl::StrFormat(
        R"({"input": [{"type": "reasoning", "content": null, "encrypted_content": "%s"}, )"
        R"({"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]})",
        sealed);
  };
  EXPECT_NE(Chat(with(blob)).find(R"("reasoning_content": "hm \"so\"")"), std::string::npos);
  std::string changed = blob;
  changed[blob.size() / 2] = changed[blob.size() / 2] == 'A' ? 'B' : 'A';
  EXPECT_EQ(Param(with(changed)), "input[0].encrypted_content");
  // Another server's: the turn is rendered without.
  EXPECT_EQ(Chat(with(TextSealer("").Seal("x"))).find("reasoning_content"), std::string::npos);
  EXPECT_EQ(Param(R"({"input": [{"type": "reasoning", "encrypted_content": 1}]})"),
            "input[0].encrypted_content");
  EXPECT_EQ(Param(R"({"input": "x", "include": "reasoning.encrypted_content"})"), "include");
}

TEST(TranslateResponses, RenamesMembers) {
  EXPECT_EQ(
      Chat(R"({"input": "q", "max_output_tokens": 7, "temperature": 0, "reasoning":
        {"effort": "max", "summary": "auto"}, "tools": [{"type": "function", "strict": true,
        "parameters": {"type": "object"}, "name": "f", "description": null}],
        "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}})"),
      R"({"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function", )"
      R"("function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}], )"
      R"("tool_choice": {"type": "function", "function": {"name": "f"}}, )"
      R"("reasoning_effort": "max", "response_format": {"type": "json_schema", "json_schema": )"
      R"({"schema": {"type": "object"}}}, "max_completion_tokens": 7, "temperature": 0, )"
      R"("parallel_tool_calls": false})");
  EXPECT_EQ(Chat(R"({"input": "q", "tools": [], "tool_choice": "auto"})"),
            R"({"messages": [{"role": "user", "content": "q"}]})");
}

TEST(TranslateResponses, NamesWhatItRefuses) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "input"},
      {R"({"input": 5})", "input"},
      {R"({"input": "x", "previous_response_id": "r"})", "previous_response_id"},
      {R"({"input": "x", "conversation": "c"})", "conversation"},
      {R"({"input": "x", "background": true})", "background"},
      {R"({"input": "x", "truncation": "auto"})", "truncation"},
      {R"({"input": "x", "max_output_tokens": 0})", "max_output_tokens"},
      {R"({"input": "x", "instructions": 1})", "instructions"},
      {R"({"input": "x", "tools": [{"type": "web_search"}]})", "tools[0].type"},
      {R"({"input": "x", "tools": [{"type": "function"}]})", "tools[0].name"},
      {R"({"input": "x", "tool_choice": {"type": "file_search"}})", "tool_choice"},
      {R"({"input": "x", "reasoning": {"effort": 1}})", "reasoning.effort"},
      {R"({"input": "x", "text": {"format": {"type": "json_schema"}}})", "text.format.schema"},
      {R"({"input": [1]})", "input[0]"},
      {R"({"input": [{"type": "custom_tool_call"}]})", "input[0].type"},
      {R"({"input": [{"role": "user"}]})", "input[0].content"},
      {R"({"input": [{"role": "tool", "content": "x"}]})", "input[0].role"},
      {R"({"input": [{"role": "", "content": "x"}]})", "input[0].role"},
      {R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})",
       "input[0].content[0]"},
      {R"({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]})",
       "input[0].arguments"},
      {R"({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "1"}]})",
       "input[0].arguments"},
  };
  for (const auto& [body, param] : cases) EXPECT_EQ(Param(body), param) << body;
}

// What the answer repeats is kept until its end.
TEST(TranslateResponses, BoundsWhatItRepeats) {
  const auto with = [](const std::string& members) { return R"({"input": "x", )" + members + "}"; };
  EXPECT_EQ(Param(with(R"("metadata": 1)")), "metadata");
  EXPECT_EQ(Param(with(R"("metadata": {"a": 1})")), "metadata");
  EXPECT_EQ(Param(with(R"("metadata": {"a": ")" + std::string(513, 'v') + "\"}")), "metadata");
  EXPECT_EQ(Param(with(R"("metadata": {")" + std::string(65, 'k') + R"(": "v"})")), "metadata");
  std::string many;
  for (int i = 0; i < 17; ++i) many += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + R"(": "v")";
  EXPECT_EQ(Param(with(R"("metadata": {)" + many + "}")), "metadata");
  const std::string padding(300 << 10, 'p');
  EXPECT_EQ(Param(with(R"("text": {"format": {"type": "text", "x": ")" + padding + "\"}}")),
            "text.format");
  EXPECT_TRUE(
      TranslateResponses(*JsonValue::Parse(with(R"("metadata": {"a": "b"})")), kSealer).ok());
}

// Much of a prompt, but not to be sent three times over.
TEST(TranslateResponses, LeavesOutWhatIsTooLongToRepeat) {
  const std::string padding(300 << 10, 'p');
  const std::string body =
      absl::StrFormat(R"({"input": "x", "instructions": "%s", )"
                      R"("tools": [{"type": "function", "name": "f", "description": "%s"}]})",
                      padding, padding);
  const auto out = TranslateResponses(*JsonValue::Parse(body), kSealer);
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->echo.instructions, "null");
  EXPECT_EQ(out->echo.tools, "[]");
  EXPECT_GT(out->chat.size(), 2 * padding.size());
}

class ResponsesTest : public ApiTest {
 protected:
  std::shared_ptr<FakeExchange> Ask(const std::string& members) {
    return Post("/v1/responses", R"({"input": "hi")" + members + "}", {{"x-request-id", "r1"}});
  }
  struct Sent {
    std::string type;
    JsonValue data;
  };
  // Checks that names, types and numbers agree.
  static std::vector<Sent> EventsOf(const FakeExchange& answer) {
    std::vector<Sent> out;
    for (size_t from = 0; from < answer.body.size();) {
      const size_t end = answer.body.find("\n\n", from);
      const std::string event = answer.body.substr(from, end - from);
      from = end + 2;
      const size_t line = event.find("\ndata: ");
      EXPECT_EQ(event.substr(0, 7), "event: ");
      Sent sent = {.type = event.substr(7, line - 7), .data = Json(event.substr(line + 7))};
      EXPECT_EQ(Member(sent.data, "type").text(), sent.type);
      EXPECT_EQ(Member(sent.data, "sequence_number").AsInt64(), static_cast<int64_t>(out.size()));
      out.push_back(std::move(sent));
    }
    return out;
  }
  static std::string TypesOf(const std::vector<Sent>& events) {
    std::string types;
    for (const Sent& event : events) types += event.type.substr(9) + " ";
    return types;
  }
};

constexpr const char* kTools =
    R"(, "tools": [{"type": "function", "name": "now", "parameters": {"type": "object"}}])";
constexpr const char* kCall =
    "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n<｜DSML｜parameter name=\"z\" "
    "string=\"true\">UTC</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

TEST_F(ResponsesTest, AnswersWithItemsInOrder) {
  const auto answer = Ask(kTools);
  Say(0, {RequestAccepted{}, Tokens(std::string("hm</think>Wait.") + kCall), Eos(), RequestEnded{}},
      *answer);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(Member(body, "id").text(), "resp_r1");
  EXPECT_EQ(Member(body, "object").text(), "response");
  EXPECT_EQ(Member(body, "status").text(), "completed");
  EXPECT_TRUE(Member(body, "incomplete_details").is_null());
  const auto& items = Member(body, "output").items();
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(Member(items[0], "content").items().at(0).Dump(),
            R"({"type": "reasoning_text", "text": "hm"})");
  EXPECT_EQ(Member(Member(items[1], "content").items().at(0), "text").text(), "Wait.");
  EXPECT_EQ(Member(items[2], "type").text(), "function_call");
  EXPECT_EQ(Member(items[2], "arguments").text(), R"({"z": "UTC"})");
  EXPECT_EQ(Member(items[2], "call_id").text().substr(0, 5), "call_");
  const JsonValue& usage = Member(body, "usage");
  EXPECT_EQ(Member(Member(usage, "output_tokens_details"), "reasoning_tokens").text(), "1");
  EXPECT_EQ(Member(body, "tools").items().size(), 1u);
}

TEST_F(ResponsesTest, StreamsTheEventsOfEachItem) {
  const auto answer = Ask(std::string(kTools) + R"(, "stream": true)");
  Say(0, {RequestAccepted{}}, *answer);
  EXPECT_EQ(TypesOf(EventsOf(*answer)), "created in_progress ");
  Say(0, {Tokens("hm")}, *answer);
  Say(0, {Tokens("</think>Wait.")}, *answer);
  Say(0, {Tokens(kCall), Eos(), RequestEnded{}}, *answer);
  const std::vector<Sent> events = EventsOf(*answer);
  EXPECT_EQ(TypesOf(events),
            "created in_progress "
            "output_item.added reasoning_text.delta reasoning_text.done output_item.done "
            "output_item.added content_part.added output_text.delta output_text.done "
            "content_part.done output_item.done "
            "output_item.added function_call_arguments.delta function_call_arguments.done "
            "output_item.done completed ");
  const JsonValue& response = Member(events.back().data, "response");
  const auto& items = Member(response, "output").items();
  ASSERT_EQ(items.size(), 3u);
  for (size_t i = 0; i < items.size(); ++i)
    EXPECT_EQ(Member(items[i], "status").text(), "completed");
  EXPECT_EQ(Member(items[2], "arguments").text(), R"({"z": "UTC"})");
  EXPECT_EQ(answer->body.find("[DONE]"), std::string::npos);
  EXPECT_TRUE(answer->is_ended);
}

TEST_F(ResponsesTest, SaysThatItIsIncomplete) {
  const ChoiceFinished length = {.choice = 0, .reason = FinishReason::kLength};
  const std::string off = R"(, "reasoning": {"effort": "none"})";
  const auto whole = Ask(off);
  Say(0, {RequestAccepted{}, Tokens("half"), length, RequestEnded{}}, *whole);
  const JsonValue body = Json(whole->body);
  EXPECT_EQ(Member(body, "status").text(), "incomplete");
  EXPECT_EQ(Member(Member(body, "incomplete_details"), "reason").text(), "max_output_tokens");
  EXPECT_EQ(Member(Member(body, "output").items().at(0), "status").text(), "incomplete");
  const auto stream = Ask(off + R"(, "stream": true)");
  Say(1, {RequestAccepted{}, Tokens("half"), length, RequestEnded{}}, *stream);
  const std::vector<Sent> events = EventsOf(*stream);
  EXPECT_EQ(events.back().type, "response.incomplete");
}

TEST_F(ResponsesTest, FailsInItsOwnForm) {
  const auto stream = Ask(R"(, "stream": true)");
  Say(0, {RequestAccepted{}, Tokens("a")}, *stream);
  Say(0, {Ended(absl::UnavailableError("no worker"))}, *stream);
  const std::vector<Sent> events = EventsOf(*stream);
  EXPECT_EQ(events.back().type, "response.failed");
  const JsonValue& error = Member(Member(events.back().data, "response"), "error");
  EXPECT_EQ(Member(error, "message").text(), "no worker");
  const auto refused = Ask(R"(, "max_output_tokens": 5000)");
  EXPECT_EQ(refused->status, 400);
  EXPECT_NE(refused->body.find("maximum context length"), std::string::npos);
}

// The chat's checks say what is wrong in the words of this endpoint.
TEST_F(ResponsesTest, ErrorsNameItsOwnMembers) {
  const auto refused = [&](const std::string& body) {
    const auto answer = Post("/v1/responses", body);
    EXPECT_EQ(answer->status, 400) << body;
    const JsonValue said = Json(answer->body);
    return Member(Member(said, "error"), "param").text() + ": " +
           Member(Member(said, "error"), "message").text();
  };
  const auto begins = [&](const std::string& body, const std::string& expected) {
    const std::string got = refused(body);
    EXPECT_EQ(got.substr(0, expected.size()), expected) << body;
  };
  begins(R"({"input": []})", "input: input must not be empty");
  begins(R"({"input": "x", "reasoning": {"effort": "huge"}})",
         "reasoning.effort: reasoning.effort \"huge\" is not one of");
  begins(R"({"input": "x", "max_output_tokens": 5000})", "max_output_tokens: This model's");
  begins(R"({"input": "x", "text": {"format": {"type": "yaml"}}})",
         "text.format: text.format.type \"yaml\" is not supported");
  begins(R"({"input": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})",
         "input: The last message");
  begins(R"({"input": "x", "tools": [{"type": "function", "name": "f"}], "tool_choice": "maybe"})",
         "tool_choice: ");
}

TEST(InOwnNames, FollowsEveryKindOfPath) {
  const std::vector<ResponsesSource> sources = {
      {.item = "instructions"}, {.item = "input[0]"}, {.item = "input[2]", .calls = {"input[3]"}}};
  const std::pair<const char*, const char*> cases[] = {
      {"messages[0].content", "instructions"},
      {"messages[1].content[0]", "input[0].content[0]"},
      {"messages[1].role", "input[0].role"},
      {"messages[1].tool_call_id", "input[0].call_id"},
      {"messages[2].reasoning_content", "input[2]"},
      {"messages[2].tool_calls[0].function.arguments", "input[3].arguments"},
      {"messages[2].tool_calls[0].function.name", "input[3].name"},
      {"messages[2].tool_calls[0].id", "input[3].call_id"},
      {"messages[2].tool_calls[0]", "input[3]"},
      {"messages[2].tool_calls[7]", "input[2]"},
      {"messages[9].content", "input"},
      {"messages", "input"},
      {"max_tokens", "max_output_tokens"},
      {"tools[4].function.name", "tools[4].name"},
      {"tools[4].function", "tools[4]"},
      {"tool_choice.function.name", "tool_choice.name"},
      {"response_format.json_schema.schema", "text.format.schema"},
      {"temperature", "temperature"},
      {"", ""},
  };
  for (const auto& [chat, own] : cases) {
    const ApiError renamed = InOwnNames(BadRequest(std::string(chat) + " is wrong", chat), sources);
    EXPECT_EQ(renamed.param, own);
    EXPECT_EQ(renamed.message, std::string(own) + " is wrong");
  }
}

TEST_F(ResponsesTest, SealsReasoningForClientsThatAskForIt) {
  const std::string members = R"(, "include": ["reasoning.encrypted_content"])";
  const auto whole = Ask(members);
  Say(0, {RequestAccepted{}, Tokens("hm</think>Hi."), Eos(), RequestEnded{}}, *whole);
  const JsonValue body = Json(whole->body);
  const JsonValue& item = Member(body, "output").items().at(0);
  const std::string blob = Member(item, "encrypted_content").text();
  EXPECT_EQ(blob.substr(0, 4), "bt1.");
  // The next turn's prompt holds it: tools keep old reasoning.
  const std::string items = absl::StrFormat(
      R"([{"role": "user", "content": "hi"}, )"
      R"({"type": "reasoning", "summary": [], "encrypted_content": "%s"}, )"
      R"({"role": "assistant", "content": "Hi."}, {"role": "user", "content": "and"}])",
      blob);
  const auto next = Post("/v1/responses", absl::StrFormat(R"({"input": %s%s})", items, kTools));
  EXPECT_EQ(next->status, 0) << next->body;
  EXPECT_NE(RealTokenizer()
                .Decode(*dispatcher_.submitted.at(1).request.prompt, false)
                .find("<think>hm</think>Hi."),
            std::string::npos);
  const auto stream = Ask(members + R"(, "stream": true)");
  Say(2, {RequestAccepted{}, Tokens("hm</think>Hi."), Eos(), RequestEnded{}}, *stream);
  for (const Sent& event : EventsOf(*stream)) {
    const JsonValue* streamed = event.data.Find("item");
    if (streamed == nullptr || Member(*streamed, "type").text() != "reasoning") continue;
    const bool is_done = event.type == "response.output_item.done";
    EXPECT_EQ(Member(*streamed, "encrypted_content").is_string(), is_done);
  }
}

}  // namespace
}  // namespace baton::router
