#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace baton::engine {

// Tensor name -> shard file. Empty without an index: one file holds everything.
using ShardIndex = std::map<std::string, std::string, std::less<>>;

// The text of a model.safetensors.index.json. kInvalidArgument names `path` and the tensor; every
// shard is a plain file name. Pure, any thread.
absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view text, const std::string& path);

}  // namespace baton::engine
