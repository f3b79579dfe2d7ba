#include "router/openai/generation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"

namespace baton::router {
namespace {

constexpr size_t kMaxEntriesHere = 1024;  // formatted within 1 ms (style.md 3.5)

// Token and best entries alike.
size_t EntriesOf(const std::vector<TokenRecord>& records) {
  return records.empty() ? 0 : records.size() * (1 + records.back().top.size());
}

}  // namespace

ApiError ToApiError(const absl::Status& status) {
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return {429, "TooManyRequestsError", message, ""};
    case absl::StatusCode::kUnavailable:
      return {503, "ServiceUnavailableError", message, ""};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "GatewayTimeoutError", message, ""};
    case absl::StatusCode::kInvalidArgument:
      return {400, "BadRequestError", message, ""};
    default:
      return {500, "InternalServerError", message, ""};
  }
}

void RespondError(HttpExchange& exchange, const ApiError& error, const std::string& request_id,
                  absl::Duration retry_after) {
  HttpHeaders headers = {{"Content-Type", "application/json"}};
  if (!request_id.empty()) headers.emplace_back("x-request-id", request_id);
  if (error.http_status == 429 || error.http_status == 503) {
    const auto seconds = static_cast<int64_t>(std::ceil(absl::ToDoubleSeconds(retry_after)));
    headers.emplace_back("Retry-After", absl::StrFormat("%d", std::max<int64_t>(1, seconds)));
  }
  exchange.Respond(error.http_status, std::move(headers), ErrorJson(error));
}

void Generation::Start(const ApiContext& context, GenerationJob job,
                       std::shared_ptr<HttpExchange> exchange) {
  const auto generation = std::make_shared<Generation>(context, std::move(job), exchange);
  exchange->OnGone([weak = std::weak_ptr(generation)] {
    if (const auto self = weak.lock()) self->CancelAll("client gone");
  });
  generation->Submit();
}

Generation::Generation(const ApiContext& context, GenerationJob job,
                       std::shared_ptr<HttpExchange> exchange)
    : context_(context), job_(std::move(job)), exchange_(std::move(exchange)) {
  const bool is_chat = job_.head.kind == CompletionKind::kChat;
  for (size_t prompt = 0; prompt < job_.prompts.size(); ++prompt) {
    const ChoiceOutputOptions options = {
        .stops = job_.params.stops,
        .include_stop = job_.params.include_stop,
        .skip_special = job_.params.skip_special,
        .splits_reasoning = is_chat && job_.params.separates_reasoning,
        .starts_in_reasoning = is_chat && StartsInReasoning(*job_.prompts[prompt], context_.markup),
        .tools = nullptr};
    for (int k = 0; k < job_.params.num_choices; ++k) {
      choices_.push_back(
          Choice{.output = ChoiceOutput(context_.tokenizer, context_.markup, options),
                 .text = {},
                 .records = {}});
      choices_.back().text.index = static_cast<int>(choices_.size()) - 1;
      if (!job_.echoes.empty()) choices_.back().text.content = job_.echoes[prompt];
    }
  }
  parts_.resize(job_.prompts.size());
}

void Generation::Submit() {
  if (is_over_) return;  // the client left while its body was being read
  const auto self = shared_from_this();
  for (size_t part = 0; part < parts_.size(); ++part) {
    GenerateRequest request = job_.request;
    request.prompt = job_.prompts[part];
    parts_[part].key = context_.dispatcher.Submit(
        std::move(request), [self, part, exchange = exchange_](std::vector<RequestEvent> events) {
          exchange->Post([self, part, events = std::move(events)]() mutable {
            self->OnEvents(part, std::move(events));
          });
        });
  }
  exchange_->PostAfter(context_.config.ping_interval, [weak = weak_from_this()] {
    if (const auto generation = weak.lock()) generation->Ping();
  });
}

void Generation::OnEvents(size_t part, std::vector<RequestEvent> events) {
  for (RequestEvent& event : events) {
    if (MustWait(part, event)) {
      parts_[part].held.push_back(std::move(event));
      continue;
    }
    if (const auto* ended = std::get_if<RequestEnded>(&event)) LogEnd(part, *ended);
    if (!is_over_) std::visit([&](const auto& e) { On(part, e); }, event);
  }
}

// What the choices say waits for the report on the prompt, which is shown first.
bool Generation::MustWait(size_t part, const RequestEvent& event) const {
  if (parts_[part].is_formatting) return true;
  const bool is_answer = std::holds_alternative<TokensEmitted>(event) ||
                         std::holds_alternative<ChoiceFinished>(event);
  return !is_over_ && is_answer && IsReportDue(part);
}

