#include "router/openai/answer_format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

#include "router/text/json_value.h"

namespace baton::router {
namespace {

constexpr std::string_view kFingerprint = "baton";
constexpr double kMinusInfinity = -9999.0;  // how -inf is sent (protocol.md 5.5)

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

std::string Logprob(float value) {
  return absl::StrFormat("%.9g",
                         std::isfinite(value) ? static_cast<double>(value) : kMinusInfinity);
}

std::string TokenName(int32_t token, const Tokenizer& tokenizer, bool as_id) {
  if (as_id) return absl::StrFormat("token_id:%d", token);
  return tokenizer.Decode(std::span(&token, 1), /*skip_special=*/false);
}

std::string BytesJson(std::string_view bytes) {
  std::string out = "[";
  for (const char c : bytes)
    absl::StrAppendFormat(&out, "%s%d", out.size() > 1 ? "," : "", static_cast<unsigned char>(c));
  return out + "]";
}

// {"token":...,"logprob":...,"bytes":[...]} without the closing brace.
std::string ChatLogprob(int32_t token, float logprob, const Tokenizer& tokenizer, bool as_id) {
  return absl::StrFormat("{\"token\":%s,\"logprob\":%s,\"bytes\":%s",
                         Quoted(TokenName(token, tokenizer, as_id)), Logprob(logprob),
                         BytesJson(tokenizer.Bytes(token)));
}

// Characters that begin in these bytes, so that a character split over tokens counts once.
int64_t NumCharacters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

// The best entries as shown: the chosen token is among them even if it is not one of the best, then
// as one entry more (protocol.md 5.5).
std::vector<TokenLogprob> ShownTop(const TokenRecord& record) {
  std::vector<TokenLogprob> top = record.top;
  const auto is_chosen = [&](const TokenLogprob& entry) { return entry.token == record.token; };
  if (!top.empty() && std::none_of(top.begin(), top.end(), is_chosen))
    top.push_back({.token = record.token, .logprob = record.logprob});
  return top;
}

// {token:logprob,...} of a text completion.
std::string TopJson(const TokenRecord& record, const Tokenizer& tokenizer, bool as_id) {
  std::string out = "{";
  for (const TokenLogprob& top : ShownTop(record))
    absl::StrAppendFormat(&out, "%s%s:%s", out.size() > 1 ? "," : "",
                          Quoted(TokenName(top.token, tokenizer, as_id)), Logprob(top.logprob));
  return out + "}";
}

std::string EndJson(const ChoiceEnd* end) {
  if (end == nullptr || end->finish_reason.empty())
    return "\"finish_reason\":null,\"stop_reason\":null";
  std::string reason = "null";
  if (end->has_stop_string) reason = Quoted(end->stop_string);
  if (!end->has_stop_string && end->stop_token >= 0)
    reason = absl::StrFormat("%d", end->stop_token);
  return absl::StrFormat("\"finish_reason\":%s,\"stop_reason\":%s,\"matched_stop\":%s",
                         Quoted(end->finish_reason), reason, reason);
}

std::string IdsJson(const std::vector<int32_t>& ids) {
  std::string out = "[";
  for (const int32_t id : ids) absl::StrAppendFormat(&out, "%s%d", out.size() > 1 ? "," : "", id);
  return out + "]";
}

std::string HeadJson(const AnswerHead& head, std::string_view chat_object) {
  return absl::StrFormat("\"id\":%s,\"object\":\"%s\",\"created\":%d,\"model\":%s", Quoted(head.id),
                         head.kind == CompletionKind::kChat ? chat_object : "text_completion",
                         head.created, Quoted(head.model));
}

std::string PromptMember(const ChoiceText& choice) {
  return choice.prompt_logprobs.empty() ? "" : ",\"prompt_logprobs\":" + choice.prompt_logprobs;
}

// As in a message, or with `index` as in a chunk, where later parts bring arguments alone.
std::string CallJson(const CallText& call, bool has_index) {
  std::string json = "{";
  if (has_index) absl::StrAppendFormat(&json, "\"index\":%d,", call.index);
  if (call.is_start)
    absl::StrAppendFormat(&json, "\"id\":%s,\"type\":\"function\",", Quoted(call.id));
  json += "\"function\":{";
  if (call.is_start) absl::StrAppendFormat(&json, "\"name\":%s,", Quoted(call.name));
  return json + "\"arguments\":" + Quoted(call.arguments) + "}}";
}

std::string CallsJson(const std::vector<CallText>& calls, bool has_index) {
  std::string json = "\"tool_calls\":[";
  for (const CallText& call : calls) {
    if (&call != &calls.front()) json += ",";
    json += CallJson(call, has_index);
  }
  return json + "]";
}

std::string ChoiceJson(const AnswerHead& head, const ChoiceText& choice, const ShownFields& shown) {
  std::string body;
  if (head.kind == CompletionKind::kChat) {
    const bool is_bare = choice.reasoning.empty() && choice.calls.empty();
    body = absl::StrFormat(
        "\"message\":{\"role\":\"assistant\",\"content\":%s,\"reasoning_content\":%s%s}",
        is_bare || !choice.content.empty() ? Quoted(choice.content) : "null",
        choice.reasoning.empty() || !shown.reasoning ? "null" : Quoted(choice.reasoning),
        choice.calls.empty() ? "" : "," + CallsJson(choice.calls, /*has_index=*/false));
  } else {
    body = "\"text\":" + Quoted(choice.content);
  }
  std::string ids;
  if (shown.token_ids) ids = ",\"token_ids\":" + IdsJson(choice.token_ids);
  if (head.kind == CompletionKind::kText) ids += PromptMember(choice);
  return absl::StrFormat("{\"index\":%d,%s,\"logprobs\":%s,%s%s}", choice.index, body,
                         choice.logprobs, EndJson(&choice.end), ids);
}

}  // namespace

std::string ErrorJson(const ApiError& error) {
  return absl::StrFormat("{\"error\":{\"message\":%s,\"type\":%s,\"param\":%s,\"code\":%d%s}}",
                         Quoted(error.message), Quoted(error.type),
                         error.param.empty() ? "null" : Quoted(error.param), error.http_status,
                         error.message.find("maximum context length") == std::string::npos
                             ? ""
                             : ",\"error_code\":\"context_length_exceeded\"");
}

std::string StagesJson(const StageTimes& times) {
  const auto ms = [](absl::Duration time) { return absl::ToDoubleMilliseconds(time); };
  return absl::StrFormat(
      "{\"parse\":%.3f,\"queue\":%.3f,\"booking\":%.3f,\"prefill_queue\":%.3f,\"prefill\":%.3f,"
      "\"emit\":%.3f,\"transfer\":%.3f,\"decode_queue\":%.3f,\"first_step\":%.3f}",
      ms(times.parse), ms(times.queue), ms(times.booking), ms(times.prefill_queue),
      ms(times.prefill), ms(times.emit), ms(times.transfer), ms(times.decode_queue),
      ms(times.first_step));
}

std::string UsageJson(const UsageCounts& usage) {
  return absl::StrFormat(
      "{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,\"prompt_tokens_"
      "details\":{\"cached_tokens\":%d},"
      "\"completion_tokens_details\":{\"reasoning_tokens\":%d}%s}",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens,
      usage.cached_tokens, usage.reasoning_tokens,
      usage.stages ? ",\"stage_times_ms\":" + StagesJson(*usage.stages) : "");
}

std::string ChatLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                             bool tokens_as_ids) {
  std::string out = "{\"content\":[";
  for (const TokenRecord& record : records) {
    if (&record != &records.front()) out += ",";
    out +=
        ChatLogprob(record.token, record.logprob, tokenizer, tokens_as_ids) + ",\"top_logprobs\":[";
    const std::vector<TokenLogprob> entries = ShownTop(record);
    for (const TokenLogprob& top : entries) {
      if (&top != &entries.front()) out += ",";
      out += ChatLogprob(top.token, top.logprob, tokenizer, tokens_as_ids) + "}";
    }
    out += "]}";
  }
  return out + "]}";
}

