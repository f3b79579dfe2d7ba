#pragma once

#include <string>
#include <string_view>

#include "router/text/json_value.h"

// Pieces of lark grammars as the workers' grammar back end reads them. Pure; any thread.
namespace baton::router {

// A string literal of lark.
std::string LarkLiteral(std::string_view text);
// What stands between the slashes of lark's /.../ for this regular expression.
std::string LarkRegex(std::string_view regex);
// What follows %json for `schema`, an object or `true` (any JSON): it also bounds the white space
// between JSON's tokens, in which a model may get lost.
std::string LarkSchema(const JsonValue& schema);

}  // namespace baton::router
