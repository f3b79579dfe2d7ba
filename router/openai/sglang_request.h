#pragma once

#include <string>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"

namespace baton::router {

// A body of SGLang's /generate as one of /v1/completions.
struct TranslatedGenerate {
  std::string completion;             // JSON, without the prompt
  const JsonValue* prompt = nullptr;  // a member of the body
  std::string prompt_name;            // of that member: "text" or "input_ids"
  bool is_list = false;               // several prompts: the answer is a list
};

// protocol.md 7.2. 400 with the member's path; ranges are left to the completion's own checks.
// Pure; any thread.
ApiResult<TranslatedGenerate> TranslateGenerate(const JsonValue& body);

// An error of the completion's checks with the names that the client used.
ApiError InGenerateNames(ApiError error, const std::string& prompt_name);

}  // namespace baton::router
