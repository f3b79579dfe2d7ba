#include "router/anthropic/messages_writer.h"

#include "absl/strings/str_format.h"

#include "router/anthropic/messages_error.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

// Clients hand it back and refuse an empty one; nothing here is signed.
constexpr std::string_view kSignature = "unsigned";

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

// `members`: what follows the type, each with a comma in front.
std::string Event(std::string_view name, std::string_view members) {
  return absl::StrFormat("event: %s\ndata: {\"type\":\"%s\"%s}\n\n", name, name, members);
}

// Theirs excludes what was read from the cache; clients add the three up (6.3).
std::string MessagesUsage(const UsageCounts& usage) {
  return absl::StrFormat(
      "{\"input_tokens\":%d,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":%d,"
      "\"output_tokens\":%d}",
      usage.prompt_tokens - usage.cached_tokens, usage.cached_tokens, usage.completion_tokens);
}

std::string_view StopReason(const ChoiceEnd& end) {
  if (end.finish_reason == "tool_calls") return "tool_use";
  if (end.finish_reason == "length") return "max_tokens";
  return end.has_stop_string ? "stop_sequence" : "end_turn";
}

std::string StopJson(const ChoiceEnd& end) {
  const bool is_sequence = StopReason(end) == "stop_sequence";
  return absl::StrFormat("\"stop_reason\":\"%s\",\"stop_sequence\":%s", StopReason(end),
                         is_sequence ? Quoted(end.stop_string) : "null");
}

// `input` must be an object; what is none is still shown (6.3).
std::string InputJson(const std::string& arguments) {
  const absl::StatusOr<JsonValue> parsed = JsonValue::Parse(arguments);
  if (parsed.ok() && parsed->is_object()) return arguments;
  return "{\"_raw\":" + Quoted(arguments) + "}";
}

std::string CallBlock(const CallText& call, std::string_view input) {
  return absl::StrFormat("{\"type\":\"tool_use\",\"id\":%s,\"name\":%s,\"input\":%s}",
                         Quoted(call.id), Quoted(call.name), input);
}

}  // namespace

std::string MessagesWriter::MessageJson(std::string_view blocks, const ChoiceEnd* end,
                                        std::string_view usage) const {
  return absl::StrFormat(
      "{\"id\":%s,\"type\":\"message\",\"role\":\"assistant\",\"model\":%s,\"content\":[%s],%s,"
      "\"usage\":%s}",
      Quoted("msg_" + id_), Quoted(model_), blocks,
      end == nullptr ? "\"stop_reason\":null,\"stop_sequence\":null" : StopJson(*end), usage);
}

std::string MessagesWriter::Accepted(int64_t prompt_tokens) {
  const std::string usage = MessagesUsage({.prompt_tokens = prompt_tokens, .completion_tokens = 1});
  return Event("message_start", ",\"message\":" + MessageJson("", nullptr, usage)) + Ping();
}

std::string MessagesWriter::Ping() { return Event("ping", ""); }

std::string MessagesWriter::Open(Block block, std::string_view content_block) {
  const std::string closed = Close();
  block_ = block;
  return closed + Event("content_block_start", absl::StrFormat(",\"index\":%d,\"content_block\":%s",
                                                               ++index_, content_block));
}

std::string MessagesWriter::Close() {
  if (block_ == Block::kNone) return "";
  std::string out;
  if (block_ == Block::kThinking)
    out = Event(
        "content_block_delta",
        absl::StrFormat(",\"index\":%d,\"delta\":{\"type\":\"signature_delta\",\"signature\":%s}",
                        index_, Quoted(kSignature)));
  block_ = Block::kNone;
  return out + Event("content_block_stop", absl::StrFormat(",\"index\":%d", index_));
}

std::string MessagesWriter::TextDelta(Block block, std::string_view text) {
  if (text.empty()) return "";
  const bool is_thinking = block == Block::kThinking;
  std::string out;
  if (block_ != block)
    out = Open(block, is_thinking ? "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}"
                                  : "{\"type\":\"text\",\"text\":\"\"}");
  return out + Event("content_block_delta",
                     absl::StrFormat(",\"index\":%d,\"delta\":{\"type\":\"%s_delta\",\"%s\":%s}",
                                     index_, is_thinking ? "thinking" : "text",
                                     is_thinking ? "thinking" : "text", Quoted(text)));
}

std::string MessagesWriter::CallDelta(const CallText& call) {
  std::string out;
  if (call.is_start) out = Open(Block::kCall, CallBlock(call, "{}"));
  if (call.arguments.empty()) return out;
  return out +
         Event("content_block_delta",
               absl::StrFormat(
                   ",\"index\":%d,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":%s}",
                   index_, Quoted(call.arguments)));
}

std::string MessagesWriter::Chunk(const ChunkText& chunk) {
  std::string out;
  if (chunk.delta_field == "reasoning_content") out = TextDelta(Block::kThinking, chunk.text);
  if (chunk.delta_field == "content") out = TextDelta(Block::kText, chunk.text);
  if (chunk.calls != nullptr)
    for (const CallText& call : *chunk.calls) out += CallDelta(call);
  if (chunk.end == nullptr) return out;
  end_ = *chunk.end;
  return out + Close();
}

std::string MessagesWriter::End(const UsageCounts& usage) {
  return Close() +
         Event("message_delta", absl::StrFormat(",\"delta\":{%s},\"usage\":%s", StopJson(end_),
                                                MessagesUsage(usage))) +
         Event("message_stop", "");
}

std::string MessagesWriter::StreamError(const ApiError& error) {
  return absl::StrFormat("event: error\ndata: %s\n\n", Error(error));
}

int MessagesWriter::Status(const ApiError& error) { return MessagesStatus(error); }

std::string MessagesWriter::Error(const ApiError& error) { return MessagesErrorJson(error, id_); }

std::string MessagesWriter::Whole(const std::vector<ChoiceText>& choices,
                                  const UsageCounts& usage) {
  const ChoiceText& choice = choices.front();
  std::string blocks;
  const auto add = [&](const std::string& block) { blocks += (blocks.empty() ? "" : ",") + block; };
  if (!choice.reasoning.empty())
    add(absl::StrFormat("{\"type\":\"thinking\",\"thinking\":%s,\"signature\":%s}",
                        Quoted(choice.reasoning), Quoted(kSignature)));
  if (!choice.content.empty())
    add(absl::StrFormat("{\"type\":\"text\",\"text\":%s}", Quoted(choice.content)));
  for (const CallText& call : choice.calls) add(CallBlock(call, InputJson(call.arguments)));
  return MessageJson(blocks, &choice.end, MessagesUsage(usage));
}

}  // namespace baton::router
