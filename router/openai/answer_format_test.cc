#include "router/openai/answer_format.h"

#include <gtest/gtest.h>
#include <limits>

#include "router/text/json_value.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

const AnswerHead kChatHead = {
    .kind = CompletionKind::kChat, .id = "chatcmpl-1", .model = "m", .created = 7};
const AnswerHead kTextHead = {
    .kind = CompletionKind::kText, .id = "cmpl-1", .model = "m", .created = 7};

// As Python would print it, which also proves that it is JSON.
std::string Normal(std::string_view json) {
  const auto value = JsonValue::Parse(json);
  return value.ok() ? value->Dump() : "not JSON: " + std::string(json);
}
std::string Data(const std::string& event) {
  EXPECT_EQ(event.substr(0, 6), "data: ");
  EXPECT_EQ(event.substr(event.size() - 2), "\n\n");
  return Normal(event.substr(6, event.size() - 8));
}

TEST(AnswerFormat, ErrorsHaveVllmsShape) {
  EXPECT_EQ(Normal(ErrorJson(BadRequest("no \"good\"", "top_p"))),
            R"({"error": {"message": "no \"good\"", "type": "BadRequestError", )"
            R"("param": "top_p", "code": 400}})");
  EXPECT_EQ(Normal(ErrorJson({503, "ServiceUnavailableError", "none", ""})),
            R"({"error": {"message": "none", "type": "ServiceUnavailableError", )"
            R"("param": null, "code": 503}})");
}

TEST(AnswerFormat, ReasoningAloneLeavesContentNull) {
  ChoiceText choice;
  choice.reasoning = "hm";
  choice.end.finish_reason = "length";
  const std::string json = Normal(AnswerJson(kChatHead, {choice}, {}, {}));
  EXPECT_NE(json.find(R"("content": null, "reasoning_content": "hm")"), std::string::npos) << json;
}

TEST(AnswerFormat, StopReasonIsTheStringOrTheToken) {
  ChoiceEnd end = {.finish_reason = "stop", .stop_string = "X", .has_stop_string = true};
  std::string event = Data(ChunkEvent(kChatHead, {.end = &end}));
  EXPECT_NE(event.find(R"("finish_reason": "stop", "stop_reason": "X", "matched_stop": "X")"),
            std::string::npos)
      << event;
  end = {.finish_reason = "stop", .stop_token = 42};
  event = Data(ChunkEvent(kChatHead, {.end = &end}));
  EXPECT_NE(event.find(R"("stop_reason": 42)"), std::string::npos) << event;
}

TEST(AnswerFormat, ChunksNameTheirObject) {
  EXPECT_EQ(Data(ChunkEvent(kChatHead, {.index = 1, .delta_field = "content", .text = "a\nb"})),
            R"({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, )"
            R"("model": "m", "choices": [{"index": 1, )"
            R"("delta": {"content": "a\nb"}, "logprobs": null, "finish_reason": null, )"
            R"("stop_reason": null}]})");
  EXPECT_EQ(Data(ChunkEvent(kTextHead, {.text = "t"})),
            R"({"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", )"
            R"("choices": [{"index": 0, "text": "t", )"
            R"("logprobs": null, "finish_reason": null, "stop_reason": null}]})");
}

TEST(AnswerFormat, MinusInfinityIsSentAsMinus9999) {
  const int32_t a = RealTokenizer().Encode("a", SpecialTokens::kPlain).at(0);
  const TokenRecord record = {
      .token = a, .logprob = -std::numeric_limits<float>::infinity(), .top = {}};
  EXPECT_EQ(
      Normal(ChatLogprobsJson({record}, RealTokenizer(), false)),
      R"({"content": [{"token": "a", "logprob": -9999, "bytes": [97], "top_logprobs": []}]})");
}

TEST(AnswerFormat, TheChosenTokenIsAmongTheTopOnes) {
  const TokenRecord chosen_outside = {.token = 9, .logprob = -5, .top = {{7, -1}, {8, -2}}};
  const std::string json = ChatLogprobsJson({chosen_outside}, RealTokenizer(), true);
  EXPECT_NE(json.find("\"token_id:8\""), std::string::npos);
  EXPECT_NE(json.find("{\"token\":\"token_id:9\",\"logprob\":-5", json.find("token_id:8")),
            std::string::npos);
  const TokenRecord chosen_inside = {.token = 7, .logprob = -1, .top = {{7, -1}, {8, -2}}};
  const std::string inside = ChatLogprobsJson({chosen_inside}, RealTokenizer(), true);
  EXPECT_EQ(inside.find("token_id:7", inside.rfind("token_id:8")), std::string::npos);
}

TEST(AnswerFormat, TextOffsetsCountCharacters) {
  std::vector<TokenRecord> records;
  for (const int32_t id : RealTokenizer().Encode("é x", SpecialTokens::kPlain))
    records.push_back({.token = id, .logprob = 0, .top = {}});
  ASSERT_EQ(records.size(), 2u);
  int64_t offset = 3;
  const std::string json = Normal(TextLogprobsJson(records, RealTokenizer(), true, offset));
  EXPECT_NE(json.find(R"("text_offset": [3, 4])"), std::string::npos) << json;
  EXPECT_NE(json.find("token_id:"), std::string::npos);
  EXPECT_EQ(offset, 6);
}

TEST(AnswerFormat, UsageComesWithoutChoices) {
  const std::string event =
      Data(UsageEvent(kChatHead, {.prompt_tokens = 2, .completion_tokens = 3}));
  EXPECT_NE(event.find(R"("choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3, )"
                       R"("total_tokens": 5)"),
            std::string::npos)
      << event;
}

}  // namespace
}  // namespace baton::router
