#include "engine/grammar/grammar_memory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace baton::engine {

absl::Status GrammarMemory::Take(size_t bytes) {
  size_t used = used_.load(std::memory_order_relaxed);
  while (bytes <= max_bytes_ - used) {  // never above it
    if (used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed))
      return absl::OkStatus();
  }
  refusals_.fetch_add(1, std::memory_order_relaxed);
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the worker's grammars take %d of %d bytes (limits.grammar_mib), this one needs %d more",
      used, max_bytes_, bytes));
}

GrammarCharge::GrammarCharge(GrammarCharge&& other) noexcept
    : memory_(other.memory_), bytes_(std::exchange(other.bytes_, 0)) {}

GrammarCharge& GrammarCharge::operator=(GrammarCharge&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

GrammarCharge::~GrammarCharge() { memory_->Return(bytes_); }

absl::Status GrammarCharge::Resize(size_t bytes) {
  if (bytes > bytes_) {
    absl::Status taken = memory_->Take(bytes - bytes_);
    if (!taken.ok()) return taken;
  } else {
    memory_->Return(bytes_ - bytes);
  }
  bytes_ = bytes;
  return absl::OkStatus();
}

GrammarCharge GrammarCharge::Split(size_t bytes) {
  GrammarCharge part(*memory_);
  part.bytes_ = std::min(bytes, bytes_);
  bytes_ -= part.bytes_;
  return part;
}

void GrammarCharge::Add(GrammarCharge other) { bytes_ += std::exchange(other.bytes_, 0); }

}  // namespace baton::engine
