#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/quantise.h"
#include "kernels/exact_math.h"

// Sixteen fp32 lanes and the few operations the hot loops need, for the instruction set this
// translation unit is compiled for (kernels/CMakeLists.txt sets the flags per file). Each set has a
// namespace of its own, so that no inline function compiled for one is ever linked into code for
// another. A file that includes this must not use the standard library's inline functions.
#if defined(__AVX512F__)
#define BATON_LANES lanes_avx512
#elif defined(__AVX2__)
#define BATON_LANES lanes_avx2
#else
#define BATON_LANES lanes_scalar
#endif
#define BATON_LANE_INLINE __attribute__((always_inline)) inline

namespace baton::kernels::cpu::BATON_LANES {

inline constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
BATON_LANE_INLINE Lanes Broadcast(float x) { return {_mm512_set1_ps(x)}; }
BATON_LANE_INLINE Lanes Load(const float* x) { return {_mm512_loadu_ps(x)}; }
BATON_LANE_INLINE Lanes Load(const uint16_t* x) {  // bf16
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16))};
}
BATON_LANE_INLINE void Store(float* x, Lanes a) { _mm512_storeu_ps(x, a.v); }
BATON_LANE_INLINE Lanes Fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BATON_LANE_INLINE Lanes Add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
BATON_LANE_INLINE Lanes Mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
BATON_LANE_INLINE Lanes Max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
BATON_LANE_INLINE Lanes RoundToBf16(Lanes a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i rounded = _mm512_slli_epi32(_mm512_srli_epi32(sum, 16), 16);
  const __mmask16 is_number = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
  return {_mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, is_number, rounded))};
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};
BATON_LANE_INLINE Lanes Broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
BATON_LANE_INLINE Lanes Load(const float* x) {
  return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
}
BATON_LANE_INLINE __m256 WidenBf16(const uint16_t* x) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
}
BATON_LANE_INLINE Lanes Load(const uint16_t* x) { return {WidenBf16(x), WidenBf16(x + 8)}; }
BATON_LANE_INLINE void Store(float* x, Lanes a) {
  _mm256_storeu_ps(x, a.low);
  _mm256_storeu_ps(x + 8, a.high);
}
BATON_LANE_INLINE Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
BATON_LANE_INLINE Lanes Add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
BATON_LANE_INLINE Lanes Mul(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
BATON_LANE_INLINE Lanes Max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
BATON_LANE_INLINE __m256 RoundHalf(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i rounded = _mm256_slli_epi32(_mm256_srli_epi32(sum, 16), 16);
  return _mm256_blendv_ps(a, _mm256_castsi256_ps(rounded), _mm256_cmp_ps(a, a, _CMP_ORD_Q));
}
BATON_LANE_INLINE Lanes RoundToBf16(Lanes a) { return {RoundHalf(a.low), RoundHalf(a.high)}; }

#else

struct Lanes {
  float v[kLanes];
};
// Applies f to every lane; a and b may be the same.
template <typename F>
BATON_LANE_INLINE Lanes Map(F f) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}
BATON_LANE_INLINE Lanes Broadcast(float x) {
  return Map([&](int) { return x; });
}
BATON_LANE_INLINE Lanes Load(const float* x) {
  return Map([&](int i) { return x[i]; });
}
BATON_LANE_INLINE Lanes Load(const uint16_t* x) {
  return Map([&](int i) { return DecodeBf16(x[i]); });
}
BATON_LANE_INLINE void Store(float* x, Lanes a) {
  for (int i = 0; i < kLanes; ++i) x[i] = a.v[i];
}
BATON_LANE_INLINE Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return Map([&](int i) { return kernels::Fma(a.v[i], b.v[i], c.v[i]); });
}
BATON_LANE_INLINE Lanes Add(Lanes a, Lanes b) {
  return Map([&](int i) { return a.v[i] + b.v[i]; });
}
BATON_LANE_INLINE Lanes Mul(Lanes a, Lanes b) {
  return Map([&](int i) { return a.v[i] * b.v[i]; });
}
BATON_LANE_INLINE Lanes Max(Lanes a, Lanes b) {
  return Map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
BATON_LANE_INLINE Lanes RoundToBf16(Lanes a) {
  return Map([&](int i) { return RoundBf16(a.v[i]); });
}

#endif

// The fixed tree of R11: distance 8, 4, 2, 1.
BATON_LANE_INLINE float SumLanes(Lanes a) {
  float v[kLanes];
  Store(v, a);
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) v[i] += v[i + distance];
  }
  return v[0];
}

// a . b over n values (dot.h).
BATON_LANE_INLINE float DotLanes(const float* a, const float* b, int n) {
  Lanes sum = Broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = Fma(Load(a + i), Load(b + i), sum);
  if (i == n) return SumLanes(sum);
  float lanes[kLanes];
  Store(lanes, sum);
  for (int lane = 0; i + lane < n; ++lane) {
    lanes[lane] = kernels::Fma(a[i + lane], b[i + lane], lanes[lane]);
  }
  return SumLanes(Load(lanes));
}

}  // namespace baton::kernels::cpu::BATON_LANES
