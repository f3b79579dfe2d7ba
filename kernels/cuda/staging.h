#pragma once

#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"

namespace baton::kernels::cuda {

// Small arguments on their way to the GPU: pinned host memory and its device twin, a ring that
// batches take pieces of. A batch: Begin, any number of Put, Flush; then kernels queued on the
// stream may read what Put returned, until the next Begin. Begin waits only where a batch that used
// the same memory has not been copied yet, so that a step can be queued ahead of the GPU. Engine
// thread.
class Staging {
 public:
  absl::Status Create(CudaDevice& device, size_t batch_bytes);
  static size_t DeviceBytes(size_t batch_bytes) { return kBatches * batch_bytes; }
  ~Staging();

  absl::Status Begin();
  // Where a copy of the values will lie in device memory. The batch must have room (CHECK).
  template <typename T>
  T* Put(std::span<const T> values) {
    return reinterpret_cast<T*>(PutBytes(values.data(), values.size_bytes()));
  }
  bool HasRoom(size_t bytes) const { return used_ + bytes + kAlignment <= batch_bytes_; }
  absl::Status Flush();

 private:
  static constexpr size_t kBatches = 4;  // of full size
  static constexpr size_t kMaxInFlight = 64;
  static constexpr size_t kAlignment = 16;
  // Bytes of the ring whose copy is queued.
  struct Piece {
    size_t begin = 0, end = 0;
    cudaEvent_t copied = nullptr;
  };

  std::byte* PutBytes(const void* data, size_t bytes);
  absl::Status WaitForOldest();

  CudaDevice* device_ = nullptr;
  size_t batch_bytes_ = 0, used_ = 0, first_ = 0;         // of the open batch
  std::byte *host_ = nullptr, *device_memory_ = nullptr;  // [kBatches * batch_bytes]
  std::deque<Piece> in_flight_;                           // oldest first
  std::vector<cudaEvent_t> free_events_;
};

}  // namespace baton::kernels::cuda