std::string TextLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                             bool tokens_as_ids, int64_t& text_offset, bool starts_prompt) {
  std::string offsets, logprobs, tokens, tops;
  for (const TokenRecord& record : records) {
    const bool is_first = &record == &records.front();
    const char* comma = is_first ? "" : ",";
    const bool has_value = !(is_first && starts_prompt);
    absl::StrAppendFormat(&offsets, "%s%d", comma, text_offset);
    absl::StrAppendFormat(&logprobs, "%s%s", comma, has_value ? Logprob(record.logprob) : "null");
    absl::StrAppendFormat(&tokens, "%s%s", comma,
                          Quoted(TokenName(record.token, tokenizer, tokens_as_ids)));
    absl::StrAppendFormat(&tops, "%s%s", comma,
                          has_value ? TopJson(record, tokenizer, tokens_as_ids) : "null");
    text_offset += NumCharacters(tokenizer.Bytes(record.token));
  }
  return absl::StrFormat(
      "{\"text_offset\":[%s],\"token_logprobs\":[%s],\"tokens\":[%s],\"top_logprobs\":[%s]}",
      offsets, logprobs, tokens, tops);
}

std::string PromptLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                               int max_entries) {
  const auto entry = [&](int32_t token, float logprob, const std::string& rank) {
    return absl::StrFormat("\"%d\":{\"logprob\":%s,\"rank\":%s,\"decoded_token\":%s}", token,
                           Logprob(logprob), rank, Quoted(TokenName(token, tokenizer, false)));
  };
  std::string out = "[null";
  for (const TokenRecord& record : records) {
    const auto count = std::min(record.top.size(), static_cast<size_t>(max_entries));
    std::string own_rank = "null", others;
    for (size_t i = 0; i < count; ++i) {
      const TokenLogprob& top = record.top[i];
      const std::string rank = absl::StrFormat("%d", i + 1);
      if (top.token == record.token)
        own_rank = rank;
      else
        others += "," + entry(top.token, top.logprob, rank);
    }
    absl::StrAppendFormat(&out, ",{%s%s}", entry(record.token, record.logprob, own_rank), others);
  }
  return out + "]";
}

