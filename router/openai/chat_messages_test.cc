#include "router/openai/chat_messages.h"

#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "router/text/test_data.h"

namespace baton::router {
namespace {

using ::testing::HasSubstr;

ChatDefaults DefaultsOf(const JsonValue& server) {
  ChatDefaults defaults;
  defaults.profile =
      server.Find("profile")->text() == "preview" ? EffortProfile::kPreview : EffortProfile::k0731;
  defaults.is_thinking = server.Find("default_thinking")->boolean();
  defaults.inject_response_format = server.Find("inject_response_format")->boolean();
  return defaults;
}

TEST(ChatMessages, RendersTheOpenAiRequestsOfTheVectors) {
  const ChatEncoder encoder = *ChatEncoder::Create(RealTokenizer());
  const JsonValue file = LoadVectors("chat/render_request.json");
  size_t num_covered = 0;
  std::map<std::string, size_t> skipped;
  for (const JsonValue& item : file.Find("cases")->items()) {
    const std::string& id = item.Find("id")->text();
    if (item.Find("api")->text() != "openai-chat") {
      ++skipped[item.Find("api")->text()];
      continue;
    }
    const auto input = ParseChatInput(*item.Find("body"), DefaultsOf(*item.Find("server")));
    ASSERT_TRUE(input.ok()) << id << ": " << input.error().message;
    EXPECT_EQ(input->options.is_thinking, item.Find("thinking_mode")->text() == "thinking") << id;
    const auto segments = encoder.Encode(input->messages, input->options);
    ASSERT_TRUE(segments.ok()) << id << ": " << segments.status();
    EXPECT_EQ(RealTokenizer().ToText(*segments), item.Find("prompt")->text()) << id;
    EXPECT_EQ(RealTokenizer().EncodeSegments(*segments), IdsOf(*item.Find("ids"))) << id;
    ++num_covered;
  }
  std::printf("render_request.json: %zu cases covered", num_covered);
  for (const auto& [reason, count] : skipped)
    std::printf(", %zu skipped (api %s)", count, reason.c_str());
  std::printf("\n");
  EXPECT_EQ(num_covered, 28u);
  EXPECT_EQ(skipped["anthropic"], 4u);
}

ApiResult<ChatInput> Parse(const std::string& body, const ChatDefaults& defaults = {}) {
  return ParseChatInput(*JsonValue::Parse(body), defaults);
}

TEST(ChatMessages, RefusesWhatTheValidationVectorsRefuse) {
  const JsonValue file = LoadVectors("api/validation.json");
  size_t num_covered = 0;
  for (const std::string id : {"empty-messages", "image-part", "trailing-assistant",
                               "effort-unknown", "args-not-object", "json-schema-missing"}) {
    for (const JsonValue& item : file.Find("cases")->items()) {
      if (item.Find("id")->text() != id) continue;
      ++num_covered;
      const auto input = ParseChatInput(*item.Find("body"), {});
      ASSERT_FALSE(input.ok()) << id;
      EXPECT_EQ(input.error().http_status, item.Find("status")->AsInt64()) << id;
      EXPECT_EQ(input.error().param, item.Find("param")->text()) << id;
      const JsonValue* part = item.Find("message_contains");
      if (part != nullptr) {
        EXPECT_THAT(input.error().message, HasSubstr(part->text())) << id;
      }
    }
  }
  EXPECT_EQ(num_covered, 6u);
}

struct Refusal {
  const char* body;
  const char* param;
  const char* message;
};

TEST(ChatMessages, NamesThePathOfEveryMistake) {
  const Refusal cases[] = {
      {R"({})", "messages", "expected array, got nothing"},
      {R"({"messages": 1})", "messages", "expected array, got integer"},
      {R"({"messages": [1]})", "messages[0]", "expected object, got integer"},
      {R"({"messages": [{"content": "x"}]})", "messages[0].role", "expected string"},
      {R"({"messages": [{"role": "king", "content": "x"}]})", "messages[0].role",
       "unknown role \"king\""},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content", "must not be null"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content",
       "string or array"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
       "messages[0].content[0].text", "expected string, got nothing"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": []})", "tools", "empty array"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": [1]})", "tools[0].function",
       "object"},
      {R"({"messages": [{"role": "user", "content": "x"}], "thinking": {"type": "maybe"}})",
       "thinking.type", "maybe"},
      {R"({"messages": [{"role": "user", "content": "x"}],)"
       R"("chat_template_kwargs": {"thinking": 1}})",
       "chat_template_kwargs.thinking", "expected boolean, got integer"},
      {R"({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": 0.5})",
       "reasoning_effort", "expected string, got number"},
      {R"({"messages": [{"role": "user", "content": "x"}], "chat_template": "x"})", "chat_template",
       "fixed encoder"},
      {R"({"messages": [{"role": "user", "content": "x"}], "task": "dance"})", "task",
       "unknown task"},
      {R"({"messages": [{"role": "user", "content": "x"}], "continue_final_message": true})",
       "messages", "assistant message"},
      {R"({"messages": [{"role": "user", "content": "x"}], "continue_final_message": true,)"
       R"("add_generation_prompt": true})",
       "continue_final_message", "Cannot set both"},
      {R"({"messages": [{"role": "assistant",)"
       R"("tool_calls": [{"id": 1, "function": {"name": "f"}}]}]})",
       "messages[0].tool_calls[0].id", "expected string"},
  };
  for (const Refusal& refusal : cases) {
    const auto input = Parse(refusal.body);
    ASSERT_FALSE(input.ok()) << refusal.body;
    EXPECT_EQ(input.error().http_status, 400);
    EXPECT_EQ(input.error().param, refusal.param) << refusal.body;
    EXPECT_THAT(input.error().message, HasSubstr(refusal.message)) << refusal.body;
  }
}

