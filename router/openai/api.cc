#include "router/openai/api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"

namespace baton::router {
namespace {

constexpr std::string_view kJson = "application/json";

constexpr std::string_view kPosts[] = {
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate", "/tokenize",
    "/v1/tokenize",         "/detokenize",     "/v1/detokenize"};
constexpr std::string_view kGets[] = {"/v1/models", "/health",  "/ping",
                                      "/ready",     "/metrics", "/version"};

template <size_t kSize>
bool Contains(const std::string_view (&list)[kSize], std::string_view path) {
  return std::find(std::begin(list), std::end(list), path) != std::end(list);
}

// What of a request the masks enforce (protocol.md 3.5).
constexpr char kCapabilities[] = "{\"structured_outputs\":true,\"strict_tools\":true}";

}  // namespace

Api::Api(ApiParts parts)
    : parts_(std::move(parts)),
      sealer_(parts_.config.reasoning_secret),
      replay_(std::make_unique<CallReplay>(parts_.clock, parts_.config.replay)),
      runs_(std::make_unique<RunCache>(parts_.config.run_cache_bytes)),
      dsml_(std::make_unique<DsmlCounts>()),
      context_{.config = parts_.config,
               .tokenizer = parts_.tokenizer,
               .grammars = parts_.grammars,
               .markup = parts_.markup,
               .dispatcher = parts_.dispatcher,
               .cpu_pool = parts_.cpu_pool,
               .clock = parts_.clock,
               .replay = *replay_,
               .dsml = *dsml_},
      started_(absl::ToUnixSeconds(WallNow())) {}

void Api::Reply(const Call& call, int status, std::string json) const {
  call.exchange->Respond(status, {{"Content-Type", std::string(kJson)}, {"x-request-id", call.id}},
                         std::move(json));
}

void Api::Fail(const Call& call, const ApiError& error) const {
  Log(LogLevel::kInfo, "request_refused",
      absl::StrFormat("request=%s method=%s path=%s status=%d param=%s error=%s", call.id,
                      call.request.method, QuotedForLog(call.request.path), error.http_status,
                      QuotedForLog(error.param), QuotedForLog(error.message)));
  RespondError(*call.exchange, error, call.id, absl::Seconds(1));
}

// What is served now: a worker with a lower limit lowers it for all, so that no worker refuses what
// was admitted.
int Api::MaxContext() const {
  const int of_workers = parts_.dispatcher.View()->max_context;
  return of_workers == 0 ? parts_.config.max_context
                         : std::min(of_workers, parts_.config.max_context);
}

void Api::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  Call call = {.request = std::move(request), .id = {}, .exchange = std::move(exchange)};
  call.id = TakeOrDrawId(call.request.Header("x-request-id"));
  const std::string& method = call.request.method;
  const std::string& path = call.request.path;
  if ((method == "GET" || method == "HEAD") && RouteGet(call)) return;
  if (method == "POST" && RoutePost(call)) return;
  const bool is_known = Contains(kPosts, path) || Contains(kGets, path);
  const ApiError error = is_known
                             ? ApiError{405, "BadRequestError",
                                        absl::StrFormat("%s does not take %s", path, method), ""}
                             : ApiError{404, "NotFoundError", "Not Found", ""};
  Fail(call, error);
}

bool Api::RouteGet(const Call& call) const {
  const std::string& path = call.request.path;
  if (path == "/v1/models") {
    Models(call);
  } else if (path.rfind("/v1/models/", 0) == 0) {
    Model(call, path.substr(11));
  } else if (path == "/health" || path == "/ping") {
    Health(call);
  } else if (path == "/ready") {
    Ready(call);
  } else if (path == "/version") {
    Reply(call, 200, absl::StrFormat("{\"version\":\"%s\"}", BATON_VERSION));
  } else if (path == "/metrics") {
    call.exchange->Respond(200, {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}},
                           parts_.render_metrics());
  } else {
    return false;
  }
  return true;
}

bool Api::RoutePost(Call& call) {
  const std::string& path = call.request.path;
  if (!Contains(kPosts, path)) return false;
  if (!IsJsonType(call.request.Header("content-type"))) {
    Fail(call, {415, "BadRequestError",
                "Unsupported Media Type: Only 'application/json' is allowed", ""});
  } else if (path == "/tokenize" || path == "/v1/tokenize") {
    Answer(std::move(call), &Api::Tokenize);
  } else if (path == "/detokenize" || path == "/v1/detokenize") {
    Answer(std::move(call), &Api::Detokenize);
  } else if (is_draining_) {
    Fail(call, {503, "ServiceUnavailableError", "the router is shutting down", ""});
  } else {
    Generate(std::move(call));
  }
  return true;
}

template <typename T>
void Api::Offload(Call call, std::function<ApiResult<T>(Call&)> make,
                  std::function<void(const Call&, T)> deliver) {
  const auto shared = std::make_shared<Call>(std::move(call));
  const auto finish = [this, shared, deliver = std::move(deliver)](ApiResult<T> result) {
    if (result.ok()) {
      deliver(*shared, *std::move(result));
    } else {
      Fail(*shared, result.error());
    }
  };
  if (shared->request.body.size() <= parts_.config.offload_bytes) return finish(make(*shared));
  const bool is_taken = parts_.cpu_pool.TryRun([shared, make = std::move(make), finish] {
    const auto result = std::make_shared<ApiResult<T>>(make(*shared));
    shared->exchange->Post([result, finish] { finish(std::move(*result)); });
  });
  if (!is_taken)
    Fail(*shared, {429, "TooManyRequestsError", "too many large requests are being read", ""});
}

