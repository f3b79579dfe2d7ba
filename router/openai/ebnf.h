#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace baton::router {

// A grammar in the EBNF of llama.cpp and xgrammar (`root ::= "a" [0-9]+ | rule`) as lark.
// kInvalidArgument says what is wrong and in which line. Linear; pure; any thread.
absl::StatusOr<std::string> EbnfToLark(std::string_view text);

}  // namespace baton::router
