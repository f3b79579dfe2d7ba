#pragma once

#include <array>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/cuda/digest.h"
#include "kernels/memory_queue.h"

namespace baton::kernels::cuda {

// A stream of its own. Digests take places of a small table; what finds none waits in order on the
// host.
class CudaMemoryQueue final : public MemoryQueue {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMemoryQueue>> Create(int ordinal);
  ~CudaMemoryQueue() override;
  CudaMemoryQueue(const CudaMemoryQueue&) = delete;
  CudaMemoryQueue& operator=(const CudaMemoryQueue&) = delete;

  void Copy(uint64_t job, std::byte* to, const std::byte* from, size_t bytes) override;
  void Digest(uint64_t job, const Secret& secret, std::span<const std::byte> header,
              std::span<const std::byte> data) override;
  void Poll(std::vector<Done>& done) override;

 private:
  static constexpr size_t kPlaces = 64;
  static constexpr int kNoPlace = -1;
  // What a digest needs beside its data; pinned host memory, which the kernel reads directly.
  struct Place {
    std::array<uint8_t, kDigestChunkBytes> header;
    DigestItemArgs item;
    std::array<uint64_t, 2> sums;  // copied here when done
  };
  struct Waiting {
    uint64_t job = 0;
    Secret secret;
    std::vector<std::byte> header;
    std::span<const std::byte> data;
  };
  struct Running {
    uint64_t job = 0;
    int place = kNoPlace;  // of a digest
    cudaEvent_t event = nullptr;
    cudaError_t error = cudaSuccess;  // of the launch
  };

  explicit CudaMemoryQueue(int ordinal) : ordinal_(ordinal) {}
  absl::Status Initialise();
  void StartDigest(const Waiting& waiting);
  void Finish(Running running);  // records the job's event behind what was queued
  bool IsDone(Running& running) const;

  const int ordinal_;
  cudaStream_t stream_ = nullptr;
  Place* places_ = nullptr;   // [kPlaces], pinned
  uint64_t* sums_ = nullptr;  // [kPlaces, 2], device
  std::vector<int> free_places_;
  std::vector<cudaEvent_t> free_events_;
  std::deque<Waiting> waiting_;
  std::deque<Running> running_;  // in the order of the stream
};

}  // namespace baton::kernels::cuda
