#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/digest.h"
#include "kernels/cuda/philox.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWords = kDigestChunkBytes / 4;
constexpr uint32_t kLevel1Tag = 0x6e683101u;
constexpr uint32_t kLevel2Tag = 0x6e683202u;

__device__ uint32_t WordAt(const uint8_t* data, uint64_t bytes, uint64_t offset) {
  const bool is_aligned = reinterpret_cast<uint64_t>(data) % 4 == 0;
  if (is_aligned && offset + 4 <= bytes) {
    return *reinterpret_cast<const uint32_t*>(data + offset);
  }
  uint32_t word = 0;
  for (uint64_t i = offset; i < bytes && i < offset + 4; ++i) {
    word |= static_cast<uint32_t>(data[i]) << (8 * (i - offset));
  }
  return word;
}

__device__ unsigned long long WarpSum(unsigned long long x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}

// Both lanes' level-1 sums of a chunk, by one warp.
struct LaneSums {
  unsigned long long h[2];
};
__device__ LaneSums SumChunk(const uint8_t* data, uint64_t bytes, uint64_t start,
                             const uint32_t* key) {
  LaneSums sums = {};
  for (int i = 2 * static_cast<int>(threadIdx.x % kWarp); i < kWords; i += 2 * kWarp) {
    const uint32_t a = WordAt(data, bytes, start + 4u * i);
    const uint32_t b = WordAt(data, bytes, start + 4u * i + 4u);
    for (int lane = 0; lane < 2; ++lane) {
      const uint32_t* k = key + kWords * lane + i;
      sums.h[lane] += static_cast<unsigned long long>(a + k[0]) * (b + k[1]);
    }
  }
  return {{WarpSum(sums.h[0]), WarpSum(sums.h[1])}};
}

// Grid: (pieces, items). A warp takes chunks at a stride; chunk 0 is the header.
__global__ void __launch_bounds__(kThreads) DigestKernel(DigestKernelArgs args) {
  __shared__ uint32_t key[2 * kWords];
  const uint2 secret = make_uint2(args.secret[0], args.secret[1]);
  for (uint32_t i = threadIdx.x; i < 2 * kWords / 4; i += kThreads) {
    reinterpret_cast<uint4*>(key)[i] =
        Philox(secret, make_uint4(i, kLevel1Tag, args.secret[2], args.secret[3]));
  }
  __syncthreads();
  const DigestItemArgs item = args.items[blockIdx.y];
  const uint64_t chunks = 1 + (item.bytes + kDigestChunkBytes - 1) / kDigestChunkBytes;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / kWarp);
  unsigned long long sums[2] = {};
  for (uint64_t j = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp; j < chunks;
       j += stride) {
    const LaneSums lanes = j == 0
                               ? SumChunk(item.header, kDigestChunkBytes, 0, key)
                               : SumChunk(item.data, item.bytes, (j - 1) * kDigestChunkBytes, key);
    const uint4 a = Philox(
        secret, make_uint4(static_cast<uint32_t>(j), kLevel2Tag, args.secret[2], args.secret[3]));
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
    for (int lane = 0; lane < 2; ++lane) {
      const uint32_t low = static_cast<uint32_t>(lanes.h[lane]) + words[2 * lane];
      const uint32_t high = static_cast<uint32_t>(lanes.h[lane] >> 32) + words[2 * lane + 1];
      sums[lane] += static_cast<unsigned long long>(low) * high;
    }
  }
  if (threadIdx.x % kWarp != 0) return;
  auto* out = reinterpret_cast<unsigned long long*>(args.sums) + 2 * blockIdx.y;
  atomicAdd(out, sums[0]);
  atomicAdd(out + 1, sums[1]);
}

}  // namespace

cudaError_t RunDigest(const DigestKernelArgs& args, cudaStream_t stream) {
  const auto items = static_cast<unsigned>(args.num_items);
  if (const cudaError_t error =
          cudaMemsetAsync(args.sums, 0, items * 2 * sizeof(uint64_t), stream)) {
    return error;
  }
  const uint64_t warps = 1 + (args.longest + kDigestChunkBytes - 1) / kDigestChunkBytes;
  const uint64_t blocks = (warps + kThreads / kWarp - 1) / (kThreads / kWarp);
  const dim3 grid(static_cast<unsigned>(blocks < 128 ? blocks : 128), items);
  DigestKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
