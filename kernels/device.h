#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/memory_queue.h"
#include "kernels/tensor.h"

namespace baton::kernels {

// Runs fn(part) for part = 0..parts-1, possibly on several threads, and returns when all are done.
// Kernels start no threads of their own: the caller hands this in (null: in order, on the calling
// thread). No result may depend on who runs a part.
using ParallelFor = std::function<void(int parts, const std::function<void(int part)>& fn)>;

// Of the whole device, whoever uses it; zeros: not known.
struct DeviceMemory {
  size_t total_bytes = 0, free_bytes = 0;
};

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
  virtual size_t allocated_bytes() const = 0;
  // Before whatever is queued later; Synchronize waits for it.
  virtual void Zero(std::byte* data, size_t bytes) = 0;

  // What it is, for the log.
  virtual std::string Describe() const = 0;
  // Whether the CPU may touch its memory.
  virtual bool is_host() const = 0;
  // Once on every thread, other than its maker's, that uses the device or its ops.
  virtual void EnterThread() = 0;
  virtual DeviceMemory memory() const = 0;
  // Host memory that the device can copy from and to beside its work; zeroed, aligned to 4,096.
  virtual absl::StatusOr<std::byte*> AllocateHost(size_t bytes) = 0;
  // Either end may be the device's memory or the host's; done when it returns.
  virtual absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) = 0;
  // Returns when all that ops and device have queued has happened. An error is the device's end,
  // and every later call repeats it.
  virtual absl::Status Synchronize() = 0;
  // Null for host memory. Any number of queues; the device outlives them.
  virtual absl::StatusOr<std::unique_ptr<MemoryQueue>> MakeMemoryQueue() = 0;
};

}  // namespace baton::kernels
