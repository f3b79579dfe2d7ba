#pragma once

#include <cmath>
#include <cstdint>

// The transcendental functions of the token path (contracts.md 2.6): only IEEE single +, -, *, /,
// sqrt, fma and rint, so that every compiler and both back ends give the same bits. Compile with
// -ffp-contract=off (nvcc: -fmad=false). Pure, any thread.
#if defined(__CUDACC__)
#define BATON_EXACT __host__ __device__ __forceinline__
#else
// Inlined even in debug builds, so that a caller compiled for FMA hardware gets its instructions
// here too.
#define BATON_EXACT __attribute__((always_inline)) inline
#endif

namespace baton::kernels {

#if defined(__CUDA_ARCH__)
BATON_EXACT float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
BATON_EXACT float Rint(float x) { return ::rintf(x); }
BATON_EXACT float Sqrt(float x) { return __fsqrt_rn(x); }
BATON_EXACT uint32_t BitsOf(float x) { return __float_as_uint(x); }
BATON_EXACT float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
#else
BATON_EXACT float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
BATON_EXACT float Rint(float x) { return __builtin_rintf(x); }
BATON_EXACT float Sqrt(float x) { return __builtin_sqrtf(x); }
BATON_EXACT uint32_t BitsOf(float x) { return __builtin_bit_cast(uint32_t, x); }
BATON_EXACT float FloatOf(uint32_t bits) { return __builtin_bit_cast(float, bits); }
#endif
BATON_EXACT float Rsqrt(float x) { return 1.0f / Sqrt(x); }
BATON_EXACT float Abs(float x) { return x < 0 ? -x : x; }

// 2^k for -126 <= k <= 127.
BATON_EXACT float PowerOfTwo(int32_t k) { return FloatOf(static_cast<uint32_t>(k + 127) << 23); }

// e^d = fraction * 2^exponent, |d| <= 87.
struct ExpParts {
  float fraction;
  int32_t exponent;
};
// e^d * 2^-k, k the integer nearest to d / ln 2.
BATON_EXACT float ExpFraction(float d, float k) {
  const float r = Fma(k, 2.12194442e-4f, Fma(k, -0.693359375f, d));
  float p = Fma(1.98756912e-4f, r, 1.39819994e-3f);
  p = Fma(p, r, 8.33345205e-3f);
  p = Fma(p, r, 4.16657962e-2f);
  p = Fma(p, r, 1.66666657e-1f);
  p = Fma(p, r, 0.5f);
  return Fma(p, r * r, r) + 1.0f;
}
BATON_EXACT ExpParts SplitExp(float d) {
  const float k = Rint(d * 1.44269502f);
  return {ExpFraction(d, k), static_cast<int32_t>(k)};
}

// e^d for |d| <= 87.
BATON_EXACT float Exp(float d) {
  const ExpParts parts = SplitExp(d);
  return parts.fraction * PowerOfTwo(parts.exponent);
}

// e^d for d <= 0, -inf included; 0 below -87.
BATON_EXACT float ExpNeg(float d) {
  if (!(d >= -87.0f)) return 0.0f;
  const ExpParts parts = SplitExp(d);
  return parts.exponent < -126 ? 0.0f : parts.fraction * PowerOfTwo(parts.exponent);
}

// The integer nearest to e^d * 2^32 for d <= 0; 0 below -24 and for NaN. Monotone.
BATON_EXACT uint64_t Mass(float d) {
  if (!(d >= -24.0f)) return 0;
  const ExpParts parts = SplitExp(d);
  return static_cast<uint64_t>(Rint(parts.fraction * PowerOfTwo(parts.exponent + 32)));
}

// ln x for normal x > 0.
BATON_EXACT float Log(float x) {
  const uint32_t bits = BitsOf(x);
  const int32_t q = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = FloatOf(bits - (static_cast<uint32_t>(q) << 23)) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = Fma(p, f, -1.1514610310e-1f);
  p = Fma(p, f, 1.1676998740e-1f);
  p = Fma(p, f, -1.2420140846e-1f);
  p = Fma(p, f, 1.4249322787e-1f);
  p = Fma(p, f, -1.6668057665e-1f);
  p = Fma(p, f, 2.0000714765e-1f);
  p = Fma(p, f, -2.4999993993e-1f);
  p = Fma(p, f, 3.3333331174e-1f);
  const float exponent = static_cast<float>(q);
  float y = (p * f) * z;
  y = Fma(exponent, -2.12194442e-4f, y);
  y = Fma(-0.5f, z, y);
  return Fma(exponent, 0.693359375f, f + y);
}

// ln(1 - w), 0 <= w <= 0.5.
BATON_EXACT float Log1m(float w) {
  const float t = 1.0f - w;
  return t == 1.0f ? -w : Log(t) * (w / (1.0f - t));
}

// ln(1 + w), 0 <= w <= 1.
BATON_EXACT float Log1p(float w) {
  const float t = 1.0f + w;
  return t == 1.0f ? w : Log(t) * (w / (t - 1.0f));
}

BATON_EXACT float Sigmoid(float x) {
  const float e = ExpNeg(-Abs(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

BATON_EXACT float Silu(float x) { return x * Sigmoid(x); }
BATON_EXACT float Softplus(float x) { return (x > 0 ? x : 0.0f) + Log1p(ExpNeg(-Abs(x))); }

// Gumbel noise of a uniform word (contracts.md 2.1): -log(-log((word + 0.5) * 2^-32)), -3.13 ..
// 22.88.
BATON_EXACT float Gumbel(uint32_t word) {
  const uint64_t n = 2 * uint64_t{word} + 1;
  const float e = word < 0x80000000u
                      ? -Log(static_cast<float>(n) * 0x1p-33f)
                      : -Log1m(static_cast<float>((uint64_t{1} << 33) - n) * 0x1p-33f);
  return -Log(e);
}

// Which frequencies a layer rotates by (model.md 3.2). yarn_factor 0: plain.
struct RopeShape {
  int rope_dim = 0;
  double theta = 0;
  double yarn_factor = 0;
  double yarn_beta_fast = 0;
  double yarn_beta_slow = 0;
  int yarn_original_positions = 0;
};

// f_i, 0 <= i < rope_dim / 2, radians a position. In double, rounded once; libm is allowed here:
// once, at load.
inline float RopeFrequency(const RopeShape& shape, int i) {
  const double plain = std::pow(shape.theta, -2.0 * i / shape.rope_dim);
  if (shape.yarn_factor == 0) return static_cast<float>(plain);
  const auto correction = [&shape](double rotations) {
    constexpr double kTwoPi = 6.283185307179586477;
    return shape.rope_dim * std::log(shape.yarn_original_positions / (kTwoPi * rotations)) /
           (2.0 * std::log(shape.theta));
  };
  const double low = std::fmax(std::floor(correction(shape.yarn_beta_fast)), 0.0);
  const double high = std::fmin(std::ceil(correction(shape.yarn_beta_slow)), shape.rope_dim - 1.0);
  const double width = high > low ? high - low : 0.001;
  const double ramp = std::fmin(std::fmax((i - low) / width, 0.0), 1.0);
  return static_cast<float>(plain / shape.yarn_factor * ramp + plain * (1.0 - ramp));
}

// The angle of a pair at a position: one fp32 product.
BATON_EXACT float RopeAngle(int64_t position, float frequency) {
  return static_cast<float>(position) * frequency;
}

struct SinCos {
  float sin, cos;
};

// sin and cos of 0 <= angle < 2^20 or so, in double without fma, each rounded once.
BATON_EXACT SinCos RopeSinCos(float angle_f32) {
  const double angle = static_cast<double>(angle_f32);
  const double n = ::rint(angle * 0.6366197723675814);
  const double r = (angle - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = -2.50507602534068634195e-08 + z * s;
  s = 2.75573137070700676789e-06 + z * s;
  s = -1.98412698298579493134e-04 + z * s;
  s = 8.33333333332248946124e-03 + z * s;
  s = -1.66666666666666324348e-01 + z * s;
  s = r + r * z * s;
  double c = -1.13596475577881948265e-11;
  c = 2.08757232129817482790e-09 + z * c;
  c = -2.75573143513906633035e-07 + z * c;
  c = 2.48015872894767294178e-05 + z * c;
  c = -1.38888888888741095749e-03 + z * c;
  c = 4.16666666666666019037e-02 + z * c;
  c = 1.0 - (0.5 * z - z * z * c);
  const float sine = static_cast<float>(s);
  const float cosine = static_cast<float>(c);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

}  // namespace baton::kernels
