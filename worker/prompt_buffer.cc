#include "worker/prompt_buffer.h"

#include "absl/strings/str_format.h"

namespace baton::worker {

absl::Status PromptBuffer::Append(const wire::PromptChunk& chunk) {
  const size_t end = chunk.offset + chunk.tokens.size();
  if (end > expected_ || chunk.offset > tokens_.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "prompt_chunks of transfer %s: offset %d with %d tokens does not continue %d of %d tokens",
        chunk.transfer.Hex(), chunk.offset, chunk.tokens.size(), tokens_.size(), expected_));
  }
  if (chunk.is_last != (end == expected_)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("prompt_chunks of transfer %s: is_last is %d at %d of %d tokens",
                        chunk.transfer.Hex(), chunk.is_last, end, expected_));
  }
  if (chunk.offset == tokens_.size())
    tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
  return absl::OkStatus();
}

}  // namespace baton::worker
