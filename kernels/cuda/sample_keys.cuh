#pragma once

#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/sample.h"

// What the sampler compares and counts: scores, and rank keys by integer masses (contracts.md 2.3).
namespace baton::kernels::cuda {

using Wide = unsigned long long;

constexpr int kTokenBits = 17;
constexpr int kFineBits = 10;
constexpr int kOctaveBins = 32;              // coarse bins of a mass's octave
constexpr int kBins = 2 + 32 * kOctaveBins;  // mass 0, then up to 2^32
constexpr float kForbidden = -__builtin_inff();
static_assert(kMaxVocabulary < 1 << kTokenBits && 1 << kFineBits <= kBins);

// From the largest score, which may be infinite (contracts.md 2.3: the best token has mass 2^32).
__device__ __forceinline__ float DistanceOf(float score, float largest) {
  return score == largest ? 0.0f : score - largest;
}

// An integer whose order is x's, not NaN; and back.
__device__ __forceinline__ uint32_t Ordered(float x) {
  const uint32_t bits = BitsOf(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float FromOrdered(uint32_t x) {
  return FloatOf((x & 0x80000000u) != 0 ? x & 0x7fffffffu : ~x);
}
// Higher score, then the lower id; NaN and -inf never. -1: none.
struct Best {
  float score = 0.0f;
  int32_t token = -1;

  __device__ bool IsBeatenBy(float other, int32_t other_token) const {
    if (token < 0) return other > kForbidden;
    return other > score || (other == score && other_token < token);
  }
  __device__ void Offer(float other, int32_t other_token) {
    if (IsBeatenBy(other, other_token)) {
      score = other;
      token = other_token;
    }
  }
  // All lanes get the warp's best.
  __device__ void MergeWarp() {
    const uint32_t own = token < 0 ? 0 : Ordered(score + 0.0f);  // -0 and +0 tie
    const uint32_t most = __reduce_max_sync(kFullWarp, own);
    const uint32_t first =
        __reduce_min_sync(kFullWarp, own == most ? static_cast<uint32_t>(token) : ~0u);
    score = FromOrdered(most);
    token = static_cast<int32_t>(first);
  }
};

__device__ __forceinline__ float WarpMax(float x) {
  return FromOrdered(__reduce_max_sync(kFullWarp, Ordered(x)));
}

__device__ __forceinline__ Wide WarpSum(Wide x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}

// At least Gumbel(word): -log(-log u) <= -log(1 - u). Says only which tokens' noise is computed.
__device__ __forceinline__ float NoiseBound(uint32_t word) {
  constexpr float kLog2 = 0.693147181f, kSlack = 0.001f;
  float log2;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2) : "f"(static_cast<float>(~word) + 0.5f));
  return Fma(log2, -kLog2, 32 * kLog2 + kSlack);
}

// ceil(p * total / 2^32), at least 1; total < 2^50.
__device__ __forceinline__ Wide NeedOf(Wide p, Wide total) {
  const Wide low = p * total, high = __umul64hi(p, total);
  const Wide rounded = low + 0xffffffffull;
  const Wide carry = rounded < low ? 1 : 0;
  const Wide need = (high + carry) << 32 | rounded >> 32;
  return need > 1 ? need : 1;
}

__device__ __forceinline__ Wide RankKey(Wide mass, int32_t token) {
  return (mass << kTokenBits) + ((Wide{1} << kTokenBits) - 1 - static_cast<Wide>(token));
}
__device__ __forceinline__ Wide MassOf(Wide key) { return key >> kTokenBits; }
__device__ __forceinline__ int32_t TokenOf(Wide key) {
  constexpr Wide kMask = (Wide{1} << kTokenBits) - 1;
  return static_cast<int32_t>(kMask - (key & kMask));
}

// Rank keys first .. last; the distances from the top outside of which there is none of them, with
// room for rounding.
struct Range {
  Wide first, last;
  float low, high;
};
__device__ __forceinline__ Range MakeRange(Wide first, Wide last) {
  constexpr float kRoom = 1e-3f, kLowest = -23.9f;  // masses below e^-24 are 0
  const Wide least = MassOf(first), most = MassOf(last) + 1;
  Range range = {first, last, kForbidden, Log(static_cast<float>(most) * 0x1p-32f) + kRoom};
  if (least > 1) range.low = Log(static_cast<float>(least - 1) * 0x1p-32f) - kRoom;
  if (range.low < kLowest) range.low = kForbidden;
  return range;
}

// Coarse bins part masses by their leading bits as floats.
__device__ __forceinline__ int CoarseBin(Wide mass) {
  constexpr int kFirst = 127 * kOctaveBins;
  if (mass == 0) return 0;
  return static_cast<int>(BitsOf(static_cast<float>(mass)) >> 18) - kFirst + 1;
}
__device__ __forceinline__ Range CoarseRange(int bin) {
  if (bin == 0) return MakeRange(0, (Wide{1} << kTokenBits) - 1);
  const auto edge = [bin](int next) {
    const auto bits = static_cast<uint32_t>(127 * kOctaveBins + bin - 1 + next) << 18;
    return static_cast<Wide>(::ceilf(FloatOf(bits))) << kTokenBits;
  };
  return MakeRange(edge(0), edge(1) - 1);
}

// How many keys lie in a bin and what they weigh: of a row.
struct Bins {
  Wide masses[kBins];
  uint32_t counts[kBins];

  __device__ Wide Weight(int bin, bool by_mass) const {
    return by_mass ? masses[bin] : counts[bin];
  }
};
// The same of a slice; a mass in halves, each a sum below 2^32.
struct SliceBins {
  uint32_t counts[kBins], low[kBins], high[kBins];

  __device__ void Add(int bin, uint32_t count, uint32_t low_sum, uint32_t high_sum) {
    atomicAdd(&counts[bin], count);
    if (low_sum != 0) atomicAdd(&low[bin], low_sum);
    if (high_sum != 0) atomicAdd(&high[bin], high_sum);
  }
};

}  // namespace baton::kernels::cuda
