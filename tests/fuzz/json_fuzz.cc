#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

#include "common/check.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

// The other parser has integers as doubles if they are long.
bool HasLongInteger(std::string_view text) {
  size_t digits = 0, longest = 0;
  for (const char c : text)
    longest = std::max(longest, digits = c >= '0' && c <= '9' ? digits + 1 : 0);
  return longest > 308;
}

// Any bytes as JSON: taken if and only if another parser takes them, and as the same value; what is
// written out again reads the same.
int ParseOne(std::string_view text) {
  const auto value = JsonValue::ParseDocument(text);
  CHECK(JsonValue::Parse(text).ok() == (value.ok() && !text.starts_with("\xEF\xBB\xBF")));
  if (text.find('\0') != std::string_view::npos) {  // for the other one the text ends there
    CHECK(!value.ok());
    return 0;
  }
  if (!value.ok()) {
    const bool is_limit = value.status().message().find("levels") != std::string::npos;
    CHECK(is_limit || !nlohmann::json::accept(text));
    return 0;
  }
  if (!nlohmann::json::accept(text)) {
    CHECK(HasLongInteger(text));
    return 0;
  }
  const std::string dump = value->Dump();
  CHECK(nlohmann::json::parse(dump) == nlohmann::json::parse(text));
  const auto again = JsonValue::Parse(dump);
  CHECK(again.ok() && JsonEqual(*again, *value) && again->Dump() == dump);
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::ParseOne({reinterpret_cast<const char*>(data), size});
}
