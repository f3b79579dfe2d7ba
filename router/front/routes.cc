#include "router/front/routes.h"

#include <charconv>
#include <utility>

#include "router/text/utf8.h"

namespace baton::router {
namespace {

constexpr std::string_view kJson = "application/json";
constexpr std::string_view kText = "text/plain";
constexpr std::string_view kIdPart = "{id}";

constexpr Route kRoutes[] = {
    {.method = "POST",
     .path = "/v1/chat/completions",
     .summary = "A chat answer, whole or streamed.",
     .request = "ChatRequest",
     .answer = kJson,
     .is_generation = true},
    {.method = "POST",
     .path = "/v1/completions",
     .summary = "A text completion, whole or streamed.",
     .request = "CompletionRequest",
     .answer = kJson,
     .is_generation = true},
    {.method = "POST",
     .path = "/v1/responses",
     .summary = "An answer in the form of OpenAI's responses, whole or streamed.",
     .request = "ResponsesRequest",
     .answer = kJson,
     .is_generation = true},
    {.method = "POST",
     .path = "/generate",
     .summary = "A completion in SGLang's own form, whole or streamed.",
     .request = "GenerateRequest",
     .answer = kJson,
     .is_generation = true},
    {.method = "POST",
     .path = "/v1/messages",
     .surface = Surface::kAnthropic,
     .summary = "An answer in Anthropic's form, whole or streamed.",
     .request = "MessagesRequest",
     .answer = kJson,
     .is_generation = true},
    {.method = "POST",
     .path = "/v1/messages/count_tokens",
     .surface = Surface::kAnthropic,
     .summary = "The prompt tokens of a request to /v1/messages.",
     .request = "MessagesRequest",
     .answer = kJson},
    {.method = "GET",
     .path = "/v1/models",
     .summary = "The served names; with the header anthropic-version in Anthropic's form.",
     .answer = kJson},
    {.method = "GET", .path = "/v1/models/{id}", .summary = "One served name.", .answer = kJson},
    {.method = "POST",
     .path = "/tokenize",
     .summary = "Token ids of a text, or of a chat as it would be sent.",
     .request = "TokenizeRequest",
     .answer = kJson},
    {.method = "POST",
     .path = "/v1/tokenize",
     .summary = "As /tokenize.",
     .request = "TokenizeRequest",
     .answer = kJson},
    {.method = "POST",
     .path = "/detokenize",
     .summary = "The text of token ids.",
     .request = "DetokenizeRequest",
     .answer = kJson},
    {.method = "POST",
     .path = "/v1/detokenize",
     .summary = "As /detokenize.",
     .request = "DetokenizeRequest",
     .answer = kJson},
    {.method = "GET",
     .path = "/health",
     .summary = "200 when the cluster can take work, else 503.",
     .answer = kJson,
     .is_open = true},
    {.method = "GET", .path = "/ping", .summary = "As /health.", .answer = kJson, .is_open = true},
    {.method = "GET",
     .path = "/health_generate",
     .surface = Surface::kOperator,
     .summary = "200 when a token could be generated now, else 503.",
     .answer = kJson,
     .is_generation = true},
    {.method = "GET",
     .path = "/ready",
     .summary = "200 when a prefill and a decode worker are ready, else 503; lists the workers.",
     .answer = kJson,
     .is_open = true},
    {.method = "GET",
     .path = "/metrics",
     .summary = "Prometheus text 0.0.4.",
     .answer = kText,
     .is_open = true},
    {.method = "GET",
     .path = "/",
     .surface = Surface::kOperator,
     .summary = "A chat page for the browser.",
     .answer = "text/html",
     .is_open = true},
    {.method = "GET",
     .path = "/version",
     .summary = "The program's version.",
     .answer = kJson,
     .is_open = true},
    {.method = "GET",
     .path = "/load",
     .surface = Surface::kOperator,
     .summary = "Requests in flight.",
     .answer = kJson},
    {.method = "GET",
     .path = "/v1/loads",
     .surface = Surface::kOperator,
     .summary = "As /load.",
     .answer = kJson},
    {.method = "GET",
     .path = "/get_model_info",
     .surface = Surface::kOperator,
     .summary = "The model, as SGLang's clients ask for it.",
     .answer = kJson},
    {.method = "GET",
     .path = "/model_info",
     .surface = Surface::kOperator,
     .summary = "As /get_model_info.",
     .answer = kJson},
    {.method = "GET",
     .path = "/get_server_info",
     .surface = Surface::kOperator,
     .summary = "The workers and their load, as SGLang's clients ask for it.",
     .answer = kJson,
     .is_admin = true},
    {.method = "GET",
     .path = "/server_info",
     .surface = Surface::kOperator,
     .summary = "As /get_server_info.",
     .answer = kJson,
     .is_admin = true},
    {.method = "POST",
     .path = "/flush_cache",
     .surface = Surface::kOperator,
     .summary = "Every worker forgets its cached prefixes; as SGLang names it.",
     .answer = kText,
     .is_admin = true},
    {.method = "POST",
     .path = "/reset_prefix_cache",
     .surface = Surface::kOperator,
     .summary = "As /flush_cache; as vLLM names it.",
     .answer = kText,
     .is_admin = true},
    {.method = "POST",
     .path = "/abort_request",
     .surface = Surface::kOperator,
     .summary = "Ends requests in flight; what there is of their answers is sent.",
     .request = "AbortRequest",
     .answer = kText,
     .is_admin = true},
    {.method = "POST",
     .path = "/start_profile",
     .surface = Surface::kOperator,
     .summary = "501: workers have no profiler that a router could start.",
     .answer = kJson,
     .is_admin = true},
    {.method = "POST",
     .path = "/stop_profile",
     .surface = Surface::kOperator,
     .summary = "As /start_profile.",
     .answer = kJson,
     .is_admin = true},
    {.method = "GET",
     .path = "/openapi.json",
     .surface = Surface::kOperator,
     .summary = "This document.",
     .answer = kJson,
     .is_open = true},
};

bool Matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with(kIdPart)) return pattern == path;
  const std::string_view before = pattern.substr(0, pattern.size() - kIdPart.size());
  return path.starts_with(before) && path.size() > before.size();
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char character = DecodeUtf8(text);
    if (character.kind != Utf8Char::Kind::kValid) return false;
    text.remove_prefix(character.size);
  }
  return true;
}

}  // namespace

