#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "router/openai/api_error.h"
#include "router/openai/sealed_text.h"
#include "router/text/json_value.h"

namespace baton::router {

// What a response object repeats of its request, as JSON (protocol.md 5.8).
struct ResponsesEcho {
  std::string tools = "[]";
  std::string tool_choice = "\"auto\"";
  std::string parallel_tool_calls = "true";
  std::string temperature = "1.0";
  std::string top_p = "1.0";
  std::string max_output_tokens = "null";
  std::string instructions = "null";
  std::string effort = "null";
  std::string format = "{\"type\":\"text\"}";
  std::string metadata = "{}";
  bool seals_reasoning = false;  // include has reasoning.encrypted_content
};

// Where a message of the chat comes from, as a client's path: "input[3]", "instructions".
struct ResponsesSource {
  std::string item;
  std::vector<std::string> calls{};  // of its tool calls
};

// A body of /v1/responses as one of /v1/chat/completions.
struct TranslatedResponse {
  std::string chat;  // JSON
  ResponsesEcho echo;
  std::vector<ResponsesSource> sources;  // by message
};

// The stateless subset of protocol.md 5.8. 400 with the member's path; ranges of numbers and the
// conversation as a whole are left to the chat's own checks. Pure; any thread.
ApiResult<TranslatedResponse> TranslateResponses(const JsonValue& body, const TextSealer& sealer);

// An error of the chat's checks with the names that the client used.
ApiError InOwnNames(ApiError error, const std::vector<ResponsesSource>& sources);

}  // namespace baton::router
