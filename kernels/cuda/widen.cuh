#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/linear.cuh"

// Weights on their way from shared memory to the registers that an instruction multiplies from:
// codes become bf16 times their scale, which is exact (all scales are powers of two).
namespace baton::kernels::cuda {

// What a code's bits as a bf16 have to be multiplied by, twice: they are 2^120 (e4m3) or 2^126
// (e2m1) too small, subnormal codes included.
__device__ __forceinline__ uint32_t LiftOfFp8(float scale) {
  return ((BitsOf(scale) >> 23) + 120u) * 0x00800080u;
}
__device__ __forceinline__ uint32_t LiftOfFp4(uint32_t exponent) {
  return (exponent + 126u) * 0x00800080u;
}
__device__ __forceinline__ uint32_t Lifted(uint32_t bits, uint32_t lift) {
  uint32_t value;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(bits), "r"(lift));
  return value;
}

// The two pairs of a word of four e4m3 codes, in the order of code_order.cuh.
__device__ __forceinline__ uint32_t LowFp8Pair(uint32_t word, uint32_t lift) {
  return Lifted(((word << 4) & 0x07f007f0u) | ((word << 8) & 0x80008000u), lift);
}
__device__ __forceinline__ uint32_t HighFp8Pair(uint32_t word, uint32_t lift) {
  return Lifted(((word >> 4) & 0x07f007f0u) | (word & 0x80008000u), lift);
}
// Pair kPair of the four of a word of eight e2m1 codes.
template <int kPair>
__device__ __forceinline__ uint32_t Fp4Pair(uint32_t word, uint32_t lift) {
  uint32_t magnitude;
  if constexpr (kPair < 2) {
    magnitude = word << (6 - 4 * kPair);
  } else {
    magnitude = word >> (4 * kPair - 6);
  }
  return Lifted((magnitude & 0x01c001c0u) | ((word << (12 - 4 * kPair)) & 0x80008000u), lift);
}

// One thread's scales of a block of 64 outputs: of its rows lane / 4 (low) and + 8 (high) of the
// warp's 16.
template <LinearKind kKind, int kBlockK>
class RowScales {
 public:
  __device__ RowScales(const TileJob& job, int first_of_block) {
    if constexpr (kKind == LinearKind::kBf16) return;
    const int row = job.first_output + first_of_block + static_cast<int>(threadIdx.x % 32) / 4 +
                    static_cast<int>(threadIdx.x % kGroupThreads) / 32 * 16;
    low_from_ = Line(job.weight, min(row, job.end_output - 1));
    high_from_ = Line(job.weight, min(row + 8, job.end_output - 1));
  }

  // Starts to fetch those of block `block` of kBlockK columns.
  __device__ void Fetch(int block) {
    if constexpr (kKind == LinearKind::kFp8) {
      const int at = block * kBlockK / 128;
      low_ = reinterpret_cast<const uint32_t*>(low_from_)[at];
      high_ = reinterpret_cast<const uint32_t*>(high_from_)[at];
    } else if constexpr (kKind == LinearKind::kFp4) {
      using Word = std::conditional_t<kBlockK == 128, uint32_t, uint16_t>;
      low_ = reinterpret_cast<const Word*>(low_from_)[block];
      high_ = reinterpret_cast<const Word*>(high_from_)[block];
    }
  }

  // Lift of column group kGroup (32 columns) of the block.
  template <int kGroup>
  __device__ uint32_t Low() const {
    return Lift<kGroup>(low_);
  }
  template <int kGroup>
  __device__ uint32_t High() const {
    return Lift<kGroup>(high_);
  }

 private:
  static __device__ const uint8_t* Line(const MatrixView& weight, int row) {
    if constexpr (kKind == LinearKind::kFp4) {
      return weight.exponents + static_cast<int64_t>(row) * (weight.cols / 32);
    } else {
      return reinterpret_cast<const uint8_t*>(weight.scales + static_cast<int64_t>(row / 128) *
                                                                  (weight.cols / 128));
    }
  }
  template <int kGroup>
  static __device__ uint32_t Lift(uint32_t word) {
    if constexpr (kKind == LinearKind::kFp8) return LiftOfFp8(FloatOf(word));
    return LiftOfFp4((word >> (8 * kGroup)) & 255u);
  }

  const uint8_t *low_from_ = nullptr, *high_from_ = nullptr;
  uint32_t low_ = 0, high_ = 0;
};

// Columns 64 kPart .. + 63 of a block of 64 outputs as four steps' operands. `tile`: the outputs'
// rows in shared memory.
template <LinearKind kKind, int kBlockK, int kPart>
__device__ __forceinline__ void LoadWeights(uint32_t tile, const RowScales<kKind, kBlockK>& scales,
                                            uint32_t (&a)[kUnitSteps][4]) {
  constexpr int kWidth = kBlockK * WeightBits(kKind) / 8;
  constexpr int kChunks = WeightBits(kKind) / 2;  // of 16 bytes, in 64 columns
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = static_cast<int>(threadIdx.x % kGroupThreads) / 32 * 16 + lane % 16;
  const auto load = [&](int chunk, uint32_t(&r)[4]) {
    LoadMatrices(tile + WeightOffset<kWidth>(row, kPart * kChunks + chunk + lane / 16), r);
  };
  if constexpr (kKind == LinearKind::kBf16) {
#pragma unroll
    for (int step = 0; step < 4; ++step) load(2 * step, a[step]);
  } else if constexpr (kKind == LinearKind::kFp8) {
    const uint32_t low = scales.template Low<0>(), high = scales.template High<0>();
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
      uint32_t r[4];
      load(step, r);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[step + i][0] = LowFp8Pair(r[2 * i], low);
        a[step + i][1] = LowFp8Pair(r[2 * i + 1], high);
        a[step + i][2] = HighFp8Pair(r[2 * i], low);
        a[step + i][3] = HighFp8Pair(r[2 * i + 1], high);
      }
    }
  } else {
    uint32_t r[4];
    load(0, r);
    const uint32_t low[2] = {scales.template Low<2 * kPart>(),
                             scales.template Low<2 * kPart + 1>()};
    const uint32_t high[2] = {scales.template High<2 * kPart>(),
                              scales.template High<2 * kPart + 1>()};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[2 * i][0] = Fp4Pair<0>(r[2 * i], low[i]);
      a[2 * i][1] = Fp4Pair<0>(r[2 * i + 1], high[i]);
      a[2 * i][2] = Fp4Pair<1>(r[2 * i], low[i]);
      a[2 * i][3] = Fp4Pair<1>(r[2 * i + 1], high[i]);
      a[2 * i + 1][0] = Fp4Pair<2>(r[2 * i], low[i]);
      a[2 * i + 1][1] = Fp4Pair<2>(r[2 * i + 1], high[i]);
      a[2 * i + 1][2] = Fp4Pair<3>(r[2 * i], low[i]);
      a[2 * i + 1][3] = Fp4Pair<3>(r[2 * i + 1], high[i]);
    }
  }
}

}  // namespace baton::kernels::cuda
