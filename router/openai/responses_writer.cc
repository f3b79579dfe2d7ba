#include "router/openai/responses_writer.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "router/text/json_value.h"

namespace baton::router {
namespace {

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

std::string UsageOf(const UsageCounts& usage) {
  return absl::StrFormat(
      "{\"input_tokens\":%d,\"input_tokens_details\":{\"cached_tokens\":%d},\"output_tokens\":%d,"
      "\"output_tokens_details\":{\"reasoning_tokens\":%d},\"total_tokens\":%d}",
      usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens,
      usage.prompt_tokens + usage.completion_tokens);
}

std::string TextPart(std::string_view text) {
  return absl::StrFormat(
      "{\"type\":\"output_text\",\"text\":%s,\"annotations\":[],\"logprobs\":[]}", Quoted(text));
}

}  // namespace

ResponsesWriter::Item ResponsesWriter::NewItem(Kind kind, const CallText& call) const {
  Item item = {.kind = kind, .id = {}, .text = {}, .call_id = call.id, .name = call.name};
  if (kind == Kind::kReasoning) item.id = "rs_" + head_.id;
  if (kind == Kind::kMessage) item.id = "msg_" + head_.id;
  if (kind == Kind::kCall) item.id = "fc_" + call.id.substr(call_id_prefix().size());
  return item;
}

std::string ResponsesWriter::ItemJson(const Item& item, std::string_view status) const {
  switch (item.kind) {
    case Kind::kReasoning: {
      const std::string part =
          item.text.empty()
              ? ""
              : absl::StrFormat("{\"type\":\"reasoning_text\",\"text\":%s}", Quoted(item.text));
      const bool is_sealed = echo_.seals_reasoning && status != "in_progress";
      return absl::StrFormat(
          "{\"id\":%s,\"type\":\"reasoning\",\"summary\":[],\"content\":[%s],"
          "\"encrypted_content\":%s,\"status\":\"%s\"}",
          Quoted(item.id), part, is_sealed ? Quoted(sealer_.Seal(item.text)) : "null", status);
    }
    case Kind::kMessage: {
      const bool is_new = status == "in_progress";
      return absl::StrFormat(
          "{\"id\":%s,\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\","
          "\"content\":[%s]}",
          Quoted(item.id), status, is_new ? "" : TextPart(item.text));
    }
    case Kind::kCall:
      return absl::StrFormat(
          "{\"id\":%s,\"type\":\"function_call\",\"call_id\":%s,\"name\":%s,\"arguments\":%s,"
          "\"status\":\"%s\"}",
          Quoted(item.id), Quoted(item.call_id), Quoted(item.name), Quoted(item.text), status);
    case Kind::kNone:
      break;
  }
  return "";
}

std::string ResponsesWriter::ResponseJson(std::string_view status, const std::string& output,
                                          std::string_view usage, std::string_view error) const {
  const bool has_reason = status == "incomplete" && end_.finish_reason == "length";
  const std::string details = has_reason ? "{\"reason\":\"max_output_tokens\"}" : "null";
  const std::string first = absl::StrFormat(
      "{\"id\":%s,\"object\":\"response\",\"created_at\":%d,\"status\":\"%s\","
      "\"incomplete_details\":%s,\"error\":%s,\"model\":%s,\"output\":[%s],",
      Quoted("resp_" + head_.id), head_.created, status, details, error, Quoted(head_.model),
      output);
  const std::string second = absl::StrFormat(
      "\"instructions\":%s,\"parallel_tool_calls\":%s,\"tool_choice\":%s,\"tools\":%s,"
      "\"temperature\":%s,\"top_p\":%s,\"max_output_tokens\":%s,",
      echo_.instructions, echo_.parallel_tool_calls, echo_.tool_choice, echo_.tools,
      echo_.temperature, echo_.top_p, echo_.max_output_tokens);
  return first + second +
         absl::StrFormat(
             "\"previous_response_id\":null,\"reasoning\":{\"effort\":%s,\"summary\":null},"
             "\"text\":{\"format\":%s},\"truncation\":\"disabled\",\"store\":false,\"usage\":%s,"
             "\"metadata\":%s}",
             echo_.effort, echo_.format, usage, echo_.metadata);
}

// `members`: what follows the type, each with a comma in front.
void ResponsesWriter::Event(std::string_view type, std::string_view members, std::string& out) {
  absl::StrAppendFormat(&out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%d%s}\n\n",
                        type, type, sequence_number_++, members);
}

std::string ResponsesWriter::Accepted(int64_t) {
  const std::string response = ",\"response\":" + ResponseJson("in_progress", "", "null");
  std::string out;
  Event("response.created", response, out);
  Event("response.in_progress", response, out);
  return out;
}

void ResponsesWriter::Open(Item item, std::string& out) {
  Close(/*is_complete=*/true, out);
  open_ = std::move(item);
  const int index = num_items_++;
  Event("response.output_item.added",
        absl::StrFormat(",\"output_index\":%d,\"item\":%s", index, ItemJson(open_, "in_progress")),
        out);
  if (open_.kind != Kind::kMessage) return;
  Event("response.content_part.added",
        absl::StrFormat(",\"item_id\":%s,\"output_index\":%d,\"content_index\":0,\"part\":%s",
                        Quoted(open_.id), index, TextPart("")),
        out);
}

