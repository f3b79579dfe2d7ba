#include "router/text/chat_encoder.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/hash.h"
#include "common/ids.h"
#include "router/text/chat_literals.h"
#include "router/text/render_vectors.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

using ::testing::HasSubstr;

const ChatEncoder& Encoder() {
  static const ChatEncoder encoder = *ChatEncoder::Create(RealTokenizer());
  return encoder;
}

// Its messages went through a writer that turned 1e16, 1.0, -0.0 and a 20-digit integer into other
// numbers than the ones in its prompt.
constexpr const char* kRespelledCase = "tools-json-number-forms";

TEST(ChatEncoder, RendersTheVectors) {
  const JsonValue file = LoadVectors("chat/render_encoder.json");
  size_t num_covered = 0, num_injections = 0, num_respelled = 0;
  for (const JsonValue& item : file.Find("cases")->items()) {
    const std::string& id = item.Find("id")->text();
    if (id == kRespelledCase) {
      ++num_respelled;
      continue;
    }
    std::vector<ChatMessage> messages;
    ChatOptions options = VectorOptions(item);
    if (const JsonValue* context = item.Find("context")) {
      for (const JsonValue& message : context->items()) messages.push_back(VectorMessage(message));
    }
    options.num_context = messages.size();
    for (const JsonValue& message : item.Find("messages")->items())
      messages.push_back(VectorMessage(message));
    const auto segments = Encoder().Encode(messages, options);
    ASSERT_TRUE(segments.ok()) << id << ": " << segments.status();
    const std::string text = RealTokenizer().ToText(*segments);
    EXPECT_EQ(text, item.Find("prompt")->text()) << id;
    EXPECT_EQ(RealTokenizer().Encode(text, SpecialTokens::kRecognise), IdsOf(*item.Find("ids")))
        << id;
    const JsonValue* plain = item.Find("ids_content_plain");
    EXPECT_EQ(RealTokenizer().EncodeSegments(*segments), IdsOf(plain ? *plain : *item.Find("ids")))
        << id;
    ++num_covered;
    if (plain != nullptr) ++num_injections;
  }
  std::printf(
      "render_encoder.json: %zu cases covered, %zu skipped (input numbers respelled in the file)\n",
      num_covered, num_respelled);
  EXPECT_EQ(num_covered, 58u);
  EXPECT_EQ(num_respelled, 1u);
  EXPECT_EQ(num_injections, 3u);
}

// The case above with its numbers as the prompt needs them.
TEST(ChatEncoder, SpellsTheNumbersOfAToolLikePython) {
  const JsonValue file = LoadVectors("chat/render_encoder.json");
  const JsonValue function = *JsonValue::Parse(
      R"({"parameters":{"type":"object","properties":{"n":{"type":"number","minimum":1e-7,)"
      R"("maximum":1E16,"default":0.1,"multipleOf":1.0,"examples":[1,-0.0,12345678901234567890,)"
      R"(1e22,1.5e300,true,null,"<\/script>",)"
      R"("\u2028","\u007f","\u0001","\u00e9","\ud83d\ude00"]}}},)"
      R"("name":"odd","description":""})");
  for (const JsonValue& item : file.Find("cases")->items()) {
    if (item.Find("id")->text() != kRespelledCase) continue;
    ChatMessage system = {.role = ChatRole::kSystem, .content = "n", .tools = {function.Dump()}};
    const auto segments =
        Encoder().Encode({system, {.role = ChatRole::kUser, .content = "go"}}, VectorOptions(item));
    ASSERT_TRUE(segments.ok()) << segments.status();
    EXPECT_EQ(RealTokenizer().ToText(*segments), item.Find("prompt")->text());
    EXPECT_EQ(RealTokenizer().EncodeSegments(*segments), IdsOf(*item.Find("ids")));
    return;
  }
  FAIL() << kRespelledCase << " is not in the file";
}

TEST(ChatEncoder, HoldsTheLiteralsOfTheFormat) {
  const JsonValue wire = LoadVectors("chat/wire_strings.json");
  const std::string tools =
      std::string(kToolsBlockBefore) + "{tool_schemas}" + std::string(kToolsBlockAfter);
  EXPECT_EQ(tools, wire.Find("tools_block")->text());
  EXPECT_EQ(std::string(kResponseFormatBefore) + "{schema}",
            wire.Find("response_format_block")->text());
  const Sha256Bytes a = Sha256Of(kEffortTextA), b = Sha256Of(kEffortTextB);
  EXPECT_EQ(ToHex(a.data(), a.size()), wire.Find("sha256")->Find("effort_text_A")->text());
  EXPECT_EQ(ToHex(b.data(), b.size()), wire.Find("sha256")->Find("effort_text_B")->text());
}

std::string Render(const std::vector<ChatMessage>& messages, const ChatOptions& options) {
  const auto segments = Encoder().Encode(messages, options);
  return segments.ok() ? RealTokenizer().ToText(*segments)
                       : std::string(segments.status().message());
}

ChatMessage Message(ChatRole role, std::string content) {
  ChatMessage message;
  message.role = role;
  message.content = std::move(content);
  return message;
}

ChatMessage Result(std::string call_id, std::string content) {
  ChatMessage message = Message(ChatRole::kTool, std::move(content));
  message.tool_call_id = std::move(call_id);
  return message;
}

