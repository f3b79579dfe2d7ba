#include "router/anthropic/messages_api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "router/anthropic/messages_error.h"
#include "router/anthropic/messages_request.h"
#include "router/anthropic/messages_writer.h"

namespace baton::router {
namespace {

constexpr size_t kBytesPerToken = 128;  // the longest token, as for chats (protocol.md 5.7)
constexpr char kModels[] = "/v1/models";
constexpr char kCountTokens[] = "/v1/messages/count_tokens";

HttpHeaders JsonHeaders(const std::string& id) {
  return {{"Content-Type", "application/json"}, {"x-request-id", id}};
}

// Anthropic's clients read the request's id from a header of another name.
class MessagesExchange final : public HttpExchange {
 public:
  MessagesExchange(std::shared_ptr<HttpExchange> inner, std::string id)
      : inner_(std::move(inner)), id_(std::move(id)) {}

  void Respond(int status, HttpHeaders headers, std::string body) override {
    headers.emplace_back("request-id", id_);
    inner_->Respond(status, std::move(headers), std::move(body));
  }
  void StartStream(int status, HttpHeaders headers) override {
    headers.emplace_back("request-id", id_);
    inner_->StartStream(status, std::move(headers));
  }
  void Write(std::string piece) override { inner_->Write(std::move(piece)); }
  void EndStream() override { inner_->EndStream(); }
  void OnGone(std::function<void()> callback) override { inner_->OnGone(std::move(callback)); }
  void Post(std::function<void()> task) override { inner_->Post(std::move(task)); }
  void PostAfter(absl::Duration delay, std::function<void()> task) override {
    inner_->PostAfter(delay, std::move(task));
  }

