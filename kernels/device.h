#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/statusor.h"

#include "kernels/tensor.h"

namespace baton::kernels {

// Runs fn(part) for part = 0..parts-1, possibly on several threads, and returns when all are done.
// Kernels start no threads of their own: the caller hands this in (null: in order, on the calling
// thread). No result may depend on who runs a part.
using ParallelFor = std::function<void(int parts, const std::function<void(int part)>& fn)>;

// Memory of one back end. Engine thread; allocation only at start.
class Device {
 public:
  virtual ~Device() = default;
  // Converts a checkpoint matrix into the back end's form (in float32 mode dequantised).
  virtual absl::StatusOr<const Matrix*> Upload(const HostMatrix& matrix) = 0;
  virtual absl::StatusOr<Vector> UploadVector(std::span<const float> values) = 0;
  virtual absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t> values) = 0;
  // Zeroed, aligned to 4,096, lives as long as the device.
  virtual absl::StatusOr<std::byte*> Allocate(size_t bytes) = 0;
  virtual void Zero(std::byte* data, size_t bytes) = 0;
  virtual size_t allocated_bytes() const = 0;
};

}  // namespace baton::kernels