TEST(ChatEncoder, SortsResultsOfDoubledAndEmptyIdsAsTheCheckpoint) {
  const auto order = [](const std::vector<std::string>& ids,
                        const std::vector<ChatMessage>& results) {
    std::vector<ChatMessage> messages = {Message(ChatRole::kUser, "q"),
                                         Message(ChatRole::kAssistant, "")};
    for (const std::string& id : ids)
      messages[1].tool_calls.push_back({.id = id, .name = "f", .arguments = "{}"});
    messages.insert(messages.end(), results.begin(), results.end());
    const std::string text = Render(messages, {});
    return text.find("ONE") < text.find("TWO") ? "12" : "21";
  };
  EXPECT_EQ(order({"a", "b"}, {Result("b", "TWO"), Result("a", "ONE")}), "12");
  EXPECT_EQ(order({"a", "b", "a"}, {Result("a", "ONE"), Result("b", "TWO")}), "21");
  EXPECT_EQ(order({"a", ""}, {Result("", "ONE"), Result("a", "TWO")}), "12");
  EXPECT_EQ(order({"a", "b"}, {Result("x", "ONE"), Result("b", "TWO")}), "12");
}

TEST(ChatEncoder, AnEmptySchemaIsNone) {
  std::vector<ChatMessage> messages = {Message(ChatRole::kSystem, "s"),
                                       Message(ChatRole::kUser, "q")};
  const std::string plain = Render(messages, {});
  for (const char* empty : {"{}", "false"}) {
    messages[0].response_format = empty;
    EXPECT_EQ(Render(messages, {}), plain);
  }
  messages[0].response_format = "{\"type\": \"object\"}";
  EXPECT_NE(Render(messages, {}), plain);
}

TEST(ChatEncoder, LeavesTheFinalAssistantMessageOpen) {
  ChatOptions options = {.is_thinking = true, .continue_final = true};
  std::vector<ChatMessage> messages = {Message(ChatRole::kUser, "q"),
                                       Message(ChatRole::kAssistant, "a")};
  const std::string head = "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>";
  EXPECT_EQ(Render(messages, options), head + "<think></think>a");
  messages[1].content.clear();
  EXPECT_EQ(Render(messages, options), head + "<think></think>");
  messages[1].reasoning = "r";
  EXPECT_EQ(Render(messages, options), head + "<think>r");
  options.is_thinking = false;
  EXPECT_EQ(Render(messages, options), head + "</think>");
}

TEST(ChatEncoder, LeavesTheGenerationPromptOutWhenAsked) {
  EXPECT_EQ(Render({Message(ChatRole::kUser, "q")}, {.add_generation_prompt = false}),
            "<｜begin▁of▁sentence｜><｜User｜>q");
}

TEST(ChatEncoder, KeepsATaskThatIsMergedIntoATurn) {
  std::vector<ChatMessage> messages = {Message(ChatRole::kUser, "a"),
                                       Message(ChatRole::kUser, "b")};
  messages[1].task = "title";
  EXPECT_EQ(Render(messages, {.is_thinking = false}),
            "<｜begin▁of▁sentence｜><｜User｜>a\n\nb<｜title｜>");
}

TEST(ChatEncoder, PutsArgumentsThatAreNoJsonIntoOneParameter) {
  std::vector<ChatMessage> messages = {Message(ChatRole::kUser, "q"),
                                       Message(ChatRole::kAssistant, "")};
  messages[1].tool_calls = {{.id = "k", .name = "f", .arguments = "{oops"}};
  EXPECT_THAT(Render(messages, {}),
              HasSubstr("<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"arguments\" "
                        "string=\"true\">{oops</｜DSML｜parameter>\n</｜DSML｜invoke>"));
}

TEST(ChatEncoder, NamesWhatItCannotRender) {
  EXPECT_THAT(Render({}, {}), HasSubstr("messages: 0 given"));
  EXPECT_THAT(Render({Message(ChatRole::kUser, "x"), Message(ChatRole::kDeveloper, "")}, {}),
              HasSubstr("messages[1].content"));
  std::vector<ChatMessage> messages = {Message(ChatRole::kUser, "q"),
                                       Message(ChatRole::kAssistant, "")};
  messages[1].tool_calls = {{.id = "k", .name = "f", .arguments = "[1]"}};
  EXPECT_EQ(Render(messages, {}),
            "messages[1].tool_calls[0].function.arguments must be a JSON object");
  messages = {Message(ChatRole::kUser, "q")};
  messages[0].task = "dance";
  EXPECT_THAT(Render(messages, {}), HasSubstr("unknown task \"dance\""));
  EXPECT_THAT(Render({Message(ChatRole::kUser, "q")},
                     {.effort = Effort::kLow, .profile = EffortProfile::kPreview}),
              HasSubstr("effort low"));
}

// The checkpoint that ships with the project has the same names at other ids.
TEST(ChatEncoder, LooksTokensUpByName) {
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Load("models/demo/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const absl::StatusOr<ChatEncoder> encoder = ChatEncoder::Create(*tokenizer);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const auto segments = encoder->Encode({Message(ChatRole::kUser, "<think> 12")}, {});
  ASSERT_TRUE(segments.ok());
  const std::vector<TokenId> ids = tokenizer->EncodeSegments(*segments);
  EXPECT_EQ(ids.front(), 0);
  EXPECT_EQ(ids[1], 4052);
  EXPECT_EQ(ids.back(), 4070);
  EXPECT_EQ(tokenizer->Decode(ids, false),
            "<｜begin▁of▁sentence｜><｜User｜><think> 12<｜Assistant｜><think>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 4070), 1);
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
}

}  // namespace
}  // namespace baton::router