Generation::Choice& Generation::ChoiceOf(size_t part, int k) {
  return choices_[part * static_cast<size_t>(job_.params.num_choices) + static_cast<size_t>(k)];
}

bool Generation::IsReportDue(size_t part) const {
  return job_.request.prompt_logprobs &&
         parts_[part].report.size() + 1 < job_.prompts[part]->size();
}

// The one line per request (style.md 3.7), also when the client has left.
void Generation::LogEnd(size_t part, const RequestEnded& event) const {
  int64_t tokens = 0;
  const auto num_choices = static_cast<size_t>(job_.params.num_choices);
  for (size_t i = part * num_choices; i < (part + 1) * num_choices; ++i)
    tokens += choices_[i].completion_tokens;
  const StageTimes& t = event.times;
  const auto ms = [](absl::Duration time) { return absl::ToDoubleMilliseconds(time); };
  const std::string prefix = absl::StrFormat(
      "request=%s part=%d outcome=%s prompt_tokens=%d cached_tokens=%d completion_tokens=%d",
      job_.request_id, part, absl::StatusCodeToString(event.status.code()),
      job_.prompts[part]->size(), event.cached_tokens, tokens);
  const std::string first = absl::StrFormat(
      "parse_ms=%.3f queue_ms=%.3f booking_ms=%.3f prefill_queue_ms=%.3f prefill_ms=%.3f "
      "emit_ms=%.3f",
      ms(t.parse), ms(t.queue), ms(t.booking), ms(t.prefill_queue), ms(t.prefill), ms(t.emit));
  const std::string second =
      absl::StrFormat("transfer_ms=%.3f decode_queue_ms=%.3f first_step_ms=%.3f", ms(t.transfer),
                      ms(t.decode_queue), ms(t.first_step));
  const std::string error =
      event.status.ok() ? "" : absl::StrFormat(" error=%s", std::string(event.status.message()));
  Log(LogLevel::kInfo, "request_ended",
      absl::StrFormat("%s %s %s%s", prefix, first, second, error));
}

void Generation::On(size_t, const RequestAccepted&) {
  if (job_.params.is_stream && !is_streaming_) StartStream();
}

void Generation::On(size_t part, const PromptLogprobsEmitted& event) {
  std::vector<TokenRecord>& report = parts_[part].report;
  report.insert(report.end(), event.tokens.begin(), event.tokens.end());
  if (IsReportDue(part)) return;
  if (!job_.params.is_stream || !job_.params.echoes || !job_.params.wants_logprobs)
    return OnReportComplete(part);
  parts_[part].is_formatting = true;
  Format(
      EntriesOf(report), [this, part] { parts_[part].echo = MakeEcho(part); },
      [this, part] { OnReportComplete(part); });
}

void Generation::OnReportComplete(size_t part) {
  parts_[part].is_formatting = false;
  if (job_.params.scores_only && !is_over_) EndScored(part);
  OnEvents(part, std::exchange(parts_[part].held, {}));
}

// `make` touches only what nothing else does before `use`, which runs on this thread. A pool that
// has no room must not cost an answer that is complete: it is then made here.
void Generation::Format(size_t num_entries, std::function<void()> make,
                        std::function<void()> use) {
  const bool is_taken =
      num_entries > kMaxEntriesHere &&
      context_.cpu_pool.TryRun([self = shared_from_this(), exchange = exchange_, make, use] {
        make();
        exchange->Post([self, use] { use(); });
      });
  if (is_taken) return;
  make();
  use();
}

// Nothing is generated: the engine's one token is neither shown nor counted.
void Generation::EndScored(size_t part) {
  for (int k = 0; k < job_.params.num_choices; ++k) {
    Choice& choice = ChoiceOf(part, k);
    if (choice.is_ended) continue;
    context_.dispatcher.Cancel(parts_[part].key, k, "the prompt is scored");
    EndChoice(choice, {.finish_reason = "length"});
  }
}

// The echoed prompt as the arrays of its answer show it; the first token has no value.
std::vector<TokenRecord> Generation::EchoRecords(size_t part) const {
  std::vector<TokenRecord> records = {
      {.token = job_.prompts[part]->front(), .logprob = 0, .top = {}}};
  records.insert(records.end(), parts_[part].report.begin(), parts_[part].report.end());
  const auto entries = static_cast<size_t>(std::max(job_.params.sampling.top_logprobs, 0));
  for (TokenRecord& record : records)
    if (record.top.size() > entries) record.top.resize(entries);
  return records;
}

