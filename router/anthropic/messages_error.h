#pragma once

#include <string>

#include "router/openai/api_error.h"

namespace baton::router {

// The body of an error in Anthropic's form (protocol.md 6.5), from the status of OpenAI's.
std::string MessagesErrorJson(const ApiError& error, const std::string& request_id);

// The status to send: 429 for a full queue and 503 for lack of workers are 529 there, which its
// clients try again.
int MessagesStatus(const ApiError& error);

}  // namespace baton::router
