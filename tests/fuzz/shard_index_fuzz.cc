#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "engine/load/shard_index.h"

// Any bytes as a checkpoint's index: refused with the path, or names of files of its own folder.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto index =
      baton::engine::ParseShardIndex({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!index.ok()) {
    CHECK(index.status().message().substr(0, 5) == "fuzz:");
    return 0;
  }
  for (const auto& [tensor, shard] : *index) {
    CHECK(!shard.empty() && shard != ".." && shard.find('/') == std::string::npos);
    CHECK(shard.find('\0') == std::string::npos);
  }
  return 0;
}
