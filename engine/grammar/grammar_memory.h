#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace baton::engine {

// What all grammars of a worker may take together: compiled ones, and the texts under way. Any
// thread.
class GrammarMemory {
 public:
  explicit GrammarMemory(size_t max_bytes) : max_bytes_(max_bytes) {}
  GrammarMemory(const GrammarMemory&) = delete;
  GrammarMemory& operator=(const GrammarMemory&) = delete;

  size_t room() const { return max_bytes_ - used(); }
  size_t used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t refusals() const { return refusals_.load(std::memory_order_relaxed); }

 private:
  friend class GrammarCharge;
  absl::Status Take(size_t bytes);
  void Return(size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }

  const size_t max_bytes_;
  std::atomic<size_t> used_ = 0;
  std::atomic<uint64_t> refusals_ = 0;
};

// Bytes taken of it; they return when this ends. One thread at a time.
class GrammarCharge {
 public:
  // `memory` outlives it.
  explicit GrammarCharge(GrammarMemory& memory) : memory_(&memory) {}
  GrammarCharge(GrammarCharge&& other) noexcept;
  GrammarCharge& operator=(GrammarCharge&& other) noexcept;
  ~GrammarCharge();

  size_t bytes() const { return bytes_; }
  // To `bytes` altogether. Less always fits; kResourceExhausted: more does not, and nothing
  // changes.
  absl::Status Resize(size_t bytes);
  // At most `bytes` of it, as another one.
  GrammarCharge Split(size_t bytes);
  // All of `other`, of the same memory.
  void Add(GrammarCharge other);

 private:
  GrammarMemory* memory_;
  size_t bytes_ = 0;
};

}  // namespace baton::engine
