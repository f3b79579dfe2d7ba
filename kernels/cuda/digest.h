#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

// The 128-bit NH digest of contracts.md 3.5 over device memory; integer sums, any order.
namespace baton::kernels::cuda {

inline constexpr int kDigestChunkBytes = 1024;

struct DigestItemArgs {
  const uint8_t* header = nullptr;  // device, 1,024 bytes, padded with zeros
  const uint8_t* data = nullptr;    // device
  uint64_t bytes = 0;
};
struct DigestKernelArgs {
  uint32_t secret[4] = {};
  const DigestItemArgs* items = nullptr;  // device
  int num_items = 0;
  uint64_t longest = 0;      // bytes of the longest item
  uint64_t* sums = nullptr;  // [items, 2], zeroed here
};
cudaError_t RunDigest(const DigestKernelArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
