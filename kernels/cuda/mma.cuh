#pragma once

#include <cstdint>

#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/wgmma.cuh"

// Warp-wide bf16 products, 16 x 8 x 16. Bit-equal to wgmma (contracts.md 1.2).
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

__device__ __forceinline__ void LoadMatrices(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Two e4m3 codes, each in the low byte of a half, to two bf16 times the scale (a bf16 power of two,
// twice), which is exact: the code's bits are a bf16 2^120 too small, subnormal codes included.
__device__ __forceinline__ uint32_t WidenFp8Pair(uint32_t codes, uint32_t scale) {
  constexpr uint32_t kLift = 0x7b807b80u;  // 2^120 twice
  const uint32_t small = ((codes << 4) & 0x07f007f0u) | ((codes << 8) & 0x80008000u);
  uint32_t value, scaled;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(small), "r"(kLift));
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(scaled) : "r"(value), "r"(scale));
  return scaled;
}
// A power of two as two bf16.
__device__ __forceinline__ uint32_t PairOfScale(float scale) {
  const uint32_t half = BitsOf(scale) >> 16;
  return half | half << 16;
}

// Eight e4m3 codes as bf16 times the scale.
__device__ __forceinline__ uint4 WidenEight(const uint2& codes, float scale) {
  const uint32_t pair = PairOfScale(scale);
  return make_uint4(WidenFp8Pair(__byte_perm(codes.x, 0, 0x4140), pair),
                    WidenFp8Pair(__byte_perm(codes.x, 0, 0x4342), pair),
                    WidenFp8Pair(__byte_perm(codes.y, 0, 0x4140), pair),
                    WidenFp8Pair(__byte_perm(codes.y, 0, 0x4342), pair));
}

// Sixteen e4m3 codes as bf16 times the scale.
__device__ __forceinline__ void WidenFp8Piece(const uint4& codes, uint32_t scale,
                                              uint32_t (&out)[8]) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    out[2 * w] = WidenFp8Pair(__byte_perm(words[w], 0, 0x4140), scale);
    out[2 * w + 1] = WidenFp8Pair(__byte_perm(words[w], 0, 0x4342), scale);
  }
}

// The same into memory.
__device__ __forceinline__ void WidenCodes(const uint4& codes, float scale, Bf16* out) {
  uint32_t words[8];
  WidenFp8Piece(codes, PairOfScale(scale), words);
  auto* to = reinterpret_cast<uint4*>(out);
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

}  // namespace baton::kernels::cuda
