#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "proto/wire.h"

namespace baton::worker {

// A prompt arriving in PromptChunks. Engine thread.
class PromptBuffer {
 public:
  explicit PromptBuffer(uint32_t expected) : expected_(expected) {}

  // Takes the chunk that continues the prompt; one that repeats what is here already changes
  // nothing (a worker that is both ends of a transfer may get each chunk twice). kInvalidArgument:
  // a gap, too many tokens, or a wrong is_last.
  absl::Status Append(const wire::PromptChunk& chunk);
  void Assign(const std::vector<int32_t>& tokens) { tokens_ = tokens; }

  bool IsComplete() const { return tokens_.size() == expected_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  uint32_t expected() const { return expected_; }

 private:
  uint32_t expected_;
  std::vector<int32_t> tokens_;
};

}  // namespace baton::worker