ApiResult<GenerationJob> Api::PrepareTranslated(HttpRequest request, const std::string& id,
                                                const JsonValue& chat) const {
  const Call call = {.request = std::move(request), .id = id, .exchange = nullptr};
  ApiResult<GenerationJob> job = PrepareChat(call, chat);
  if (!job.ok()) return job;
  if (auto error = FillRequest(call, *job)) return *error;
  job->request.account = call.request.account;
  job->head.created = absl::ToUnixSeconds(WallNow());
  return job;
}

void Api::Generate(Call call) {
  Offload<GenerationJob>(
      std::move(call), [this](Call& c) { return Prepare(c); },
      [this](const Call& c, GenerationJob job) {
        job.request.account = c.request.account;
        Generation::Start(context_, std::move(job), c.exchange);
      });
}

void Api::Answer(Call call, ApiResult<std::string> (Api::*make)(const Call&) const) {
  Offload<std::string>(
      std::move(call), [this, make](Call& c) { return (this->*make)(c); },
      [this](const Call& c, std::string json) { Reply(c, 200, std::move(json)); });
}

ApiResult<JsonValue> Api::ReadBody(const Call& call) const {
  absl::StatusOr<JsonValue> body = JsonValue::ParseDocument(call.request.body);
  if (!body.ok())
    return BadRequest(
        absl::StrFormat("JSON decode error: %s", std::string(body.status().message())), "");
  if (!body->is_object())
    return BadRequest(absl::StrFormat("body: expected object, got %s", body->KindName()), "");
  return *std::move(body);
}

void Api::Models(const Call& call) const {
  std::string list;
  for (const std::string& name : parts_.config.served_model_names) {
    std::string quoted, root;
    AppendJsonString(name, quoted);
    AppendJsonString(parts_.config.model_path, root);
    absl::StrAppendFormat(&list,
                          "%s{\"id\":%s,\"object\":\"model\",\"created\":%d,\"owned_by\":\"baton\","
                          "\"root\":%s,\"parent\":null,"
                          "\"max_model_len\":%d,\"permission\":[],\"capabilities\":%s}",
                          list.empty() ? "" : ",", quoted, started_, root, MaxContext(),
                          kCapabilities);
  }
  Reply(call, 200, absl::StrFormat("{\"object\":\"list\",\"data\":[%s]}", list));
}

void Api::Model(const Call& call, const std::string& name) const {
  const auto& names = parts_.config.served_model_names;
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    Fail(call,
         {404, "NotFoundError", absl::StrFormat("The model `%s` does not exist.", name), "model"});
    return;
  }
  std::string quoted;
  AppendJsonString(name, quoted);
  Reply(call, 200,
        absl::StrFormat("{\"id\":%s,\"object\":\"model\",\"created\":%d,\"owned_by\":\"baton\","
                        "\"max_model_len\":%d,\"capabilities\":%s}",
                        quoted, started_, MaxContext(), kCapabilities));
}

void Api::Health(const Call& call) const {
  const auto view = parts_.dispatcher.View();
  const bool can_work = view->prefill_ready > 0 && view->decode_ready > 0 && !is_draining_;
  call.exchange->Respond(can_work ? 200 : 503, {{"Content-Type", std::string(kJson)}}, "");
}

void Api::Ready(const Call& call) const {
  const auto view = parts_.dispatcher.View();
  const bool is_ready = view->prefill_ready > 0 && view->decode_ready > 0 && !is_draining_;
  std::string workers;
  for (const ClusterView::Worker& worker : view->workers) {
    std::string name, address;
    AppendJsonString(worker.name, name);
    AppendJsonString(worker.address, address);
    absl::StrAppendFormat(
        &workers,
        "%s{\"name\":%s,\"address\":%s,\"state\":\"%s\",\"serves_prefill\":%s,\"serves_decode\":%s,"
        "\"pages\":%d,"
        "\"free_pages\":%d,\"leased_pages\":%d,\"cached_pages\":%d,\"running\":%d,\"waiting\":%d,"
        "\"queued_prompt_tokens\":%d}",
        workers.empty() ? "" : ",", name, address, worker.state,
        worker.serves_prefill ? "true" : "false", worker.serves_decode ? "true" : "false",
        worker.pages, worker.free_pages, worker.leased_pages, worker.cached_pages, worker.running,
        worker.waiting, worker.queued_prompt_tokens);
  }
  Reply(call, is_ready ? 200 : 503,
        absl::StrFormat("{\"ready\":%s,\"prefill_ready\":%d,\"decode_ready\":%d,\"in_flight\":%d,"
                        "\"queued\":%d,\"workers\":[%s]}",
                        is_ready ? "true" : "false", view->prefill_ready, view->decode_ready,
                        view->in_flight, view->queued, workers));
}

}  // namespace baton::router
