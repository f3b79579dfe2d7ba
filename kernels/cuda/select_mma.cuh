#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

// What the indexer's scores of many rows need of Hopper: products of 64 keys with the 64 heads of
// four queries, bf16, K 16 an instruction, see wgmma.cuh.
namespace baton::kernels::cuda {

// Two e4m3 codes, each in the low byte of a half, to two bf16; see WidenFp8Pair.
__device__ __forceinline__ uint32_t WidenUnscaledPair(uint32_t codes) {
  constexpr uint32_t kLift = 0x7b807b80u;  // 2^120 twice
  const uint32_t small = ((codes << 4) & 0x07f007f0u) | ((codes << 8) & 0x80008000u);
  uint32_t value;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(small), "r"(kLift));
  return value;
}

// d [64, 256] += A B^T, or = where `adds` is 0.
__device__ __forceinline__ void ScoreMma(float (&d)[128], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" BATON_NUMBERS_128
      "}, %128, %129, p, 1, 1, 0, 0;\n}\n"
      : BATON_SUMS_128(d, 0)
      : "l"(a), "l"(b), "r"(adds));
}

}  // namespace baton::kernels::cuda
