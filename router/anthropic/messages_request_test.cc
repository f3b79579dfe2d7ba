#include "router/anthropic/messages_request.h"

#include <gtest/gtest.h>

#include "router/openai/chat_messages.h"
#include "router/text/chat_encoder.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

JsonValue Json(std::string_view text) {
  auto value = JsonValue::Parse(text);
  EXPECT_TRUE(value.ok()) << value.status() << text;
  return value.ok() ? *std::move(value) : JsonValue();
}

std::string ChatOf(const std::string& body) {
  const auto chat = TranslateMessages(Json(body), /*needs_max_tokens=*/false);
  EXPECT_TRUE(chat.ok()) << chat.error().message;
  return chat.ok() ? chat->body : "";
}

std::string ErrorOf(const std::string& body) {
  const auto chat = TranslateMessages(Json(body), /*needs_max_tokens=*/true);
  EXPECT_FALSE(chat.ok()) << chat->body;
  return chat.ok() ? "" : chat.error().message;
}

// `members` of a request with one user message.
std::string With(const std::string& members) {
  return R"({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], )" + members + "}";
}
std::string WithMessage(const std::string& message) {
  return R"({"max_tokens": 9, "messages": [)" + message + "]}";
}
constexpr char kHi[] = R"({"role": "user", "content": "hi"})";

TEST(MessagesRequest, RendersTheVectors) {
  const JsonValue file = LoadVectors("chat/render_request.json");
  const auto encoder = ChatEncoder::Create(RealTokenizer());
  ASSERT_TRUE(encoder.ok());
  int covered = 0;
  for (const JsonValue& item : file.Find("cases")->items()) {
    if (item.Find("api")->text() != "anthropic") continue;
    SCOPED_TRACE(item.Find("id")->text());
    const JsonValue& server = *item.Find("server");
    const ChatDefaults defaults = {
        .profile = server.Find("profile")->text() == "0731" ? EffortProfile::k0731
                                                            : EffortProfile::kPreview,
        .is_thinking = server.Find("default_thinking")->boolean(),
        .inject_response_format = server.Find("inject_response_format")->boolean()};
    const auto chat = TranslateMessages(*item.Find("body"), /*needs_max_tokens=*/true);
    ASSERT_TRUE(chat.ok()) << chat.error().message;
    const auto input = ParseChatInput(Json(chat->body), defaults);
    ASSERT_TRUE(input.ok()) << input.error().message;
    const auto segments = encoder->Encode(input->messages, input->options);
    ASSERT_TRUE(segments.ok()) << segments.status();
    EXPECT_EQ(RealTokenizer().ToText(*segments), item.Find("prompt")->text());
    EXPECT_EQ(RealTokenizer().EncodeSegments(*segments), IdsOf(*item.Find("ids")));
    ++covered;
  }
  EXPECT_EQ(covered, 4);
}

TEST(MessagesRequest, JoinsSystemBlocksAndDropsTheOneThatChangesEachTime) {
  EXPECT_EQ(ChatOf(With(R"("system": [{"type": "text", "text": "x-anthropic-billing-header: 1"},
                                {"type": "text", "text": "a", "cache_control": {}},
                                {"type": "text", "text": "b"}])")),
            R"({"messages": [{"role": "system", "content": "a\n\nb"}, {"role": "user", )"
            R"("content": "hi"}], "max_tokens": 9})");
}

TEST(MessagesRequest, KeepsTheOrderOfResultsAndTexts) {
  EXPECT_EQ(ChatOf(WithMessage(R"({"role": "user", "content": [
          {"type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": [
             {"type": "text", "text": "A"}, {"type": "image", "source": {}}]},
          {"type": "tool_result", "tool_use_id": "t2"},
          {"type": "text", "text": "go on"}]})")),
            R"({"messages": [{"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", )"
            R"("text": "A"}, {"type": "image", "source": {}}]}, )"
            R"({"role": "tool", "tool_call_id": "t2", "content": ""}, {"role": "user", )"
            R"("content": "go on"}], "max_tokens": 9})");
}

TEST(MessagesRequest, JoinsAnAssistantsBlocksAndKeepsItsCalls) {
  EXPECT_EQ(ChatOf(WithMessage(R"({"role": "assistant", "content": [
          {"type": "thinking", "thinking": "hm", "signature": "s"},
          {"type": "redacted_thinking", "data": "zz"},
          {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
          {"type": "tool_use", "id": "t1", "name": "f",
           "input": {"x": 12345678901234567890123, "y": "é"}},
          {"type": "tool_use", "id": "t2", "name": "g"}]}, )" +
                               std::string(kHi))),
            R"({"messages": [{"role": "assistant", "content": "ab", "reasoning_content": "hm", )"
            R"("tool_calls": [)"
            R"({"id": "t1", "type": "function", "function": {"name": "f", )"
            R"("arguments": {"x": 12345678901234567890123, "y": "é"}}}, )"
            R"({"id": "t2", "type": "function", "function": {"name": "g", "arguments": {}}}]}, )"
            R"({"role": "user", "content": "hi"}], "max_tokens": 9})");
}

TEST(MessagesRequest, OtherRolesOfClaudeCodeAreUsers) {
  EXPECT_EQ(ChatOf(WithMessage(R"({"role": "ctx", "content": "a"}, {"role": "msg", )"
                               R"("content": "b"})")),
            R"({"messages": [{"role": "user", "content": "a"}, {"role": "user", )"
            R"("content": "b"}], "max_tokens": 9})");
}

