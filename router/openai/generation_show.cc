#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/rng.h"
#include "router/openai/generation.h"

// The parts of a generation that the client sees: the stream's events, a choice's end.
namespace baton::router {
namespace {

std::string DrawCallId(std::string_view prefix) {
  SystemRng rng;
  return absl::StrFormat("%s%016x%08x", prefix, rng.Next(), rng.Next() >> 32);
}

// What the deltas of a step add to one field.
std::string TextOf(const std::vector<OutputDelta>& deltas, OutputField field) {
  std::string text;
  for (const OutputDelta& delta : deltas)
    if (delta.field == field) text += delta.text;
  return text;
}

}  // namespace

HttpHeaders Generation::CommonHeaders() const {
  HttpHeaders headers = {{"x-request-id", job_.request_id}};
  if (!is_exact_) headers.emplace_back("x-baton-exact", "false");
  return headers;
}

void Generation::StartStream() {
  is_streaming_ = true;
  HttpHeaders headers = CommonHeaders();
  headers.emplace_back("Content-Type", "text/event-stream; charset=utf-8");
  headers.emplace_back("Cache-Control", "no-cache");
  headers.emplace_back("X-Accel-Buffering", "no");
  exchange_->StartStream(200, std::move(headers));
  int64_t prompt_tokens = 0;
  for (const auto& prompt : job_.prompts) prompt_tokens += static_cast<int64_t>(prompt->size());
  Send(job_.writer->Accepted(prompt_tokens));
}

void Generation::Send(std::string piece) {
  if (!piece.empty()) exchange_->Write(std::move(piece));
}

void Generation::Ping() {
  if (is_over_) return;
  if (is_streaming_ && was_quiet_) Send(job_.writer->Ping());
  was_quiet_ = true;
  exchange_->PostAfter(context_.config.ping_interval, [weak = weak_from_this()] {
    if (const auto generation = weak.lock()) generation->Ping();
  });
}

void Generation::StartChoice(Choice& choice) {
  if (choice.is_started) return;
  choice.is_started = true;
  const bool is_chat = job_.head.kind == CompletionKind::kChat;
  if (!is_chat && !job_.params.echoes)
    return;  // the role is a chat's; an echo comes first in a text completion
  std::string logprobs;
  if (job_.params.echoes && job_.params.wants_logprobs) {
    const auto part = static_cast<size_t>(choice.text.index / job_.params.num_choices);
    Echo& echo = parts_[part].echo;
    if (echo.logprobs.empty()) echo = MakeEcho(part);  // a prompt of one token has no report
    logprobs = echo.logprobs;
    choice.text_offset = echo.text_offset;
  }
  const bool shows_prompt = is_chat && job_.params.return_token_ids;
  Send(job_.writer->Chunk({.index = choice.text.index,
                           .delta_field = "content",
                           .text = choice.text.content,
                           .starts_choice = true,
                           .logprobs = logprobs,
                           .prompt_ids = shows_prompt ? job_.prompts[0].get() : nullptr}));
}

void Generation::Show(Choice& choice, const std::vector<OutputDelta>& deltas,
                      const std::vector<TokenRecord>& records) {
  for (const OutputDelta& delta : deltas) {
    if (delta.field != OutputField::kCallName) continue;
    choice.text.calls.push_back(
        {.index = delta.call, .id = DrawCallId(job_.writer->call_id_prefix()), .name = delta.text});
  }
  if (job_.params.is_stream) {
    const bool owes_reasoning = choice.output.is_finished() && !choice.held_reasoning.empty();
    if (owes_reasoning || !records.empty() || !deltas.empty()) SendStep(choice, deltas, records);
    return;
  }
  if (job_.params.wants_logprobs)
    choice.records.insert(choice.records.end(), records.begin(), records.end());
  choice.text.content += TextOf(deltas, OutputField::kContent);
  if (job_.params.includes_reasoning)
    choice.text.reasoning += TextOf(deltas, OutputField::kReasoning);
}

// The parts of calls that a step adds, one entry per call.
std::vector<CallText> Generation::ShownCalls(Choice& choice,
                                             const std::vector<OutputDelta>& deltas) {
  std::vector<CallText> shown;
  for (const OutputDelta& delta : deltas) {
    if (delta.field == OutputField::kCallName)
      shown.push_back(choice.text.calls.at(static_cast<size_t>(delta.call)));
    if (delta.field != OutputField::kCallArguments) continue;
    if (shown.empty() || shown.back().index != delta.call)
      shown.push_back({.index = delta.call, .is_start = false});
    shown.back().arguments += delta.text;
  }
  return shown;
}

// One chunk per field that a step adds to; what belongs to the step as a whole goes with the first.
void Generation::SendStep(Choice& choice, const std::vector<OutputDelta>& deltas,
                          const std::vector<TokenRecord>& records) {
  const GenerateParams& params = job_.params;
  StartChoice(choice);
  std::string logprobs;
  if (params.wants_logprobs && !records.empty())
    logprobs = job_.head.kind == CompletionKind::kChat
                   ? ChatLogprobsJson(records, context_.tokenizer, params.tokens_as_ids)
                   : TextLogprobsJson(records, context_.tokenizer, params.tokens_as_ids,
                                      choice.text_offset);
  std::vector<int32_t> ids;
  if (params.return_token_ids)
    for (const TokenRecord& record : records) ids.push_back(record.token);
  const std::string content = TextOf(deltas, OutputField::kContent);
  const std::vector<CallText> calls = ShownCalls(choice, deltas);
  if (params.includes_reasoning) choice.held_reasoning += TextOf(deltas, OutputField::kReasoning);
  const bool reasoning_waits =
      !params.streams_reasoning && content.empty() && calls.empty() && !choice.output.is_finished();
  const std::string reasoning =
      reasoning_waits ? std::string() : std::exchange(choice.held_reasoning, {});
  const UsageCounts usage = params.continuous_usage ? Usage() : UsageCounts{};
  bool is_first = true;
  const auto send = [&](ChunkText chunk) {
    chunk.index = choice.text.index;
    chunk.logprobs = is_first ? std::string_view(logprobs) : std::string_view();
    chunk.token_ids = is_first && params.return_token_ids ? &ids : nullptr;
    chunk.usage = params.continuous_usage ? &usage : nullptr;
    is_first = false;
    Send(job_.writer->Chunk(chunk));
    was_quiet_ = false;
  };
  if (!reasoning.empty()) send({.delta_field = "reasoning_content", .text = reasoning});
  if (!content.empty()) send({.delta_field = "content", .text = content});
  if (!calls.empty()) send({.calls = &calls});
  if (is_first && (!logprobs.empty() || !ids.empty())) send({.delta_field = "content"});
}

void Generation::EndChoice(Choice& choice, ChoiceEnd end) {
  choice.is_ended = true;
  if (choice.calls != nullptr) {
    // Natural is every end but the limit (protocol.md 3.2).
    const bool has_calls = choice.calls->num_complete() > 0;
    if (has_calls && end.finish_reason == "stop") end.finish_reason = "tool_calls";
    KeepCalls(choice);
    CountOutcome(choice);
  }
  choice.text.end = std::move(end);
  if (!job_.params.is_stream) return;
  StartChoice(choice);
  Send(job_.writer->Chunk({.index = choice.text.index, .end = &choice.text.end}));
}

void Generation::CountOutcome(const Choice& choice) const {
  const DsmlOutcome outcome = choice.calls->outcome();
  ++context_.dsml.choices[static_cast<size_t>(outcome)];
  if (outcome == DsmlOutcome::kNone || outcome == DsmlOutcome::kOk) return;
  Log(LogLevel::kInfo, "dsml_parse",
      absl::StrFormat("request=%s choice=%d result=%s", job_.request_id, choice.text.index,
                      DsmlOutcomeName(outcome)));
}

// The complete calls become those of a whole answer, and are kept for the next turn.
void Generation::KeepCalls(Choice& choice) {
  const ToolCallParser& parser = *choice.calls;
  std::vector<CallText> complete;
  std::vector<std::string> ids;
  std::vector<ParsedCall> parsed;
  for (size_t i = 0; i < parser.calls().size(); ++i) {
    const ParsedCall& call = parser.calls()[i];
    if (!call.is_complete) continue;
    complete.push_back(choice.text.calls.at(i));
    complete.back().arguments = call.arguments;
    ids.push_back(complete.back().id);
    parsed.push_back(call);
  }
  if (!job_.params.is_stream) choice.text.content += parser.fallback_text();
  choice.text.calls = std::move(complete);
  if (!ids.empty()) context_.replay.Keep(ids, std::move(parsed), parser.block());
}

void Generation::EndAll() {
  is_over_ = true;
  const bool all_ended =
      std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.is_ended; });
  if (!all_ended)
    Log(LogLevel::kError, "choices_open_at_end", absl::StrFormat("request=%s", job_.request_id));
  if (is_streaming_) {
    Send(job_.writer->End(Usage()));
    exchange_->EndStream();
    return;
  }
  Format(
      NumEntries(), [this] { answer_ = WholeAnswer(); },
      [this] {
        HttpHeaders headers = CommonHeaders();
        headers.emplace_back("Content-Type", "application/json");
        exchange_->Respond(200, std::move(headers), std::move(answer_));
      });
}

UsageCounts Generation::Usage() const {
  UsageCounts usage;
  if (job_.params.includes_stages) usage.stages = parts_[0].stages;
  for (size_t part = 0; part < parts_.size(); ++part) {
    usage.prompt_tokens += static_cast<int64_t>(job_.prompts[part]->size());
    usage.cached_tokens += parts_[part].cached_tokens;
  }
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.completion_tokens;
    usage.reasoning_tokens += choice.output.reasoning_tokens();
  }
  return usage;
}

}  // namespace baton::router
