#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "common/ids.h"

namespace baton::kernels {

// Copies and digests of a device's memory beside the engine's steps: what the transfer thread needs
// of pages it may not touch itself. One thread; nothing blocks; jobs of one queue run in order.
class MemoryQueue {
 public:
  struct Done {
    uint64_t job = 0;
    absl::Status status;
    Digest128 digest;  // of a digest job
  };

  virtual ~MemoryQueue() = default;
  // Either end may be the device's memory or host memory of Device::AllocateHost. Both must stay as
  // they are until the job is done.
  virtual void Copy(uint64_t job, std::byte* to, const std::byte* from, size_t bytes) = 0;
  // contracts.md 3.5. `header` (at most 1,024 bytes) is copied, `data` must not change until the
  // job is done.
  virtual void Digest(uint64_t job, const Secret& secret, std::span<const std::byte> header,
                      std::span<const std::byte> data) = 0;
  // Appends what has finished since the last call, each job exactly once.
  virtual void Poll(std::vector<Done>& done) = 0;
};

}  // namespace baton::kernels
