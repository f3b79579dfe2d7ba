#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "router/text/chat_encoder.h"

namespace baton::router {

// What the router needs of a checkpoint's config.json; the weights are the workers' business.
struct ModelFacts {
  int max_context = 0;  // max_position_embeddings
  int vocab_size = 0;
  EffortProfile profile =
      EffortProfile::kPreview;  // 0731 if any dspark_* key is there (protocol.md 2.4)
};

// kNotFound: no such file; kInvalidArgument names the file and the member. Another model than
// DeepSeek-V4 is refused by name: it speaks another wire format.
absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& path);
absl::StatusOr<ModelFacts> ParseModelFacts(std::string_view json, const std::string& name);

}  // namespace baton::router
