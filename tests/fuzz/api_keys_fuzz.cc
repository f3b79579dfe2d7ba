#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/http/api_keys.h"

// Any bytes as a key file: refused with the line, or keys with names that may label a metric.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto keys = baton::router::ParseApiKeys(text, "fuzz");
  if (!keys.ok()) {
    CHECK(keys.status().message().rfind("fuzz:", 0) == 0);
    return 0;
  }
  for (const auto& key : *keys) {
    CHECK(!key.name.empty() && key.name.size() <= 64 && key.name != "none");
    CHECK(key.name.find_first_of("\"\\\n{}") == std::string::npos);
    CHECK(key.requests_per_minute >= 0 && key.tokens_per_minute >= 0);
  }
  return 0;
}
