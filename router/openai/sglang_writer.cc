#include "router/openai/sglang_writer.h"

#include <algorithm>

#include "absl/strings/str_format.h"

#include "router/text/json_value.h"

namespace baton::router {
namespace {

// All events together have about this many times the text of the last one at most.
constexpr size_t kMostRepeats = 1024;

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

std::string EndJson(const ChoiceEnd& end, size_t num_tokens, int32_t eos) {
  if (end.finish_reason == "length")
    return absl::StrFormat("{\"type\":\"length\",\"length\":%d}", num_tokens);
  if (end.finish_reason != "stop")
    return absl::StrFormat("{\"type\":\"abort\",\"message\":%s}", Quoted(end.finish_reason));
  const std::string matched =
      end.has_stop_string ? Quoted(end.stop_string)
                          : absl::StrFormat("%d", end.stop_token >= 0 ? end.stop_token : eos);
  return absl::StrFormat("{\"type\":\"stop\",\"matched\":%s}", matched);
}

}  // namespace

SglangWriter::SglangWriter(Request request, const Clock& clock)
    : request_(std::move(request)),
      clock_(clock),
      cached_tokens_(request_.prompt_tokens.size()),
      choices_(request_.prompt_tokens.size() * static_cast<size_t>(request_.num_choices)) {}

void SglangWriter::Add(std::string_view text, const std::vector<int32_t>& ids, Progress& choice) {
  const std::string quoted = Quoted(text);
  choice.text.append(quoted, 1, quoted.size() - 2);
  for (const int32_t id : ids)
    absl::StrAppendFormat(&choice.ids, "%s%d", choice.ids.empty() ? "" : ",", id);
  choice.num_tokens += ids.size();
}

std::string SglangWriter::ObjectJson(size_t index, const Progress& choice) const {
  const size_t prompt = index / static_cast<size_t>(request_.num_choices);
  const std::string id = shows_index() ? absl::StrFormat("%s_%d", request_.id, index) : request_.id;
  std::string out;
  out.reserve(choice.text.size() + choice.ids.size() + 512);
  out += "{\"text\":\"";
  out += choice.text;
  out += "\",\"output_ids\":[";
  out += choice.ids;
  absl::StrAppendFormat(
      &out,
      "],\"meta_info\":{\"id\":%s,\"finish_reason\":%s,\"prompt_tokens\":%d,"
      "\"completion_tokens\":%d,\"cached_tokens\":%d,\"e2e_latency\":%.6f}",
      Quoted(id), choice.is_ended ? EndJson(choice.end, choice.num_tokens, request_.eos) : "null",
      request_.prompt_tokens[prompt], choice.num_tokens, cached_tokens_[prompt],
      absl::ToDoubleSeconds(clock_.Now() - request_.arrival));
  if (shows_index()) absl::StrAppendFormat(&out, ",\"index\":%d", index);
  out += "}";
  return out;
}

std::string SglangWriter::EventOf(size_t index) const {
  return "data: " + ObjectJson(index, choices_[index]) + "\n\n";
}

std::string SglangWriter::Chunk(const ChunkText& chunk) {
  const auto index = static_cast<size_t>(chunk.index);
  Progress& choice = choices_.at(index);
  Add(chunk.text, chunk.token_ids == nullptr ? std::vector<int32_t>() : *chunk.token_ids, choice);
  if (chunk.end != nullptr) {  // its event waits for what only the prompt's end says
    choice.end = *chunk.end;
    choice.is_ended = true;
    return "";
  }
  if (choice.num_tokens < choice.due_at) return "";
  choice.due_at = choice.num_tokens + std::max<size_t>(1, choice.num_tokens / kMostRepeats);
  return EventOf(index);
}

std::string SglangWriter::PromptEnd(size_t prompt, int64_t cached_tokens) {
  cached_tokens_.at(prompt) = cached_tokens;
  std::string out;
  const auto num_choices = static_cast<size_t>(request_.num_choices);
  for (size_t i = prompt * num_choices; i < (prompt + 1) * num_choices; ++i)
    if (choices_[i].is_ended) out += EventOf(i);
  return out;
}

std::string SglangWriter::Whole(const std::vector<ChoiceText>& choices, const UsageCounts&) {
  std::string out;
  for (size_t i = 0; i < choices.size(); ++i) {
    Progress whole;
    Add(choices[i].content, choices[i].token_ids, whole);
    whole.end = choices[i].end;
    whole.is_ended = true;
    out += (i == 0 ? "" : ",") + ObjectJson(i, whole);
  }
  return shows_index() ? "[" + out + "]" : out;
}

}  // namespace baton::router
