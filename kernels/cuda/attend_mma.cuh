#pragma once

#include <cstdint>

#include "kernels/cuda/mma.cuh"

// What attention needs of the tensor cores: 64 heads by 64 keys, and 64 heads by 64 or 128
// channels of the same rows read the other way round; and stored rows widened in registers.
namespace baton::kernels::cuda {

// How a tile of slabs is read: as rows of K; or as rows of N, one below the other along K, slabs of
// 64 columns and 8,192 bytes side by side (N = 64 has one: no second one's place matters).
enum TileOrder : uint32_t { kByRows = 1, kByColumns = 8192 >> 4 };

// A tile of swizzled slabs in shared memory. PTX ISA, "wgmma", matrix descriptor. Made anew for
// every use: kept over a loop, its places would take more registers than there are.
class Tile {
 public:
  __device__ __forceinline__ Tile(uint32_t address, TileOrder order)
      : low_((address & 0x3ffffu) >> 4 | order << 16) {
    asm volatile("" : "+r"(low_));
  }
  __device__ __forceinline__ uint64_t At(int bytes) const {
    constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = uint64_t{1} << 30;
    return (kEightRows | kSwizzle128) << 32 | (low_ + static_cast<uint32_t>(bytes >> 4));
  }

 private:
  uint32_t low_;
};

// d [64, 64] += A B^T, or = where `adds` is 0; both by rows.
__device__ __forceinline__ void WgmmaScores(float (&d)[32], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BATON_NUMBERS_32
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : BATON_SUMS_32(d, 0)
      : "l"(a), "l"(b), "r"(adds));
}

// d [64, 64] += A B; A by rows, B by columns.
__device__ __forceinline__ void WgmmaValues(float (&d)[32], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BATON_NUMBERS_32
      "}, %32, %33, p, 1, 1, 0, 1;\n}\n"
      : BATON_SUMS_32(d, 0)
      : "l"(a), "l"(b), "r"(adds));
}

// d [64, 128] += A B; A by rows, B by columns.
__device__ __forceinline__ void WgmmaValues(float (&d)[64], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BATON_NUMBERS_64
      "}, %64, %65, p, 1, 1, 0, 1;\n}\n"
      : BATON_SUMS_64(d, 0)
      : "l"(a), "l"(b), "r"(adds));
}

// The bits of Exp without the slow conversions: adding 1.5 * 2^23 rounds to an integer, which then
// lies in the low bits.
__device__ __forceinline__ float QuickExp(float d) {
  constexpr float kInteger = 0x1.8p23f;
  const float shifted = d * 1.44269502f + kInteger;
  const float fraction = ExpFraction(d, shifted - kInteger);
  return FloatOf(BitsOf(fraction) + (BitsOf(shifted) << 23));
}
// The bits of ExpNeg.
__device__ __forceinline__ float QuickExpNeg(float d) { return d >= -87.0f ? QuickExp(d) : 0.0f; }

// Two e4m3 codes, each in the low byte of a half, to two bf16 times `scale`: the code's bits are a
// bf16 2^120 too small, which `scale` makes good. By multiplication, as the units for integers have
// the more to do.
__device__ __forceinline__ uint32_t WidenLowBytes(uint32_t codes, uint32_t scale) {
  const uint32_t small = (codes & 0x00800080u) * 0xf0u + codes * 16u;
  uint32_t value;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(small), "r"(scale));
  return value;
}

// Sixteen codes of a group times its e8m0 scale, exactly. kIsSmall: that is at most 1.
template <bool kIsSmall>
__device__ __forceinline__ void WidenStored(const uint4& codes, uint32_t scale,
                                            uint32_t (&out)[8]) {
  constexpr uint32_t kLargest = 134;  // 2^120 times that is a bf16 still
  const uint32_t lift = (120 + (kIsSmall ? scale : min(scale, kLargest))) << 7;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    out[2 * w] = WidenLowBytes(__byte_perm(words[w], 0, 0x4140), lift | lift << 16);
    out[2 * w + 1] = WidenLowBytes(__byte_perm(words[w], 0, 0x4342), lift | lift << 16);
  }
  if (kIsSmall || scale <= kLargest) return;
  const uint32_t rest = (127 + min(scale, 254u) - kLargest) << 7;
#pragma unroll
  for (int w = 0; w < 8; ++w) {
    asm("mul.rn.bf16x2 %0, %0, %1;" : "+r"(out[w]) : "r"(rest | rest << 16));
  }
}

}  // namespace baton::kernels::cuda
