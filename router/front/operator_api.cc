#include "router/front/operator_api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/front/page.h"
#include "router/http/header_values.h"
#include "router/openai/answer_format.h"
#include "router/openai/generate_params.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

constexpr absl::Duration kProbeTime = absl::Seconds(20);  // SGLang's, for its /health_generate

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

void Reply(HttpExchange& exchange, int status, const std::string& id, std::string json) {
  exchange.Respond(status, {{"Content-Type", "application/json"}, {"x-request-id", id}},
                   std::move(json));
}

// SGLang's members, and the name that the id has everywhere else.
ApiResult<AbortRequests> ParseAbort(const HttpRequest& request) {
  if (!IsJsonType(request.Header("content-type")))
    return ApiError{415, "BadRequestError",
                    "Unsupported Media Type: Only 'application/json' is allowed", ""};
  const absl::StatusOr<JsonValue> body = JsonValue::ParseDocument(request.body);
  if (!body.ok())
    return BadRequest(
        absl::StrFormat("JSON decode error: %s", std::string(body.status().message())), "");
  ApiResult<bool> all = BoolMemberOr(*body, "abort_all", false);
  if (!all.ok()) return all.error();
  AbortRequests out;
  for (const std::string_view key : {"rid", "request_id"}) {
    const JsonValue* value = body->FindNonNull(key);
    if (value == nullptr) continue;
    if (!value->is_string()) return WrongType(std::string(key), "string", *value);
    out.request_id = value->text();
  }
  if (*all) return AbortRequests{};
  if (out.request_id.empty())
    return BadRequest("rid must name a request, unless abort_all is true", "rid");
  return out;
}

std::string WorkerJson(const ClusterView::Worker& worker) {
  return absl::StrFormat(
      "{\"name\":%s,\"address\":%s,\"state\":%s,\"pages\":%d,\"free_pages\":%d,"
      "\"internal_states\":[{\"num_running_reqs\":%d,\"num_queue_reqs\":%d,"
      "\"queued_prompt_tokens\":%d,\"last_gen_throughput\":null,"
      "\"avg_spec_accept_length\":null}]}",
      Quoted(worker.name), Quoted(worker.address), Quoted(worker.state), worker.pages,
      worker.free_pages, worker.running, worker.waiting, worker.queued_prompt_tokens);
}

std::string WorkersJson(const ClusterView& view, bool ClusterView::Worker::*serves) {
  std::string list;
  for (const ClusterView::Worker& worker : view.workers)
    if (worker.*serves) list += (list.empty() ? "" : ",") + WorkerJson(worker);
  return "[" + list + "]";
}

}  // namespace

std::string OperatorApi::ModelInfo() const {
  const std::string path = Quoted(parts_.config.model_path);
  return absl::StrFormat(
      "{\"model_path\":%s,\"tokenizer_path\":%s,\"is_generation\":true,"
      "\"preferred_sampling_params\":null,\"weight_version\":\"default\","
      "\"has_image_understanding\":false}",
      path, path);
}

std::string OperatorApi::ServerInfo() const {
  const auto view = parts_.dispatcher.View();
  return absl::StrFormat(
      "{\"internal_states\":[{\"last_gen_throughput\":null,\"avg_spec_accept_length\":null}],"
      "\"prefill\":%s,\"decode\":%s,\"num_running_reqs\":%d,\"num_queue_reqs\":%d,"
      "\"version\":\"%s\"}",
      WorkersJson(*view, &ClusterView::Worker::serves_prefill),
      WorkersJson(*view, &ClusterView::Worker::serves_decode), view->in_flight - view->queued,
      view->queued, BATON_VERSION);
}

void OperatorApi::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  const std::string id = TakeOrDrawId(request.Header("x-request-id"));
  const std::string& path = request.path;
  if (path == "/health_generate") {
    GenerateOne(request, exchange);
  } else if (path == "/load" || path == "/v1/loads") {
    Reply(*exchange, 200, id,
          absl::StrFormat("{\"server_load\":%d}", parts_.dispatcher.View()->in_flight));
  } else if (path == "/get_model_info" || path == "/model_info") {
    Reply(*exchange, 200, id, ModelInfo());
  } else if (path == "/get_server_info" || path == "/server_info") {
    Reply(*exchange, 200, id, ServerInfo());
  } else if (path.size() == 1) {  // "/"
    ServePage(request, id, *exchange);
  } else if (path == "/openapi.json") {
    Reply(*exchange, 200, id, parts_.openapi);
  } else {
    Command(request, *exchange, id);
  }
}

void OperatorApi::Command(const HttpRequest& request, HttpExchange& exchange,
                          const std::string& id) const {
  const HttpHeaders text = {{"Content-Type", "text/plain; charset=utf-8"}, {"x-request-id", id}};
  const std::string& path = request.path;
  if (path == "/flush_cache" || path == "/reset_prefix_cache") {
    parts_.dispatcher.Control(DropCaches{});
    exchange.Respond(200, text, "Every worker in session was told to drop its cached prefixes.\n");
  } else if (path == "/abort_request") {
    ApiResult<AbortRequests> what = ParseAbort(request);
    if (!what.ok()) return Reply(exchange, what.error().http_status, id, ErrorJson(what.error()));
    parts_.dispatcher.Control(*std::move(what));
    exchange.Respond(200, text, "");
  } else if (path == "/start_profile" || path == "/stop_profile") {
    Reply(exchange, 501, id,
          ErrorJson({501, "NotImplementedError",
                     "profiles are not served: workers have no profiler that a router could "
                     "start; run one beside the worker",
                     ""}));
  } else {
    Reply(exchange, 404, id, ErrorJson({404, "NotFoundError", "Not Found", ""}));
  }
}

void OperatorApi::GenerateOne(const HttpRequest& request,
                              const std::shared_ptr<HttpExchange>& exchange) const {
  const std::string id = TakeOrDrawId(request.Header("x-request-id"));
  GenerateRequest probe;
  probe.request_id = id;
  probe.prompt = std::make_shared<const std::vector<int32_t>>(
      parts_.tokenizer.Encode("Hello", SpecialTokens::kPlain));
  probe.sampling.greedy = true;
  probe.finish = {.stop_tokens = {}, .max_tokens = 1, .min_tokens = 0};
  probe.arrival = request.arrival;
  probe.first_token_deadline =
      request.arrival + std::min(kProbeTime, parts_.config.request_deadline);
  probe.total_deadline = probe.first_token_deadline;
  probe.account = request.account;
  const RequestKey key = parts_.dispatcher.Submit(
      std::move(probe), [exchange, id](const std::vector<RequestEvent>& events) {
        const auto* ended = events.empty() ? nullptr : std::get_if<RequestEnded>(&events.back());
        if (ended == nullptr) return;  // it is always the last of its batch
        exchange->Post([exchange, id, status = ended->status] {
          if (status.ok()) return Reply(*exchange, 200, id, "");
          Reply(*exchange, 503, id,
                ErrorJson({503, "ServiceUnavailableError", std::string(status.message()), ""}));
        });
      });
  exchange->OnGone([this, key] { parts_.dispatcher.Cancel(key, std::nullopt, "client gone"); });
}

}  // namespace baton::router
