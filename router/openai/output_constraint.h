#pragma once

#include <optional>
#include <string>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"

namespace baton::router {

// What a request wants its answer to look like, whichever member says so.
struct OutputConstraint {
  std::string grammar;  // lark
  std::string schema;   // where a JSON schema is all there is: what follows %json
  std::string param;    // the member, for errors
};

// From `response_format`, vLLM's `structured_outputs` and `guided_*`, SGLang's `json_schema`,
// `regex` and `ebnf`: at most one of them. Errors are 400 with the member's path; whether the
// grammar can be compiled is not looked at. Pure; any thread.
ApiResult<std::optional<OutputConstraint>> ParseConstraint(const JsonValue& body);

}  // namespace baton::router
