#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"

namespace baton::router {

// The two ways in which one parameter of a strict tool may be written (protocol.md 3.1).
struct ParameterForms {
  std::vector<std::string>
      texts;         // string="true": bodies of lark terminals up to `</`, any of them
  std::string json;  // string="false": a JSON schema without strings; empty: none
};

inline constexpr std::string_view kAnyText = "/(?s:.*)<\\//";

// Forms of `schema`, whose references are looked up in `root`. `path` is where it stands, for
// errors; 400 names the keyword that raw text cannot keep to. Pure; any thread.
ApiResult<ParameterForms> SplitParameter(const JsonValue& schema, const JsonValue& root,
                                         const std::string& path);

}  // namespace baton::router
