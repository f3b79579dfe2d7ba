#include "engine/load/shard_index.h"

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace baton::engine {

using nlohmann::json;

constexpr std::string_view kNotInNames("/\0", 2);

absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view text, const std::string& path) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto map = root.is_object() ? root.find("weight_map") : root.end();
  if (!root.is_object() || map == root.end() || !map->is_object())
    return absl::InvalidArgumentError(absl::StrFormat("%s: weight_map is missing", path));
  ShardIndex shards;
  for (const auto& [name, file] : map->items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    if (shard.empty() || shard == ".." || shard.find_first_of(kNotInNames) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: tensor %s: shard is no file name of this folder", path, name));
    }
    shards.emplace(name, shard);
  }
  return shards;
}

}  // namespace baton::engine