std::string AnswerJson(const AnswerHead& head, const std::vector<ChoiceText>& choices,
                       const UsageCounts& usage, const ShownFields& shown) {
  std::string list;
  for (const ChoiceText& choice : choices)
    list += (list.empty() ? "" : ",") + ChoiceJson(head, choice, shown);
  std::string prompt;
  if (head.kind == CompletionKind::kChat && !choices.empty()) prompt = PromptMember(choices[0]);
  if (shown.prompt_ids != nullptr) prompt += ",\"prompt_token_ids\":" + IdsJson(*shown.prompt_ids);
  return absl::StrFormat("{%s,\"choices\":[%s],\"usage\":%s,\"system_fingerprint\":\"%s\"%s}",
                         HeadJson(head, "chat.completion"), list, UsageJson(usage), kFingerprint,
                         prompt);
}

std::string ChunkEvent(const AnswerHead& head, const ChunkText& chunk) {
  std::string body;
  if (head.kind == CompletionKind::kChat) {
    std::string delta = chunk.starts_choice ? "\"role\":\"assistant\"" : "";
    if (!chunk.delta_field.empty())
      delta += absl::StrFormat("%s\"%s\":%s", delta.empty() ? "" : ",", chunk.delta_field,
                               Quoted(chunk.text));
    if (chunk.calls != nullptr)
      delta += (delta.empty() ? "" : ",") + CallsJson(*chunk.calls, /*has_index=*/true);
    body = "\"delta\":{" + delta + "}";
  } else {
    body = "\"text\":" + Quoted(chunk.text);
  }
  std::string extra;
  if (chunk.token_ids != nullptr) extra = ",\"token_ids\":" + IdsJson(*chunk.token_ids);
  std::string usage;
  if (chunk.prompt_ids != nullptr) usage = ",\"prompt_token_ids\":" + IdsJson(*chunk.prompt_ids);
  if (chunk.usage != nullptr) usage += ",\"usage\":" + UsageJson(*chunk.usage);
  return absl::StrFormat("data: {%s,\"choices\":[{\"index\":%d,%s,\"logprobs\":%s,%s%s}]%s}\n\n",
                         HeadJson(head, "chat.completion.chunk"), chunk.index, body,
                         chunk.logprobs.empty() ? std::string_view("null") : chunk.logprobs,
                         EndJson(chunk.end), extra, usage);
}

std::string UsageEvent(const AnswerHead& head, const UsageCounts& usage) {
  return absl::StrFormat("data: {%s,\"choices\":[],\"usage\":%s}\n\n",
                         HeadJson(head, "chat.completion.chunk"), UsageJson(usage));
}

std::string ErrorEvent(const ApiError& error) {
  return absl::StrFormat("data: %s\n\n", ErrorJson(error));
}

}  // namespace baton::router