Generation::Echo Generation::MakeEcho(size_t part) const {
  Echo echo;
  echo.logprobs = TextLogprobsJson(EchoRecords(part), context_.tokenizer,
                                   job_.params.tokens_as_ids, echo.text_offset,
                                   /*starts_prompt=*/true);
  return echo;
}

void Generation::On(size_t part, const TokensEmitted& event) {
  Choice& choice = ChoiceOf(part, event.choice);
  if (choice.is_ended) return;
  if (job_.params.scores_only) return EndScored(part);  // a prompt of one token has no report
  std::vector<OutputDelta> deltas;
  std::vector<TokenRecord> records;
  for (const TokenRecord& record : event.tokens) {
    ++choice.completion_tokens;
    choice.text.token_ids.push_back(record.token);
    records.push_back(record);
    choice.output.Push(record.token, deltas);
    if (choice.output.matched_stop() != nullptr) break;
  }
  const std::string* stop = choice.output.matched_stop();
  if (stop != nullptr) choice.output.Finish(deltas);
  Show(choice, deltas, records);
  if (stop == nullptr) return;
  context_.dispatcher.Cancel(parts_[part].key, event.choice, "stop string");
  EndChoice(choice, {.finish_reason = "stop", .stop_string = *stop, .has_stop_string = true});
}

void Generation::On(size_t part, const ChoiceFinished& event) {
  Choice& choice = ChoiceOf(part, event.choice);
  if (choice.is_ended) return;
  std::vector<OutputDelta> deltas;
  choice.output.Finish(deltas);
  Show(choice, deltas, {});
  ChoiceEnd end = {.finish_reason = event.reason == FinishReason::kStop ? "stop" : "length"};
  if (event.stop_token != context_.markup.eos) end.stop_token = event.stop_token;
  if (const std::string* stop = choice.output.matched_stop();
      stop != nullptr)  // in what was held back
    end = {.finish_reason = "stop", .stop_string = *stop, .has_stop_string = true};
  EndChoice(choice, std::move(end));
}

void Generation::On(size_t, const ContinuationInexact&) {
  is_exact_ = false;
  if (is_streaming_) exchange_->Write(": x-baton-exact: false\n\n");
}

void Generation::On(size_t part, const RequestEnded& event) {
  parts_[part].is_ended = true;
  parts_[part].cached_tokens = event.cached_tokens;
  if (!event.status.ok()) {
    Fail(ToApiError(event.status), event.retry_after);
    return;
  }
  if (std::all_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.is_ended; })) EndAll();
}

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
}

void Generation::Ping() {
  if (is_over_) return;
  if (is_streaming_ && was_quiet_) exchange_->Write(": ping\n\n");
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
  exchange_->Write(ChunkEvent(
      job_.head, {.index = choice.text.index,
                  .delta_field = "content",
                  .text = is_chat ? std::string_view() : std::string_view(choice.text.content),
                  .starts_choice = true,
                  .logprobs = logprobs}));
}

void Generation::Show(Choice& choice, const std::vector<OutputDelta>& deltas,
                      const std::vector<TokenRecord>& records) {
  const bool is_stream = job_.params.is_stream;
  if (is_stream && (!records.empty() || !deltas.empty())) StartChoice(choice);
  std::string logprobs;
  if (job_.params.wants_logprobs && is_stream && !records.empty())
    logprobs = job_.head.kind == CompletionKind::kChat
                   ? ChatLogprobsJson(records, context_.tokenizer, job_.params.tokens_as_ids)
                   : TextLogprobsJson(records, context_.tokenizer, job_.params.tokens_as_ids,
                                      choice.text_offset);
  if (job_.params.wants_logprobs && !is_stream)
    choice.records.insert(choice.records.end(), records.begin(), records.end());
  std::vector<int32_t> ids;
  if (job_.params.return_token_ids)
    for (const TokenRecord& record : records) ids.push_back(record.token);
  std::vector<OutputDelta> shown;
  for (const OutputDelta& delta : deltas) {
    const bool is_reasoning = delta.field == OutputField::kReasoning;
    if (is_reasoning && !job_.params.includes_reasoning) continue;
    (is_reasoning ? choice.text.reasoning : choice.text.content) += delta.text;
    shown.push_back(delta);
  }
  if (!is_stream) return;
  if (shown.empty() && (!logprobs.empty() || !ids.empty()))
    shown.push_back({.field = OutputField::kContent, .text = ""});
  const UsageCounts usage = job_.params.continuous_usage ? Usage() : UsageCounts{};
  for (const OutputDelta& delta : shown) {
    exchange_->Write(ChunkEvent(
        job_.head,
        {.index = choice.text.index,
         .delta_field = delta.field == OutputField::kReasoning ? "reasoning_content" : "content",
         .text = delta.text,
         .logprobs = std::exchange(logprobs, {}),
         .token_ids = job_.params.return_token_ids && &delta == &shown.front() ? &ids : nullptr,
         .usage = job_.params.continuous_usage ? &usage : nullptr}));
    was_quiet_ = false;
  }
}