std::string DecodePath(const std::string& path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    uint8_t byte = 0;
    const char* const digits = path.data() + i + 1;
    const bool is_code = path[i] == '%' && i + 2 < path.size() &&
                         std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2;
    const bool is_taken = is_code && byte >= 0x20 && byte != 0x7f;
    out += is_taken ? static_cast<char>(byte) : path[i];
    if (is_taken) i += 2;
  }
  return IsUtf8(out) ? out : path;
}

std::span<const Route> Routes() { return kRoutes; }

FoundRoute FindRoute(std::string_view method, std::string_view path) {
  FoundRoute found;
  for (const Route& route : kRoutes) {
    if (!Matches(route.path, path)) continue;
    found.is_path_known = true;
    found.is_admin = route.is_admin;
    if (route.method == method || (route.method == "GET" && method == "HEAD")) {
      found.route = &route;
      break;
    }
  }
  return found;
}

std::string_view MethodsOf(std::string_view path) {
  if (FindRoute("GET", path).route == nullptr) return "POST";
  return FindRoute("POST", path).route == nullptr ? "GET, HEAD" : "GET, HEAD, POST";
}

std::string_view UnsupportedService(std::string_view path) {
  constexpr std::pair<std::string_view, std::string_view> kServices[] = {
      {"/v1/embeddings", "Embeddings"},
      {"/v1/score", "Score"},
      {"/score", "Score"},
      {"/v1/rerank", "Rerank"},
      {"/rerank", "Rerank"},
      {"/pooling", "Pooling"},
      {"/classify", "Classification"},
      {"/v1/audio/transcriptions", "Transcriptions"},
      {"/v1/audio/translations", "Translations"},
      {"/v1/audio/speech", "Speech"},
  };
  for (const auto& [known, name] : kServices)
    if (known == path) return name;
  return "";
}

}  // namespace baton::router
