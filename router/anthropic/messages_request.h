#pragma once

#include <cstddef>
#include <string>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"

namespace baton::router {

// A request of Anthropic's as one of /v1/chat/completions.
struct TranslatedChat {
  std::string body;          // JSON
  size_t text_bytes = 0;     // of all messages: too many of them cannot fit, however they are cut
  size_t dropped_tools = 0;  // the API owner's server tools, which nothing here can run
};

// The conversion of protocol.md 6.2 for the body of /v1/messages, an object. `needs_max_tokens`
// false: of count_tokens, where only the prompt counts. 400 with the member's path in Anthropic's
// spelling ("messages.0.content"). Ranges of numbers are left to the chat's own checks. Pure; any
// thread.
ApiResult<TranslatedChat> TranslateMessages(const JsonValue& body, bool needs_max_tokens);

}  // namespace baton::router
