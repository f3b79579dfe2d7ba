#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/lanes.h"
#include "kernels/exact_math.h"

// The loops of attention_kernels.h for one instruction set; included once by each attention_*.cc.
namespace baton::kernels::cpu::BATON_LANES {

// Four trees of R11 at once: out[i] = SumLanes(a[i]).
BATON_LANE_INLINE void SumFour(const Lanes* a, float* out) {
#if defined(__AVX2__)
  __m128 quarter[4];
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    const __m256 low = __builtin_shufflevector(a[i].v, a[i].v, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 high = __builtin_shufflevector(a[i].v, a[i].v, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256 half = _mm256_add_ps(low, high);
#else
    const __m256 half = _mm256_add_ps(a[i].low, a[i].high);
#endif
    quarter[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  _MM_TRANSPOSE4_PS(quarter[0], quarter[1], quarter[2], quarter[3]);
  const __m128 even = _mm_add_ps(quarter[0], quarter[2]);
  const __m128 odd = _mm_add_ps(quarter[1], quarter[3]);
  _mm_storeu_ps(out, _mm_add_ps(even, odd));
#else
  for (int i = 0; i < 4; ++i) out[i] = SumLanes(a[i]);
#endif
}

// Q queries against 4 keys.
template <int Q>
BATON_LANE_INLINE void ScoreFourKeys(const float* queries, const KeyBlock& block, int key,
                                     float* scores) {
  Lanes sums[Q][4];
  for (int q = 0; q < Q; ++q) {
    for (int j = 0; j < 4; ++j) sums[q][j] = Broadcast(0.0f);
  }
  for (int d = 0; d < block.dims; d += kLanes) {
    Lanes keys[4];
    for (int j = 0; j < 4; ++j) keys[j] = Load(block.keys[key + j] + d);
    for (int q = 0; q < Q; ++q) {
      const Lanes query = Load(queries + q * block.dims + d);
      for (int j = 0; j < 4; ++j) sums[q][j] = Fma(query, keys[j], sums[q][j]);
    }
  }
  for (int q = 0; q < Q; ++q) SumFour(sums[q], scores + q * kKeyBlock + key);
}

template <int Q>
__attribute__((noinline)) void ScoreQueries(const float* queries, const KeyBlock& block,
                                            float* scores) {
  int key = 0;
  for (; key + 4 <= block.num_keys; key += 4) ScoreFourKeys<Q>(queries, block, key, scores);
  for (; key < block.num_keys; ++key) {
    for (int q = 0; q < Q; ++q) {
      scores[q * kKeyBlock + key] = DotLanes(queries + q * block.dims, block.keys[key], block.dims);
    }
  }
}

inline void Score(const float* queries, int num_heads, const KeyBlock& block, float* scores) {
  int h = 0;
  for (; h + 2 <= num_heads; h += 2) {
    ScoreQueries<2>(queries + h * block.dims, block, scores + h * kKeyBlock);
  }
  if (h < num_heads) ScoreQueries<1>(queries + h * block.dims, block, scores + h * kKeyBlock);
}

inline void Exponentiate(float* scores, int n, float scale, float* denominator) {
  for (int j = 0; j < n; ++j) scores[j] = kernels::Exp(scores[j] * scale);
  for (int j = 0; j < n; ++j) *denominator += scores[j];
}

// ExpNeg without an early return, so that loops over it are vectorised: the same bits.
BATON_LANE_INLINE float ExpBelow(float d) {
  const float inside = d >= -87.0f ? d : -87.0f;
  const ExpParts parts = SplitExp(inside);
  const int exponent = parts.exponent < -126 ? -126 : parts.exponent;
  const float value = parts.fraction * PowerOfTwo(exponent);
  return d >= -87.0f && parts.exponent >= -126 ? value : 0.0f;
}

inline void ExponentiateBelow(float* scores, int n, float reference, float* denominator) {
  for (int j = 0; j < n; ++j) scores[j] = ExpBelow(scores[j] - reference);
  for (int j = 0; j < n; ++j) *denominator += scores[j];
}

// Q heads over all dims, two vectors at a time, each sum kept in a register over all keys.
template <int Q>
__attribute__((noinline)) void AccumulateHeads(const float* weights, const KeyBlock& block,
                                               float* sums) {
  for (int d = 0; d < block.dims; d += 2 * kLanes) {
    Lanes low[Q], high[Q];
    for (int q = 0; q < Q; ++q) {
      low[q] = Load(sums + q * block.dims + d);
      high[q] = Load(sums + q * block.dims + d + kLanes);
    }
    for (int j = 0; j < block.num_keys; ++j) {
      const Lanes key_low = Load(block.keys[j] + d);
      const Lanes key_high = Load(block.keys[j] + d + kLanes);
      for (int q = 0; q < Q; ++q) {
        const Lanes weight = Broadcast(weights[q * kKeyBlock + j]);
        low[q] = Fma(weight, key_low, low[q]);
        high[q] = Fma(weight, key_high, high[q]);
      }
    }
    for (int q = 0; q < Q; ++q) {
      Store(sums + q * block.dims + d, low[q]);
      Store(sums + q * block.dims + d + kLanes, high[q]);
    }
  }
}

inline void Accumulate(const float* weights, int num_heads, const KeyBlock& block, float* sums) {
  int h = 0;
  for (; h + 4 <= num_heads; h += 4) {
    AccumulateHeads<4>(weights + h * kKeyBlock, block, sums + h * block.dims);
  }
  for (; h + 2 <= num_heads; h += 2) {
    AccumulateHeads<2>(weights + h * kKeyBlock, block, sums + h * block.dims);
  }
  if (h < num_heads) AccumulateHeads<1>(weights + h * kKeyBlock, block, sums + h * block.dims);
}

// m' = max(m, sc); s = fma(s, a, b); o = fma(o, a, b * kv) (contracts.md 1.4). m = -inf gives a =
// 0.
inline void Fold(const float* __restrict kv, const float* __restrict score,
                 const PoolState& state) {
  float* __restrict max = state.max;
  float* __restrict sum = state.sum;
  float* __restrict weighted = state.weighted;
  for (int n = 0; n < state.channels; ++n) {
    const float m = max[n] > score[n] ? max[n] : score[n];
    const float a = ExpBelow(max[n] - m);
    const float b = ExpBelow(score[n] - m);
    const float product = b * kv[n];
    sum[n] = kernels::Fma(sum[n], a, b);
    weighted[n] = kernels::Fma(weighted[n], a, product);
    max[n] = m;
  }
}

BATON_LANE_INLINE void PoolPiece(const PoolInput& input, int channel, float* entry) {
  float max[kLanes], sum[kLanes], weighted[kLanes];
  for (int i = 0; i < kLanes; ++i) max[i] = input.score[0][channel + i];
  for (int t = 1; t < input.num_tokens; ++t) {
    const float* score = input.score[t] + channel;
    for (int i = 0; i < kLanes; ++i) max[i] = score[i] > max[i] ? score[i] : max[i];
  }
  for (int i = 0; i < kLanes; ++i) sum[i] = weighted[i] = 0.0f;
  for (int t = 0; t < input.num_tokens; ++t) {
    const float* score = input.score[t] + channel;
    const float* kv = input.kv[t] + channel;
    for (int i = 0; i < kLanes; ++i) {
      const float b = ExpBelow(score[i] - max[i]);
      sum[i] = sum[i] + b;
      weighted[i] = kernels::Fma(b, kv[i], weighted[i]);
    }
  }
  for (int i = 0; i < kLanes; ++i) entry[i] = weighted[i] / sum[i];
}

inline void Pool(const PoolInput& input, int channels, float* entry) {
  for (int channel = 0; channel < channels; channel += kLanes) {
    PoolPiece(input, channel, entry + channel);
  }
}

inline constexpr AttentionKernels kKernels = {.score = Score,
                                              .exponentiate = Exponentiate,
                                              .exponentiate_below = ExponentiateBelow,
                                              .accumulate = Accumulate,
                                              .fold = Fold,
                                              .pool = Pool};

}  // namespace baton::kernels::cpu::BATON_LANES
