#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"

namespace baton::kernels::cuda {

// Small arguments on their way to the GPU: pinned host memory and its device twin, in a ring of
// batches. A batch: Begin, any number of Put, Flush; then kernels queued on the stream may read
// what Put returned, until as many batches later as the ring has. Begin waits only if the copy of
// the batch that used the same memory has not finished. Engine thread.
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
  static constexpr size_t kBatches = 4;
  static constexpr size_t kAlignment = 16;
  std::byte* PutBytes(const void* data, size_t bytes);

  CudaDevice* device_ = nullptr;
  size_t batch_bytes_ = 0, used_ = 0, current_ = 0;
  std::byte *host_ = nullptr, *device_memory_ = nullptr;  // [kBatches, batch_bytes]
  std::array<cudaEvent_t, kBatches> copied_ = {};
};

}  // namespace baton::kernels::cuda
