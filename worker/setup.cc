#include "worker/setup.h"

#include "absl/strings/str_format.h"

namespace baton::worker {

absl::Status CheckTokens(const WorkerSetup& setup, std::string_view field,
                         std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token >= 0 && token < setup.vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: token id %d, the vocabulary has %d", field, token, setup.vocab_size));
  }
  return absl::OkStatus();
}

absl::Status CheckMasks(const WorkerSetup& setup, const MaskRules& masks) {
  if (masks.IsEmpty()) return absl::OkStatus();
  if (setup.masks == nullptr) {
    return absl::InvalidArgumentError(
        "masks are set, but this worker has no vocabulary: its checkpoint has no tokenizer.json");
  }
  return setup.masks->Check(masks);
}

}  // namespace baton::worker
