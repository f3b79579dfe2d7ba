#include "router/anthropic/messages_writer.h"

#include <gtest/gtest.h>

#include "router/anthropic/messages_error.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

std::string Block(int index, const std::string& block) {
  return "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":" +
         std::to_string(index) + ",\"content_block\":" + block + "}\n\n";
}
std::string Delta(int index, const std::string& delta) {
  return "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":" +
         std::to_string(index) + ",\"delta\":" + delta + "}\n\n";
}
std::string Stop(int index) {
  return "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":" +
         std::to_string(index) + "}\n\n";
}
constexpr char kThinking[] = R"({"type":"thinking","thinking":"","signature":""})";
constexpr char kText[] = R"({"type":"text","text":""})";
constexpr char kSigned[] = R"({"type":"signature_delta","signature":"unsigned"})";

TEST(MessagesWriter, BeginsAndEndsAStream) {
  MessagesWriter writer("7", "m");
  EXPECT_EQ(writer.Accepted(12),
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":"
            R"({"id":"msg_7","type":"message","role":"assistant","model":"m","content":[],)"
            R"("stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,)"
            R"("cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}})"
            "}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n");
  const ChoiceEnd end = {.finish_reason = "stop"};
  EXPECT_EQ(writer.Chunk({.end = &end}), "");
  EXPECT_EQ(writer.End({.prompt_tokens = 12, .completion_tokens = 3, .cached_tokens = 8}),
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":"
            R"({"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":4,)"
            R"("cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":3}})"
            "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

TEST(MessagesWriter, BlocksFollowEachOtherAndThinkingIsSigned) {
  MessagesWriter writer("7", "m");
  // OpenAI's first chunk has a role and no text: nothing here.
  EXPECT_EQ(writer.Chunk({.delta_field = "content", .text = "", .starts_choice = true}), "");
  EXPECT_EQ(writer.Chunk({.delta_field = "reasoning_content", .text = "h\n"}),
            Block(0, kThinking) + Delta(0, R"({"type":"thinking_delta","thinking":"h\n"})"));
  EXPECT_EQ(writer.Chunk({.delta_field = "reasoning_content", .text = "m"}),
            Delta(0, R"({"type":"thinking_delta","thinking":"m"})"));
  EXPECT_EQ(writer.Chunk({.delta_field = "content", .text = "yes"}),
            Delta(0, kSigned) + Stop(0) + Block(1, kText) +
                Delta(1, R"({"type":"text_delta","text":"yes"})"));
  const std::vector<CallText> calls = {
      {.index = 0, .id = "toolu_1", .name = "f", .arguments = "{\"a"},
      {.index = 0, .arguments = "\": 1}", .is_start = false},
      {.index = 1, .id = "toolu_2", .name = "g"}};
  EXPECT_EQ(writer.Chunk({.calls = &calls}),
            Stop(1) + Block(2, R"({"type":"tool_use","id":"toolu_1","name":"f","input":{}})") +
                Delta(2, R"({"type":"input_json_delta","partial_json":"{\"a"})") +
                Delta(2, R"({"type":"input_json_delta","partial_json":"\": 1}"})") + Stop(2) +
                Block(3, R"({"type":"tool_use","id":"toolu_2","name":"g","input":{}})"));
  const ChoiceEnd end = {.finish_reason = "tool_calls"};
  EXPECT_EQ(writer.Chunk({.end = &end}), Stop(3));
  EXPECT_NE(writer.End({}).find(R"("stop_reason":"tool_use")"), std::string::npos);
}

TEST(MessagesWriter, AnAnswerThatOnlyThoughtIsClosedToo) {
  MessagesWriter writer("7", "m");
  writer.Chunk({.delta_field = "reasoning_content", .text = "hm"});
  const ChoiceEnd end = {.finish_reason = "length"};
  EXPECT_EQ(writer.Chunk({.end = &end}), Delta(0, kSigned) + Stop(0));
  EXPECT_NE(writer.End({}).find(R"("stop_reason":"max_tokens")"), std::string::npos);
}

TEST(MessagesWriter, WritesAWholeAnswer) {
  MessagesWriter writer("7", "m");
  ChoiceText choice;
  choice.reasoning = "hm";
  choice.content = "yes";
  choice.calls = {{.id = "toolu_1", .name = "f", .arguments = "{\"a\": 1.50}"},
                  {.id = "toolu_2", .name = "g", .arguments = "{\"a"},
                  {.id = "toolu_3", .name = "h", .arguments = "[1]"}};
  choice.end = {.finish_reason = "stop", .stop_string = "\"x", .has_stop_string = true};
  const std::string whole = writer.Whole({choice}, {.prompt_tokens = 5, .completion_tokens = 2});
  EXPECT_EQ(whole,
            R"({"id":"msg_7","type":"message","role":"assistant","model":"m","content":[)"
            R"({"type":"thinking","thinking":"hm","signature":"unsigned"},)"
            R"({"type":"text","text":"yes"},)"
            R"({"type":"tool_use","id":"toolu_1","name":"f","input":{"a": 1.50}},)"
            R"({"type":"tool_use","id":"toolu_2","name":"g","input":{"_raw":"{\"a"}},)"
            R"({"type":"tool_use","id":"toolu_3","name":"h","input":{"_raw":"[1]"}}],)"
            R"("stop_reason":"stop_sequence","stop_sequence":"\"x","usage":{"input_tokens":5,)"
            R"("cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":2}})");
  EXPECT_TRUE(JsonValue::Parse(whole).ok());
  ChoiceText empty;
  empty.end = {.finish_reason = "stop"};
  EXPECT_NE(writer.Whole({empty}, {}).find(R"("content":[],"stop_reason":"end_turn")"),
            std::string::npos);
}

TEST(MessagesWriter, ErrorsSayTheirKind) {
  MessagesWriter writer("7", "m");
  EXPECT_EQ(writer.StreamError({504, "GatewayTimeoutError", "late", ""}),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"timeout_error\","
            "\"message\":\"late\"},\"request_id\":\"7\"}\n\n");
  const auto type = [](int status, const std::string& name = "") {
    const auto json = JsonValue::Parse(MessagesErrorJson({status, name, "m", ""}, "7"));
    return json->Find("error")->Find("type")->text();
  };
  EXPECT_EQ(type(400), "invalid_request_error");
  EXPECT_EQ(type(415), "invalid_request_error");
  EXPECT_EQ(type(401), "authentication_error");
  EXPECT_EQ(type(404), "not_found_error");
  EXPECT_EQ(type(413), "request_too_large");
  EXPECT_EQ(type(429, kRateLimitType), "rate_limit_error");
  EXPECT_EQ(type(429), "overloaded_error");
  EXPECT_EQ(type(503), "overloaded_error");
  EXPECT_EQ(type(500), "api_error");
  EXPECT_EQ(MessagesStatus({503, "", "", ""}), 529);
  EXPECT_EQ(MessagesStatus({429, kRateLimitType, "", ""}), 429);
}

}  // namespace
}  // namespace baton::router