 private:
  const std::shared_ptr<HttpExchange> inner_;
  const std::string id_;
};

// Clients look for the first words, to compact what they send (protocol.md 6.5).
ApiError TooLong(int64_t prompt, int64_t limit) {
  return BadRequest(absl::StrFormat("prompt is too long: %d tokens > %d maximum", prompt, limit),
                    "messages");
}

std::string ModelJson(const std::string& name, const std::string& created_at, int context) {
  std::string quoted;
  AppendJsonString(name, quoted);
  return absl::StrFormat(
      "{\"type\":\"model\",\"id\":%s,\"display_name\":%s,\"created_at\":\"%s\","
      "\"max_input_tokens\":%d,\"max_tokens\":%d}",
      quoted, quoted, created_at, context, context);
}

// An error of the chat's checks that is about the form of the answer.
ApiError InOwnNames(ApiError error) {
  constexpr std::string_view kChats = "response_format", kOwn = "output_config.format";
  if (error.message.starts_with(kChats)) error.message.replace(0, kChats.size(), kOwn);
  if (std::string_view(error.param).starts_with(kChats))
    error.param.replace(0, kChats.size(), kOwn);
  return error;
}

}  // namespace

struct MessagesApi::Call {
  HttpRequest request;
  std::string id;
  std::shared_ptr<HttpExchange> exchange;
};

MessagesApi::MessagesApi(MessagesParts parts)
    : parts_(parts),
      started_(absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", WallNow(), absl::UTCTimeZone())) {}

void MessagesApi::Fail(const Call& call, const ApiError& error) const {
  Log(LogLevel::kInfo, "request_refused",
      absl::StrFormat("request=%s method=%s path=%s status=%d param=%s error=%s", call.id,
                      call.request.method, QuotedForLog(call.request.path), MessagesStatus(error),
                      QuotedForLog(error.param), QuotedForLog(error.message)));
  HttpHeaders headers = JsonHeaders(call.id);
  const int status = MessagesStatus(error);
  if (status == 529) headers.emplace_back("Retry-After", "1");
  call.exchange->Respond(status, std::move(headers), MessagesErrorJson(error, call.id));
}

void MessagesApi::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  const auto call = std::make_shared<Call>();
  call->request = std::move(request);
  call->id = TakeOrDrawId(call->request.Header("x-request-id"));
  call->exchange = std::make_shared<MessagesExchange>(std::move(exchange), call->id);
  if (call->request.path.starts_with(kModels)) return Models(*call);
  const std::string_view type = call->request.Header("content-type");
  if (!IsJsonType(type))
    return Fail(*call, {415, "BadRequestError",
                        "Unsupported Media Type: Only 'application/json' is allowed", ""});
  const bool is_count = call->request.path == kCountTokens;
  if (!is_count && parts_.chats.is_draining())
    return Fail(*call, {503, "ServiceUnavailableError", "the router is shutting down", ""});
  Prepare(call, /*needs_max_tokens=*/!is_count);
}

void MessagesApi::Models(const Call& call) const {
  const auto& names = parts_.config.served_model_names;
  const std::string wanted = call.request.path.substr(
      std::min(call.request.path.size(), std::string_view(kModels).size() + 1));
  if (!wanted.empty()) {
    if (std::find(names.begin(), names.end(), wanted) == names.end())
      return Fail(call, {404, "NotFoundError", absl::StrFormat("model: %s", wanted), "model"});
    call.exchange->Respond(200, JsonHeaders(call.id),
                           ModelJson(wanted, started_, parts_.chats.MaxContext()));
    return;
  }
  std::string list, first, last;
  for (const std::string& name : names)
    list += (list.empty() ? "" : ",") + ModelJson(name, started_, parts_.chats.MaxContext());
  AppendJsonString(names.front(), first);
  AppendJsonString(names.back(), last);
  call.exchange->Respond(
      200, JsonHeaders(call.id),
      absl::StrFormat("{\"data\":[%s],\"has_more\":false,\"first_id\":%s,\"last_id\":%s}", list,
                      first, last));
}

void MessagesApi::Prepare(const std::shared_ptr<Call>& call, bool needs_max_tokens) {
  const auto finish = [this, call, needs_max_tokens](ApiResult<GenerationJob> job) {
    Deliver(call, std::move(job), /*is_count=*/!needs_max_tokens);
  };
  if (call->request.body.size() <= parts_.config.offload_bytes)
    return finish(MakeJob(*call, needs_max_tokens));
  const bool is_taken = parts_.cpu_pool.TryRun([this, call, needs_max_tokens, finish] {
    const auto job = std::make_shared<ApiResult<GenerationJob>>(MakeJob(*call, needs_max_tokens));
    call->exchange->Post([job, finish] { finish(std::move(*job)); });
  });
  if (!is_taken)
    Fail(*call, {429, "TooManyRequestsError", "too many large requests are being read", ""});
}

ApiResult<GenerationJob> MessagesApi::MakeJob(Call& call, bool needs_max_tokens) {
  absl::StatusOr<JsonValue> body = JsonValue::ParseDocument(call.request.body);
  if (!body.ok())
    return BadRequest(
        absl::StrFormat("JSON decode error: %s", std::string(body.status().message())), "");
  if (!body->is_object())
    return BadRequest(absl::StrFormat("body: expected object, got %s", body->KindName()), "");
  ApiResult<TranslatedChat> translated = TranslateMessages(*body, needs_max_tokens);
  if (!translated.ok()) return translated.error();
  num_dropped_tools_ += translated->dropped_tools;
  const auto context = static_cast<size_t>(parts_.chats.MaxContext());
  if (translated->text_bytes > kBytesPerToken * context)
    return TooLong(static_cast<int64_t>(translated->text_bytes / kBytesPerToken),
                   parts_.chats.MaxContext());
  const absl::StatusOr<JsonValue> chat = JsonValue::Parse(translated->body);
  if (!chat.ok()) return BadRequest(std::string(chat.status().message()), "");
  call.request.body.clear();
  ApiResult<GenerationJob> job = parts_.chats.PrepareTranslated(call.request, call.id, *chat);
  if (!job.ok()) return InOwnNames(job.error());
  job->grammar_param = InOwnNames(BadRequest("", job->grammar_param)).param;
  job->head.id = "msg_" + call.id;
  job->writer = std::make_shared<MessagesWriter>(call.id, job->head.model);
  if (!needs_max_tokens) return job;
  if (auto error = FitLength(*job)) return *error;
  return job;
}

// The answer's limit gives way to the context's: clients ask for their most (protocol.md 5.7).
std::optional<ApiError> MessagesApi::FitLength(GenerationJob& job) const {
  const int64_t context = parts_.chats.MaxContext();
  const auto prompt = static_cast<int64_t>(job.prompts.front()->size());
  if (prompt >= context) return TooLong(prompt, context);
  int64_t& most = job.request.finish.max_tokens;
  most = std::min(most, context - prompt);
  job.params.max_tokens = most;
  return std::nullopt;
}

void MessagesApi::Deliver(const std::shared_ptr<Call>& call, ApiResult<GenerationJob> job,
                          bool is_count) const {
  if (!job.ok()) return Fail(*call, job.error());
  if (is_count) {
    call->exchange->Respond(200, JsonHeaders(call->id),
                            absl::StrFormat("{\"input_tokens\":%d}", job->prompts.front()->size()));
    return;
  }
  parts_.chats.Start(*std::move(job), call->exchange);
}

}  // namespace baton::router