void ResponsesWriter::Close(bool is_complete, std::string& out) {
  if (open_.kind == Kind::kNone) return;
  const int index = num_items_ - 1;
  const std::string place =
      absl::StrFormat(",\"item_id\":%s,\"output_index\":%d", Quoted(open_.id), index);
  const std::string part = place + ",\"content_index\":0";
  const std::string text = Quoted(open_.text);
  if (open_.kind == Kind::kReasoning)
    Event("response.reasoning_text.done", part + ",\"text\":" + text, out);
  if (open_.kind == Kind::kMessage) {
    Event("response.output_text.done", part + ",\"logprobs\":[],\"text\":" + text, out);
    Event("response.content_part.done", part + ",\"part\":" + TextPart(open_.text), out);
  }
  if (open_.kind == Kind::kCall && is_complete)
    Event("response.function_call_arguments.done",
          place + ",\"name\":" + Quoted(open_.name) + ",\"arguments\":" + text, out);
  const std::string item = ItemJson(open_, is_complete ? "completed" : "incomplete");
  output_ += (output_.empty() ? "" : ",") + item;
  open_ = {};
  Event("response.output_item.done",
        absl::StrFormat(",\"output_index\":%d,\"item\":%s", index, item), out);
}

void ResponsesWriter::TextDelta(Kind kind, std::string_view text, std::string& out) {
  if (text.empty()) return;
  if (open_.kind != kind) Open(NewItem(kind, {}), out);
  open_.text += text;
  const bool is_reasoning = kind == Kind::kReasoning;
  Event(is_reasoning ? "response.reasoning_text.delta" : "response.output_text.delta",
        absl::StrFormat(",\"item_id\":%s,\"output_index\":%d,\"content_index\":0,%s\"delta\":%s",
                        Quoted(open_.id), num_items_ - 1, is_reasoning ? "" : "\"logprobs\":[],",
                        Quoted(text)),
        out);
}

void ResponsesWriter::CallDelta(const CallText& call, std::string& out) {
  if (call.is_start) Open(NewItem(Kind::kCall, call), out);
  if (call.arguments.empty()) return;
  open_.text += call.arguments;
  Event("response.function_call_arguments.delta",
        absl::StrFormat(",\"item_id\":%s,\"output_index\":%d,\"delta\":%s", Quoted(open_.id),
                        num_items_ - 1, Quoted(call.arguments)),
        out);
}

std::string ResponsesWriter::Chunk(const ChunkText& chunk) {
  std::string out;
  if (chunk.delta_field == "reasoning_content") TextDelta(Kind::kReasoning, chunk.text, out);
  if (chunk.delta_field == "content") TextDelta(Kind::kMessage, chunk.text, out);
  if (chunk.calls != nullptr)
    for (const CallText& call : *chunk.calls) CallDelta(call, out);
  if (chunk.end == nullptr) return out;
  end_ = *chunk.end;
  const bool is_complete =
      open_.kind == Kind::kCall ? JsonValue::Parse(open_.text).ok() : !is_incomplete();
  Close(is_complete, out);
  return out;
}

std::string ResponsesWriter::End(const UsageCounts& usage) {
  const std::string_view status = is_incomplete() ? "incomplete" : "completed";
  std::string out;
  Event(absl::StrFormat("response.%s", status),
        ",\"response\":" + ResponseJson(status, output_, UsageOf(usage)), out);
  return out;
}

std::string ResponsesWriter::StreamError(const ApiError& error) {
  const std::string said = absl::StrFormat(
      "{\"code\":\"%s\",\"message\":%s}",
      error.http_status == 429 ? "rate_limit_exceeded" : "server_error", Quoted(error.message));
  std::string out;
  Close(/*is_complete=*/false, out);
  Event("response.failed", ",\"response\":" + ResponseJson("failed", output_, "null", said), out);
  return out;
}

std::string ResponsesWriter::Whole(const std::vector<ChoiceText>& choices,
                                   const UsageCounts& usage) {
  const ChoiceText& choice = choices.front();
  end_ = choice.end;
  const std::string_view status = is_incomplete() ? "incomplete" : "completed";
  std::string output;
  const auto add = [&](const Item& item, std::string_view item_status) {
    output += (output.empty() ? "" : ",") + ItemJson(item, item_status);
  };
  const bool has_more = !choice.content.empty() || !choice.calls.empty();
  if (!choice.reasoning.empty()) {
    Item item = NewItem(Kind::kReasoning, {});
    item.text = choice.reasoning;
    add(item, has_more ? "completed" : status);
  }
  if (!choice.content.empty()) {
    Item item = NewItem(Kind::kMessage, {});
    item.text = choice.content;
    add(item, choice.calls.empty() ? status : "completed");
  }
  for (const CallText& call : choice.calls) {
    Item item = NewItem(Kind::kCall, call);
    item.text = call.arguments;
    add(item, "completed");
  }
  return ResponseJson(status, output, UsageOf(usage));
}

}  // namespace baton::router
