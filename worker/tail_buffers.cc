#include "worker/tail_buffers.h"

#include "common/check.h"

namespace baton::worker {

TailBuffers::TailBuffers(std::span<std::byte> memory, uint64_t stride)
    : memory_(memory), stride_(stride), is_taken_(stride == 0 ? 0 : memory.size() / stride, false) {
  for (int i = total() - 1; i >= 0; --i) free_.push_back(i);
}

std::optional<int> TailBuffers::Take() {
  if (free_.empty()) return std::nullopt;
  const int buffer = free_.back();
  free_.pop_back();
  is_taken_[static_cast<size_t>(buffer)] = true;
  return buffer;
}

void TailBuffers::Return(int buffer) {
  CHECK(buffer >= 0 && buffer < total() && is_taken_[static_cast<size_t>(buffer)]);
  is_taken_[static_cast<size_t>(buffer)] = false;
  free_.push_back(buffer);
}

std::span<std::byte> TailBuffers::Data(int buffer, uint64_t bytes) const {
  CHECK(buffer >= 0 && buffer < total() && bytes <= stride_);
  return memory_.subspan(static_cast<uint64_t>(buffer) * stride_, bytes);
}

}  // namespace baton::worker
