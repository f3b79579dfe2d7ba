#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "common/ids.h"

namespace baton::kvtransfer {

using CopyJob = StrongId<struct CopyJobTag, uint64_t>;

struct CopyDone {
  CopyJob job;
  absl::Status status;
};

// Copies blocks between device memory and host memory. Transfer thread only.
class BlockCopier {
 public:
  // Returns when no copy that was begun touches memory any more.
  virtual ~BlockCopier() = default;
  // Never blocks. Either end may be device memory; both ends stay as they are until the job is
  // done. What cannot be begun is done with an error.
  virtual void Begin(CopyJob job, std::byte* to, const std::byte* from, size_t bytes) = 0;
  // Appends what has ended since the last call, each job exactly once, in any order. After an error
  // too, neither end is touched any more; the bytes at `to` are then undefined.
  virtual void Poll(std::vector<CopyDone>& done) = 0;
};

}  // namespace baton::kvtransfer
