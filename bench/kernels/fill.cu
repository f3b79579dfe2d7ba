#include <cstdio>
#include <cstdlib>

#include "bench/kernels/fill.h"

namespace baton::bench {
namespace {

constexpr unsigned kBlocks = 1024;
constexpr unsigned kThreads = 256;

__device__ uint32_t Hash(uint64_t i, uint32_t seed) {
  uint64_t x = (i + (static_cast<uint64_t>(seed) << 40)) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<uint32_t>(x >> 32);
}

// value(i) into element i of every piece.
template <typename T, typename Value>
__global__ void FillKernel(uint8_t* data, Pieces pieces, Value value) {
  const size_t per_piece = pieces.bytes / sizeof(T), total = pieces.count * per_piece;
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < total;
       i += step) {
    auto* piece = reinterpret_cast<T*>(data + i / per_piece * pieces.stride);
    piece[i % per_piece] = value(i);
  }
}

__global__ void EmptyKernel() {}

template <typename T, typename Value>
void Fill(void* data, const Pieces& pieces, Value value) {
  FillKernel<T><<<kBlocks, kThreads>>>(static_cast<uint8_t*>(data), pieces, value);
}

Pieces One(size_t bytes) { return {1, bytes, bytes}; }

struct Constant {
  float value;
  __device__ float operator()(size_t) const { return value; }
};
struct Fp8Codes {
  uint32_t seed;
  __device__ uint32_t operator()(size_t i) const { return Hash(i, seed) & 0xbfbfbfbfu; }
};
struct AnyBytes {
  uint32_t seed;
  __device__ uint32_t operator()(size_t i) const { return Hash(i, seed); }
};
struct RangeBytes {
  ByteRange range;
  uint32_t seed;
  __device__ uint8_t operator()(size_t i) const {
    return static_cast<uint8_t>(range.first + Hash(i, seed) % range.count);
  }
};
struct UniformF32 {
  float size;
  uint32_t seed;
  __device__ float operator()(size_t i) const {
    return size * (static_cast<float>(Hash(i, seed) >> 8) * 0x1p-23f - 1.0f);
  }
};
struct UniformBf16 {
  UniformF32 uniform;
  __device__ uint16_t operator()(size_t i) const {
    return static_cast<uint16_t>(__float_as_uint(uniform(i)) >> 16);
  }
};

}  // namespace

void FillFp8(void* data, size_t bytes, uint32_t seed) {
  Fill<uint32_t>(data, One(bytes), Fp8Codes{seed});
}
void FillBytes(void* data, size_t bytes, uint32_t seed) {
  Fill<uint32_t>(data, One(bytes), AnyBytes{seed});
}
void FillRange(void* data, size_t bytes, ByteRange range, uint32_t seed) {
  Fill<uint8_t>(data, One(bytes), RangeBytes{range, seed});
}
void FillBf16(void* data, size_t values, float size, uint32_t seed) {
  Fill<uint16_t>(data, One(2 * values), UniformBf16{{size, seed}});
}
void FillF32(void* data, size_t values, float size, uint32_t seed) {
  Fill<float>(data, One(4 * values), UniformF32{size, seed});
}
void SetF32(void* data, size_t values, float value) {
  Fill<float>(data, One(4 * values), Constant{value});
}

void FillPiecesFp8(void* data, const Pieces& pieces, uint32_t seed) {
  Fill<uint32_t>(data, pieces, Fp8Codes{seed});
}
void FillPiecesRange(void* data, const Pieces& pieces, ByteRange range, uint32_t seed) {
  Fill<uint8_t>(data, pieces, RangeBytes{range, seed});
}
void SetPiecesF32(void* data, const Pieces& pieces, float value) {
  Fill<float>(data, pieces, Constant{value});
}

void QueueEmptyKernel(cudaStream_t stream) { EmptyKernel<<<1, 32, 0, stream>>>(); }

void FinishFills() {
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernel_bench: filling memory: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace baton::bench
