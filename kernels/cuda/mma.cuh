#pragma once

#include <cstdint>

#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/wgmma.cuh"

// Warp-wide bf16 products, 16 x 8 x 16: what attention and the indexer use. Bit-equal to wgmma
// (contracts.md 1.2).
namespace baton::kernels::cuda {

// d += a b. Thread: rows lane / 4 and + 8, columns 2 (lane % 4) and + 1 of d.
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t LoadPair(const Bf16* p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

// A fragment of rows first_row .. + 15, columns k .. k + 15 of a row-major matrix.
__device__ __forceinline__ void LoadA(const Bf16* matrix, int stride, int first_row, int k,
                                      uint32_t (&a)[4]) {
  const Bf16* low = matrix + (first_row + LaneIndex() / 4) * stride + k + LaneIndex() % 4 * 2;
  a[0] = LoadPair(low);
  a[1] = LoadPair(low + 8 * stride);
  a[2] = LoadPair(low + 8);
  a[3] = LoadPair(low + 8 * stride + 8);
}

// B fragment of keys k .. k + 15 (rows), channels n .. n + 7.
__device__ __forceinline__ void LoadTransposed(const Bf16* keys, int stride, int k, int n,
                                               uint32_t& b0, uint32_t& b1) {
  const uint32_t address = SharedAddress(keys + (k + LaneIndex() % 16) * stride + n);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(b0), "=r"(b1)
               : "r"(address));
}

// Sixteen e4m3 codes as bf16 times scale, which is exact.
__device__ __forceinline__ void WidenCodes(const uint4& codes, float scale, Bf16* out) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = words[i / 2] >> (16 * (i % 2));
    const float low = DecodeE4m3(static_cast<uint8_t>(pair)) * scale;
    const float high = DecodeE4m3(static_cast<uint8_t>(pair >> 8)) * scale;
    reinterpret_cast<uint32_t*>(out)[i] = (BitsOf(low) >> 16) | (BitsOf(high) & 0xffff0000u);
  }
}

}  // namespace baton::kernels::cuda