void Generation::EndChoice(Choice& choice, ChoiceEnd end) {
  choice.is_ended = true;
  choice.text.end = std::move(end);
  if (!job_.params.is_stream) return;
  StartChoice(choice);
  exchange_->Write(ChunkEvent(job_.head, {.index = choice.text.index, .end = &choice.text.end}));
}

void Generation::EndAll() {
  is_over_ = true;
  const bool all_ended =
      std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.is_ended; });
  if (!all_ended)
    Log(LogLevel::kError, "choices_open_at_end", absl::StrFormat("request=%s", job_.request_id));
  if (is_streaming_) {
    if (job_.params.include_usage) exchange_->Write(UsageEvent(job_.head, Usage()));
    exchange_->Write(std::string(kDoneEvent));
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

// Of logprobs in an answer that is not streamed.
size_t Generation::NumEntries() const {
  const GenerateParams& params = job_.params;
  size_t entries = 0;
  if (params.prompt_logprobs || params.echoes)
    for (const Part& part : parts_)
      entries += EntriesOf(part.report) * static_cast<size_t>(params.num_choices);
  for (const Choice& choice : choices_) entries += EntriesOf(choice.records);
  return entries;
}

// Takes the choices' texts. The generation is over: nothing else touches them.
std::string Generation::WholeAnswer() {
  std::vector<ChoiceText> texts;
  for (size_t i = 0; i < choices_.size(); ++i) {
    FillLogprobs(i);
    texts.push_back(std::move(choices_[i].text));
  }
  return AnswerJson(job_.head, texts, Usage(),
                    {.reasoning = job_.params.includes_reasoning,
                     .token_ids = job_.params.return_token_ids});
}

// Of an answer that is not streamed.
void Generation::FillLogprobs(size_t choice_index) {
  Choice& choice = choices_[choice_index];
  const GenerateParams& params = job_.params;
  const size_t part = choice_index / static_cast<size_t>(params.num_choices);
  const bool is_chat = job_.head.kind == CompletionKind::kChat;
  const bool is_first = choice_index % static_cast<size_t>(params.num_choices) == 0;
  if (params.prompt_logprobs && (!is_chat || is_first))
    choice.text.prompt_logprobs =
        PromptLogprobsJson(parts_[part].report, context_.tokenizer, *params.prompt_logprobs);
  if (!params.wants_logprobs) return;
  std::vector<TokenRecord> records;
  if (params.echoes) records = EchoRecords(part);
  records.insert(records.end(), choice.records.begin(), choice.records.end());
  int64_t offset = 0;
  choice.text.logprobs =
      is_chat ? ChatLogprobsJson(records, context_.tokenizer, params.tokens_as_ids)
              : TextLogprobsJson(records, context_.tokenizer, params.tokens_as_ids, offset,
                                 /*starts_prompt=*/params.echoes);
}

void Generation::Fail(const ApiError& error, absl::Duration retry_after) {
  is_over_ = true;
  for (Part& part : parts_)
    if (!part.is_ended)
      context_.dispatcher.Cancel(part.key, std::nullopt, "another prompt of the request failed");
  if (is_streaming_) {
    exchange_->Write(ErrorEvent(error));
    exchange_->Write(std::string(kDoneEvent));
    exchange_->EndStream();
  } else {
    RespondError(*exchange_, error, job_.request_id, retry_after);
  }
}

void Generation::CancelAll(const std::string& reason) {
  if (std::exchange(is_over_, true)) return;
  for (const Part& part : parts_)
    if (part.key.value != 0 && !part.is_ended)
      context_.dispatcher.Cancel(part.key, std::nullopt, reason);
}

UsageCounts Generation::Usage() const {
  UsageCounts usage;
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