TEST(ChatMessages, TakesTheFirstReasoningThatIsNotNull) {
  const auto input = Parse(
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a",)"
      R"("reasoning_content": null, "reasoning": "r"}, {"role": "user", "content": "q"}]})");
  ASSERT_TRUE(input.ok());
  EXPECT_EQ(input->messages[1].reasoning, "r");
}

TEST(ChatMessages, KeepsTheDeveloperRoleWhenItIsNative) {
  const std::string body = R"({"messages": [{"role": "developer", "content": "d"}]})";
  EXPECT_EQ(Parse(body)->messages[0].role, ChatRole::kSystem);
  EXPECT_EQ(Parse(body, {.is_developer_native = true})->messages[0].role, ChatRole::kDeveloper);
}

TEST(ChatMessages, GivesTheTaskToTheLastUserMessage) {
  const auto input = Parse(R"({"messages": [{"role": "user", "content": "a"},)"
                           R"({"role": "user", "content": "b"}], "task": "query"})");
  ASSERT_TRUE(input.ok());
  EXPECT_EQ(input->messages[0].task, "");
  EXPECT_EQ(input->messages[1].task, "query");
}

TEST(ResolveThinking, FollowsTheTableOfEfforts) {
  const std::map<std::string, std::pair<Effort, Effort>> table = {
      {"minimal", {Effort::kLow, Effort::kHigh}}, {"low", {Effort::kLow, Effort::kHigh}},
      {"medium", {Effort::kHigh, Effort::kHigh}}, {"high", {Effort::kHigh, Effort::kHigh}},
      {"xhigh", {Effort::kHigh, Effort::kMax}},   {"max", {Effort::kMax, Effort::kMax}},
      {"ultra", {Effort::kMax, Effort::kMax}}};
  for (const auto& [level, efforts] : table) {
    const ThinkingRequest request = {.level = level};
    EXPECT_EQ(ResolveThinking(request, {})->effort, efforts.first) << level;
    EXPECT_EQ(ResolveThinking(request, {.profile = EffortProfile::kPreview})->effort,
              efforts.second)
        << level;
  }
  EXPECT_EQ(ResolveThinking({}, {})->effort, Effort::kHigh);
  EXPECT_EQ(ResolveThinking({}, {.profile = EffortProfile::kPreview})->effort, Effort::kUnset);
}

TEST(ResolveThinking, LetsNoneWinThenTheTemplateThenTheTopLevel) {
  EXPECT_FALSE(ResolveThinking({.template_thinking = true, .thinking = true, .level = "none"}, {})
                   ->is_thinking);
  EXPECT_FALSE(ResolveThinking({.template_thinking = false, .thinking = true, .level = "max"}, {})
                   ->is_thinking);
  EXPECT_FALSE(ResolveThinking({.thinking = false}, {})->is_thinking);
  EXPECT_TRUE(ResolveThinking({.thinking = true}, {.is_thinking = false})->is_thinking);
  EXPECT_TRUE(ResolveThinking({}, {})->is_thinking);
  EXPECT_FALSE(ResolveThinking({}, {.is_thinking = false})->is_thinking);
}

}  // namespace
}  // namespace baton::router
