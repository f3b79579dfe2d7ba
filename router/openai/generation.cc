#include "router/openai/generation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "router/http/api_keys.h"

namespace baton::router {

ApiError ToApiError(const absl::Status& status) {
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return {429, status.GetPayload(kKeyLimitPayload) ? kRateLimitType : "TooManyRequestsError",
              message, ""};
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

void RespondErrorBody(HttpExchange& exchange, int status, std::string body,
                      const std::string& request_id, absl::Duration retry_after) {
  HttpHeaders headers = {{"Content-Type", "application/json"}};
  if (!request_id.empty()) headers.emplace_back("x-request-id", request_id);
  if (status == 429 || status == 503 || status == 529) {
    const auto seconds = static_cast<int64_t>(std::ceil(absl::ToDoubleSeconds(retry_after)));
    headers.emplace_back("Retry-After", absl::StrFormat("%d", std::max<int64_t>(1, seconds)));
  }
  exchange.Respond(status, std::move(headers), std::move(body));
}

void RespondError(HttpExchange& exchange, const ApiError& error, const std::string& request_id,
                  absl::Duration retry_after) {
  RespondErrorBody(exchange, error.http_status, ErrorJson(error), request_id, retry_after);
}

void Generation::Start(const ApiContext& context, GenerationJob job,
                       const std::shared_ptr<HttpExchange>& exchange) {
  const auto generation = std::make_shared<Generation>(context, std::move(job), exchange);
  exchange->OnGone([weak = std::weak_ptr(generation)] {
    if (const auto self = weak.lock()) self->CancelAll("client gone");
  });
  generation->Submit();
}

Generation::Generation(const ApiContext& context, GenerationJob job,
                       std::shared_ptr<HttpExchange> exchange)
    : context_(context), job_(std::move(job)), exchange_(std::move(exchange)) {
  if (job_.writer == nullptr) {
    ShownFields shown = {.reasoning = job_.params.includes_reasoning,
                         .token_ids = job_.params.return_token_ids,
                         .prompt_ids = nullptr};
    if (job_.params.return_token_ids && job_.prompts.size() == 1)
      shown.prompt_ids = job_.prompts[0];
    job_.writer = std::make_shared<OpenAiWriter>(job_.head, shown, job_.params.include_usage);
  }
  for (size_t prompt = 0; prompt < job_.prompts.size(); ++prompt) {
    for (int k = 0; k < job_.params.num_choices; ++k) {
      choices_.push_back(MakeChoice(prompt));
      choices_.back().text.index = static_cast<int>(choices_.size()) - 1;
    }
  }
  parts_.resize(job_.prompts.size());
}

Generation::Choice Generation::MakeChoice(size_t prompt) const {
  const bool is_chat = job_.head.kind == CompletionKind::kChat;
  std::unique_ptr<ToolCallParser> calls;
  if (job_.tools.schemas != nullptr)
    calls = std::make_unique<ToolCallParser>(*job_.tools.schemas, job_.tools.max_calls);
  ChoiceOutputOptions options = {
      .stops = job_.params.stops,
      .include_stop = job_.params.include_stop,
      .skip_special = job_.params.skip_special,
      .splits_reasoning = is_chat && job_.params.separates_reasoning,
      .starts_in_reasoning = is_chat && StartsInReasoning(*job_.prompts[prompt], context_.markup),
      .tools = calls.get()};
  ChoiceText text;
  if (!job_.echoes.empty()) text.content = job_.echoes[prompt];
  return Choice{.calls = std::move(calls),
                .output = ChoiceOutput(context_.tokenizer, context_.markup, std::move(options)),
                .text = std::move(text),
                .records = {},
                .held_reasoning = {}};
}

void Generation::Submit() {
  if (is_over_) return;  // the client left while its body was being read
  exchange_->PostAfter(context_.config.ping_interval, [weak = weak_from_this()] {
    if (const auto generation = weak.lock()) generation->Ping();
  });
  CheckGrammarFirst();
}

// A grammar may take a while to compile, and no worker is to hear of a bad one.
void Generation::CheckGrammarFirst() {
  const std::string& grammar = job_.request.masks.grammar;
  if (grammar.empty()) return SubmitParts();
  if (const std::optional<absl::Status> known = context_.grammars.Find(grammar))
    return OnVerdict(*known);
  const bool is_taken = context_.grammars.Ask(
      grammar, [self = shared_from_this(), exchange = exchange_](const absl::Status& verdict) {
        exchange->Post([self, verdict] { self->OnVerdict(verdict); });
      });
  if (!is_taken) Refuse({429, "TooManyRequestsError", "too many grammars are being compiled", ""});
}

void Generation::OnVerdict(const absl::Status& verdict) {
  if (is_over_) return;
  if (verdict.ok()) return SubmitParts();
  if (!absl::IsInvalidArgument(verdict)) return Refuse(ToApiError(verdict));
  const std::string& param = job_.grammar_param;
  Refuse(BadRequest(absl::StrFormat("%s: %s", param, std::string(verdict.message())), param));
}

// Nothing was submitted yet.
void Generation::Refuse(const ApiError& error) {
  is_over_ = true;
  Log(LogLevel::kInfo, "request_refused",
      absl::StrFormat("request=%s status=%d param=%s error=%s", job_.request_id, error.http_status,
                      QuotedForLog(error.param), QuotedForLog(error.message)));
  RespondErrorBody(*exchange_, job_.writer->Status(error), job_.writer->Error(error),
                   job_.request_id, absl::Seconds(1));
}

void Generation::SubmitParts() {
  for (size_t part = 0; part < parts_.size(); ++part) {
    GenerateRequest request = job_.request;
    request.prompt = job_.prompts[part];
    request.masks.starts_in_reasoning = StartsInReasoning(*request.prompt, context_.markup);
    if (!request.masks.starts_in_reasoning) {
      request.masks.thinking_budget.reset();
      request.masks.reasoning_bans.clear();
    }
    parts_[part].key = context_.dispatcher.Submit(
        std::move(request),
        [self = shared_from_this(), part, exchange = exchange_](std::vector<RequestEvent> events) {
          exchange->Post([self, part, events = std::move(events)]() mutable {
            self->OnEvents(part, std::move(events));
          });
        });
  }
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
  const bool is_answer =
      std::holds_alternative<TokensEmitted>(event) || std::holds_alternative<ChoiceFinished>(event);
  return !is_over_ && is_answer && IsReportDue(part);
}

Generation::Choice& Generation::ChoiceOf(size_t part, int k) {
  return choices_[part * static_cast<size_t>(job_.params.num_choices) + static_cast<size_t>(k)];
}

// The one line per request, also when the client has left.
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
      event.status.ok()
          ? ""
          : absl::StrFormat(" error=%s", QuotedForLog(std::string(event.status.message())));
  Log(LogLevel::kInfo, "request_ended",
      absl::StrFormat("%s %s %s%s", prefix, first, second, error));
}

void Generation::On(size_t, const RequestAccepted&) {
  if (job_.params.is_stream && !is_streaming_) StartStream();
}

// True: the choice has all it may show.
bool Generation::Take(Choice& choice, const TokenRecord& record, std::vector<OutputDelta>& deltas) {
  ++choice.completion_tokens;
  choice.text.token_ids.push_back(record.token);
  choice.output.Push(record.token, deltas);
  if (choice.output.matched_stop() != nullptr) return true;
  return choice.calls != nullptr && choice.calls->is_full();
}

void Generation::On(size_t part, const TokensEmitted& event) {
  Choice& choice = ChoiceOf(part, event.choice);
  if (choice.is_ended) return;
  if (job_.params.scores_only) return EndScored(part);  // a prompt of one token has no report
  std::vector<OutputDelta> deltas;
  std::vector<TokenRecord> records;
  bool has_enough = false;
  for (const TokenRecord& record : event.tokens) {
    if (has_enough) break;
    records.push_back(record);
    has_enough = Take(choice, record, deltas);
  }
  if (has_enough) choice.output.Finish(deltas);
  Show(choice, deltas, records);
  if (!has_enough) return;
  const std::string* stop = choice.output.matched_stop();
  context_.dispatcher.Cancel(parts_[part].key, event.choice,
                             stop != nullptr ? "stop string" : "the calls are complete");
  ChoiceEnd end = {.finish_reason = "stop"};
  if (stop != nullptr)
    end = {.finish_reason = "stop", .stop_string = *stop, .has_stop_string = true};
  EndChoice(choice, std::move(end));
}

void Generation::On(size_t part, const ChoiceFinished& event) {
  Choice& choice = ChoiceOf(part, event.choice);
  if (choice.is_ended) return;
  std::vector<OutputDelta> deltas;
  choice.output.Finish(deltas);
  Show(choice, deltas, {});
  const bool is_stop = event.reason == FinishReason::kStop;
  ChoiceEnd end = {.finish_reason = is_stop ? "stop" : "length"};
  if (is_stop && event.stop_token != context_.markup.eos) end.stop_token = event.stop_token;
  if (const std::string* stop = choice.output.matched_stop();
      stop != nullptr)  // in what was held back
    end = {.finish_reason = "stop", .stop_string = *stop, .has_stop_string = true};
  EndChoice(choice, std::move(end));
}

void Generation::On(size_t, const ContinuationInexact&) {
  is_exact_ = false;
  if (is_streaming_) Send(job_.writer->Inexact());
}

void Generation::On(size_t part, const RequestEnded& event) {
  Part& state = parts_[part];
  state.cached_tokens = event.cached_tokens;
  state.stages = event.times;
  state.is_ended = true;
  if (event.status.code() == absl::StatusCode::kCancelled) {
    AbortPart(part);
  } else if (!event.status.ok()) {
    Fail(ToApiError(event.status), event.retry_after);
    return;
  }
  std::string said = job_.writer->PromptEnd(part, event.cached_tokens);
  if (is_streaming_) Send(std::move(said));
  if (std::all_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.is_ended; })) EndAll();
}

// An operator ended it: what there is of the answer is the answer.
void Generation::AbortPart(size_t part) {
  for (int k = 0; k < job_.params.num_choices; ++k) {
    Choice& choice = ChoiceOf(part, k);
    if (choice.is_ended) continue;
    std::vector<OutputDelta> deltas;
    choice.output.Finish(deltas);
    Show(choice, deltas, {});
    EndChoice(choice, {.finish_reason = "abort"});
  }
}

void Generation::Fail(const ApiError& error, absl::Duration retry_after) {
  is_over_ = true;
  for (Part& part : parts_)
    if (!part.is_ended)
      context_.dispatcher.Cancel(part.key, std::nullopt, "another prompt of the request failed");
  if (is_streaming_) {
    Send(job_.writer->StreamError(error));
    exchange_->EndStream();
  } else {
    RespondErrorBody(*exchange_, job_.writer->Status(error), job_.writer->Error(error),
                     job_.request_id, retry_after);
  }
}

void Generation::CancelAll(const std::string& reason) {
  if (std::exchange(is_over_, true)) return;
  for (const Part& part : parts_)
    if (part.key.value != 0 && !part.is_ended)
      context_.dispatcher.Cancel(part.key, std::nullopt, reason);
}

}  // namespace baton::router
