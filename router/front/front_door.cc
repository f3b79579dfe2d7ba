#include "router/front/front_door.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "router/anthropic/messages_error.h"
#include "router/http/header_values.h"
#include "router/openai/answer_format.h"

namespace baton::router {
namespace {

bool IsAnthropic(const HttpRequest& request) {
  const std::string_view path = request.path;
  const bool is_models = path.starts_with("/v1/models");
  return path == "/v1/messages" || path.starts_with("/v1/messages/") ||
         (is_models && !request.Header("anthropic-version").empty());
}

// In the form of the surface that was asked for.
void Fail(const HttpRequest& request, const ApiError& error, HttpHeaders headers,
          HttpExchange& exchange) {
  const std::string id = TakeOrDrawId(request.Header("x-request-id"));
  const bool is_anthropic = IsAnthropic(request);
  const int status = is_anthropic ? MessagesStatus(error) : error.http_status;
  Log(LogLevel::kInfo, "request_refused",
      absl::StrFormat("request=%s method=%s path=%s status=%d error=%s", id, request.method,
                      QuotedForLog(request.path), status, QuotedForLog(error.message)));
  headers.emplace_back("Content-Type", "application/json");
  headers.emplace_back("x-request-id", id);
  if (is_anthropic) headers.emplace_back("request-id", id);
  exchange.Respond(status, std::move(headers),
                   is_anthropic ? MessagesErrorJson(error, id) : ErrorJson(error));
}

// The scheme's name in any case (RFC 9110).
std::string_view BearerToken(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  const auto is_same = [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + 32 : b); };
  if (header.size() <= kScheme.size() ||
      !std::equal(kScheme.begin(), kScheme.end(), header.begin(), is_same))
    return "";
  return header.substr(std::min(header.find_first_not_of(' ', kScheme.size()), header.size()));
}

std::shared_ptr<KeyAccount> AccountOf(const ApiKeys& keys, HttpRequest& request) {
  std::shared_ptr<KeyAccount> account = keys.Find(BearerToken(request.Header("authorization")));
  if (account == nullptr) account = keys.Find(request.Header("x-api-key"));
  request.headers.erase("authorization");  // nobody needs them further on
  request.headers.erase("x-api-key");
  return account;
}

}  // namespace

RequestHandler& FrontDoor::HandlerOf(const Route& route, const HttpRequest& request) const {
  if (IsAnthropic(request)) return parts_.anthropic;
  switch (route.surface) {
    case Surface::kAnthropic:
      return parts_.anthropic;
    case Surface::kOperator:
      return parts_.operators;
    case Surface::kOpenAi:
      break;
  }
  return parts_.openai;
}

bool FrontDoor::IsAdmin(const HttpRequest& request) const {
  return parts_.serves_admin || (request.account != nullptr && request.account->spec().is_admin);
}

// Before the body: who has no key cannot make this process hold one.
bool FrontDoor::AdmitHead(HttpRequest& request, HttpExchange& plain) {
  if (parts_.keys.empty()) return true;
  const std::string origin(request.Header("origin"));
  ExchangeWithHeaders exchange(plain, cors_.AnswerHeaders(origin));
  const Route* const route = FindRoute(request.method, request.path).route;
  const bool is_open = (route != nullptr && route->is_open) || request.method == "OPTIONS";
  if (is_open && !request.HasBody()) return true;
  request.account = AccountOf(parts_.keys, request);
  if (request.account == nullptr) {
    ++num_unauthorized_;
    Fail(request, {401, "authentication_error", "no valid API key was given", ""},
         {{"WWW-Authenticate", "Bearer"}}, exchange);
    return false;
  }
  const auto refusal = request.account->Admit(route != nullptr && route->is_generation);
  if (!refusal) return true;
  const auto seconds = static_cast<int64_t>(std::ceil(absl::ToDoubleSeconds(refusal->retry_after)));
  Fail(request, {429, kRateLimitType, refusal->message, ""},
       {{"Retry-After", absl::StrFormat("%d", std::max<int64_t>(1, seconds))}}, exchange);
  return false;
}

void FrontDoor::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  const std::string origin(request.Header("origin"));
  if (request.method == "OPTIONS" && cors_.is_on()) {
    exchange->Respond(
        204, cors_.PreflightHeaders(origin, request.Header("access-control-request-headers")), "");
    return;
  }
  HttpHeaders headers = cors_.AnswerHeaders(origin);
  if (!headers.empty())
    exchange = std::make_shared<ExchangeWithHeaders>(std::move(exchange), std::move(headers));
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (!std::all_of(request.path.begin(), request.path.end(), is_ascii)) {
    request.path.assign(1, '/');  // it is not to be repeated
    return Fail(request,
                {400, "BadRequestError", "the path has bytes that are not ASCII: encode them", ""},
                {}, *exchange);
  }
  const FoundRoute found = FindRoute(request.method, request.path);
  const bool is_hidden = found.is_admin && !IsAdmin(request);
  if (found.route != nullptr && !is_hidden) {
    RequestHandler& handler = HandlerOf(*found.route, request);
    if (found.route->path.ends_with('}')) request.path = DecodePath(request.path);
    handler.Handle(std::move(request), std::move(exchange));
  } else if (found.is_path_known && !is_hidden) {
    Fail(request,
         {405, "BadRequestError",
          absl::StrFormat("%s does not take %s", request.path, request.method), ""},
         {{"Allow", std::string(MethodsOf(request.path))}}, *exchange);
  } else if (const std::string_view service = UnsupportedService(request.path); !service.empty()) {
    Fail(request,
         {404, "NotFoundError", absl::StrFormat("The model does not support %s API", service), ""},
         {}, *exchange);
  } else {
    Fail(request, {404, "NotFoundError", "Not Found", ""}, {}, *exchange);
  }
}

void FrontDoor::Refuse(const HttpRefusal& refusal, HttpExchange& exchange) {
  ExchangeWithHeaders with_headers(exchange, cors_.AnswerHeaders(refusal.origin));
  HttpRequest request;
  request.method = "-";  // it may not have been read
  request.path = refusal.path;
  request.headers = {{"x-request-id", refusal.request_id}};
  const bool is_full = refusal.status == 429;
  HttpHeaders headers;
  if (is_full) headers.emplace_back("Retry-After", "1");
  Fail(request,
       {refusal.status, is_full ? "TooManyRequestsError" : "BadRequestError", refusal.message,
        refusal.field},
       std::move(headers), with_headers);
}

}  // namespace baton::router