TEST(MessagesRequest, TranslatesToolsAndTheirChoice) {
  const auto chat = TranslateMessages(
      Json(With(R"("tools": [{"type": "web_search_20250305", "name": "web_search"},
                             {"input_schema": {"type": "object"}, "name": "f",
                              "description": "d", "strict": true},
                             {"type": "custom", "name": "g", "input_schema": {}}],
                   "tool_choice": {"type": "tool", "name": "f",
                                   "disable_parallel_tool_use": true})")),
      true);
  ASSERT_TRUE(chat.ok()) << chat.error().message;
  EXPECT_EQ(chat->dropped_tools, 1u);
  EXPECT_EQ(chat->body, R"({"messages": [{"role": "user", "content": "hi"}], "tools": [)"
                        R"({"type": "function", "function": {"name": "f", "description": "d", )"
                        R"("parameters": {"type": "object"}}}, )"
                        R"({"type": "function", "function": {"name": "g", "parameters": {}}}], )"
                        R"("tool_choice": {"type": "function", "function": {"name": "f"}}, )"
                        R"("parallel_tool_calls": false, "max_tokens": 9})");
  const auto choice = [](const std::string& json) {
    const JsonValue body = Json(
        ChatOf(With(R"("tools": [{"name": "f", "input_schema": {}}], "tool_choice": )" + json)));
    return body.Find("tool_choice")->text();
  };
  EXPECT_EQ(choice(R"({"type": "auto"})"), "auto");
  EXPECT_EQ(choice(R"({"type": "any"})"), "required");
  EXPECT_EQ(choice(R"({"type": "none"})"), "none");
  // Nothing is left to choose from: it is a chat without tools.
  const JsonValue bare = Json(ChatOf(With(
      R"("tools": [{"type": "bash_20250124", "name": "bash"}], "tool_choice": {"type": "auto"})")));
  EXPECT_EQ(bare.Find("tools"), nullptr);
  EXPECT_EQ(bare.Find("tool_choice"), nullptr);
}

TEST(MessagesRequest, TranslatesThinkingAndOutput) {
  const JsonValue body = Json(ChatOf(With(
      R"("thinking": {"type": "enabled", "budget_tokens": 2048},
         "output_config": {"effort": "max",
                           "format": {"type": "json_schema", "schema": {"type": "object"}}},
         "stop_sequences": ["x"], "temperature": 0.5, "top_k": 3, "stream": true)")));
  EXPECT_TRUE(body.Find("thinking")->boolean());
  EXPECT_EQ(body.Find("thinking_token_budget")->text(), "2048");
  EXPECT_EQ(body.Find("reasoning_effort")->text(), "max");
  EXPECT_EQ(body.Find("response_format")->Dump(),
            R"({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})");
  EXPECT_EQ(body.Find("stop")->Dump(), R"(["x"])");
  EXPECT_EQ(body.Find("temperature")->text(), "0.5");
  EXPECT_EQ(body.Find("top_k")->text(), "3");
  EXPECT_TRUE(body.Find("stream")->boolean());
  const JsonValue adaptive =
      Json(ChatOf(With(R"("thinking": {"type": "adaptive", "budget_tokens": 5})")));
  EXPECT_TRUE(adaptive.Find("thinking")->boolean());
  EXPECT_EQ(adaptive.Find("thinking_token_budget"), nullptr);
}

TEST(MessagesRequest, NamesWhatIsWrong) {
  EXPECT_EQ(ErrorOf(R"({"messages": []})"), "max_tokens: Field required");
  EXPECT_EQ(ErrorOf(R"({"max_tokens": 1})"), "messages: Field required");
  EXPECT_EQ(ErrorOf(R"({"max_tokens": 1, "messages": []})"),
            "messages: at least one message is required");
  EXPECT_EQ(ErrorOf(R"({"max_tokens": 1, "messages": "hi"})"),
            "messages: expected array, got string");
  EXPECT_EQ(ErrorOf(WithMessage(R"("hi")")), "messages.0: expected object, got string");
  EXPECT_EQ(ErrorOf(WithMessage(R"({"role": "tool", "content": ""})")),
            "messages.0.role: 'tool' is none of user, assistant, system");
  EXPECT_EQ(ErrorOf(WithMessage(R"({"role": "user"})")), "messages.0.content: Field required");
  EXPECT_EQ(ErrorOf(WithMessage(R"({"role": "user", "content": []})")),
            "messages.0.content: at least one block is required");
  EXPECT_EQ(ErrorOf(WithMessage(R"({"role": "user", "content": [{"type": "image", )"
                                R"("source": {}}]})")),
            "messages.0.content.0.type: 'image' is not supported: this model reads text only");
  EXPECT_EQ(ErrorOf(WithMessage(R"({"role": "user", "content": [{"type": "tool_result"}]})")),
            "messages.0.content.0.tool_use_id: Field required");
  EXPECT_EQ(ErrorOf(WithMessage(
                R"({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", )"
                R"("input": []}]})")),
            "messages.0.content.0.input: expected object, got array");
  EXPECT_EQ(ErrorOf(With(R"("system": [{"type": "text"}])")), "system.0.text: Field required");
  EXPECT_EQ(ErrorOf(With(R"("tools": [{"name": "f"}])")), "tools.0.input_schema: Field required");
  EXPECT_EQ(ErrorOf(With(R"("tool_choice": {"type": "any"})")),
            "tool_choice.type is 'any', and there is no tool");
  EXPECT_EQ(ErrorOf(With(R"("tool_choice": {"type": "some"})")),
            "tool_choice.type: 'some' is none of auto, any, tool, none");
  EXPECT_EQ(ErrorOf(With(R"("thinking": {"type": "on"})")),
            "thinking.type: 'on' is none of enabled, disabled, adaptive");
  EXPECT_EQ(ErrorOf(With(R"("output_config": {"format": {"type": "json"}})")),
            R"(output_config.format: want {"type": "json_schema", "schema": {...}})");
}

}  // namespace
}  // namespace baton::router
