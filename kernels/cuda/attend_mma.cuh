#pragma once

#include <cstdint>

#include "kernels/cuda/mma.cuh"

// What attention needs of the tensor cores: 64 heads by 64 keys, and 64 heads by 128 channels of
// the same rows read the other way round; and stored rows widened in registers.
namespace baton::kernels::cuda {

// How a tile of slabs is read: as rows of K; or as rows of N, one below the other along K, slabs of
// 64 columns and 8,192 bytes side by side.
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
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
      "%28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(adds));
}

// d [64, 128] += A B; A by rows, B by columns.
__device__ __forceinline__ void WgmmaValues(float (&d)[64], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
      "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 1;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
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

__device__ __forceinline__ uint32_t PackBf16(float a, float b) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}

// Two e4m3 codes, each in the high byte of a half, to two bf16 times `scale`: the code's bits are a
// bf16 2^120 too small, which `scale` makes good.
__device__ __forceinline__ uint32_t WidenHighBytes(uint32_t codes, uint32_t scale) {
  const uint32_t small = ((codes >> 4) & 0x07f007f0u) | (codes & 0x80008000u);
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
    out[2 * w] = WidenHighBytes(__byte_perm(words[w], 0, 0x1404), lift | lift << 16);
    out[2 * w + 1] = WidenHighBytes(__byte_perm(words[w], 0, 0x3424), lift | lift << 16);
  }
  if (kIsSmall || scale <= kLargest) return;
  const uint32_t rest = (127 + min(scale, 254u) - kLargest) << 7;
#pragma unroll
  for (int w = 0; w < 8; ++w) {
    asm("mul.rn.bf16x2 %0, %0, %1;" : "+r"(out[w]) : "r"(rest | rest << 16));
  }
}

}  // namespace baton::kernels::cuda
