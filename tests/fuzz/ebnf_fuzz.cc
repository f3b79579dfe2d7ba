#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/openai/ebnf.h"

// Clients' EBNF grammars: any bytes are translated or refused, and what comes out begins with a
// rule that leads to root.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<std::string> lark = baton::router::EbnfToLark(text);
  if (!lark.ok()) {
    CHECK(lark.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  CHECK(lark->starts_with("start: "));
  CHECK(lark->find('\x01') == std::string::npos);
  return 0;
}
