#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace baton::worker {

// Registered host memory for wire tails on their way in or out: a fixed number of equal buffers.
// Engine thread.
class TailBuffers {
 public:
  TailBuffers(std::span<std::byte> memory, uint64_t stride);
  // None when all are taken.
  std::optional<int> Take();
  void Return(int buffer);
  std::span<std::byte> Data(int buffer, uint64_t bytes) const;
  int num_free() const { return static_cast<int>(free_.size()); }
  int total() const { return static_cast<int>(is_taken_.size()); }

 private:
  const std::span<std::byte> memory_;
  const uint64_t stride_;
  std::vector<bool> is_taken_;
  std::vector<int> free_;
};

}  // namespace baton::worker
