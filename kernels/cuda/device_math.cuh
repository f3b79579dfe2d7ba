#pragma once

#include <cstdint>

#include "kernels/exact_math.h"

// Number formats and fixed-order sums on the device. Every function gives the bits of its
// counterpart in kernels/cpu (quantise.h, dot.h), so that cached rows and fp8 inputs are equal on
// both back ends.
namespace baton::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kFp8Group = 128;  // linears' activations
constexpr int kKvGroup = 64;    // cached rows
constexpr int kFp4Group = 32;   // expert weights, index rows
constexpr float kFp8Max = 448.0f;
constexpr float kFp4Max = 6.0f;

using Bf16 = uint16_t;  // bits

__device__ __forceinline__ float RoundBf16(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  return FloatOf((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}
__device__ __forceinline__ Bf16 EncodeBf16(float x) {
  return static_cast<Bf16>(BitsOf(RoundBf16(x)) >> 16);
}
__device__ __forceinline__ float DecodeBf16(Bf16 code) {
  return FloatOf(static_cast<uint32_t>(code) << 16);
}

__device__ __forceinline__ float PowerOfTwoCeil(float v) {
  return FloatOf((BitsOf(v) + 0x007fffffu) & 0x7f800000u);
}
__device__ __forceinline__ float CopySign(float magnitude, float sign) {
  return FloatOf((BitsOf(magnitude) & 0x7fffffffu) | (BitsOf(sign) & 0x80000000u));
}
__device__ __forceinline__ float Clamp(float x, float limit) {
  return x < -limit ? -limit : (x > limit ? limit : x);
}

// Nearest e4m3 of |x| <= 448.
__device__ __forceinline__ float RoundE4m3InRange(float x) {
  const uint32_t bits = BitsOf(x);
  const uint32_t normal = (bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u;
  const float magnitude = Abs(x);
  const float subnormal = CopySign((magnitude + 0x1p14f) - 0x1p14f, x);
  return magnitude < 0x1p-6f ? subnormal : FloatOf(normal);
}

// Code of a value that is an e4m3.
__device__ __forceinline__ uint8_t CodeOfE4m3(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const float magnitude = FloatOf(bits & 0x7fffffffu);
  if (magnitude < 0x1p-6f) {
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(magnitude * 0x1p9f));
  }
  const uint32_t exponent = ((bits >> 23) & 0xffu) - 120u;
  return static_cast<uint8_t>(sign | (exponent << 3) | ((bits >> 20) & 7u));
}
__device__ __forceinline__ uint8_t EncodeE4m3(float x) {
  return CodeOfE4m3(RoundE4m3InRange(Clamp(x, kFp8Max)));
}
__device__ __forceinline__ float DecodeE4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const float value = magnitude < 8u ? static_cast<float>(magnitude) * 0x1p-9f
                                     : FloatOf((magnitude << 20) + (120u << 23));
  return (code & 0x80u) != 0 ? -value : value;
}

__device__ __forceinline__ uint8_t EncodeE8m0(float scale) {
  return static_cast<uint8_t>(BitsOf(scale) >> 23);
}
__device__ __forceinline__ float DecodeE8m0(uint8_t code) {
  return code == 0 ? 0x1p-127f : FloatOf(static_cast<uint32_t>(code) << 23);
}

// Nearest e2m1 of |x| <= 6, ties to the even code.
__device__ __forceinline__ float RoundE2m1InRange(float x) {
  const float a = Abs(x);
  const float fine = (a + 0x1.8p22f) - 0x1.8p22f;
  const float middle = (a + 0x1.8p23f) - 0x1.8p23f;
  const float coarse = ((a * 0.5f + 0x1.8p23f) - 0x1.8p23f) * 2.0f;
  return CopySign(a < 2.0f ? fine : (a < 4.0f ? middle : coarse), x);
}
__device__ __forceinline__ uint8_t EncodeE2m1(float x) {
  const float value = RoundE2m1InRange(Clamp(x, kFp4Max));
  const float a = Abs(value);
  const uint8_t code = static_cast<uint8_t>(a <= 2.0f ? a * 2.0f : (a <= 4.0f ? a + 2.0f : 7.0f));
  return static_cast<uint8_t>(value < 0.0f ? code | 8 : code);
}
__device__ __forceinline__ float DecodeE2m1(uint8_t code) {
  const uint32_t m = code & 7u;
  const float value = m <= 4u ? static_cast<float>(m) * 0.5f : (m == 7u ? 6.0f : m - 2.0f);
  return (code & 8u) != 0 && value != 0.0f ? -value : value;
}

__device__ __forceinline__ float Fp8ScaleOf(float amax) {
  return PowerOfTwoCeil((amax > 1e-4f ? amax : 1e-4f) * (1.0f / kFp8Max));
}
__device__ __forceinline__ float Fp4ScaleOf(float amax) {
  const float smallest = kFp4Max * 0x1p-126f;
  return PowerOfTwoCeil((amax > smallest ? amax : smallest) / kFp4Max);
}
__device__ __forceinline__ float Larger(float a, float b) { return a > b ? a : b; }

// max over groups of `width` neighbouring lanes (a power of two).
__device__ __forceinline__ float GroupMax(float x, int width) {
  for (int d = width / 2; d > 0; d /= 2) x = Larger(x, __shfl_xor_sync(kFullWarp, x, d));
  return x;
}

// R11's sum of x[i]^2 over n values in shared memory, by one warp: 16 lanes by fma (lane = index
// mod 16), then the tree 8, 4, 2, 1. Every lane gets the sum.
__device__ __forceinline__ float SquareSum(const float* x, int n) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  float sum = 0.0f;
  if (lane < 16) {
#pragma unroll 16
    for (int i = lane; i < n; i += 16) sum = Fma(x[i], x[i], sum);
  }
  for (int d = 8; d > 0; d /= 2) sum = sum + __shfl_down_sync(kFullWarp, sum, d);
  return __shfl_sync(kFullWarp, sum, 0);
}
__device__ __forceinline__ float InverseRms(float square_sum, int n, float epsilon) {
  return Rsqrt(square_sum / static_cast<float>(n) + epsilon);
}

// One pair by an angle: (a cos - b sin, a sin + b cos).
struct Pair {
  float a, b;
};
__device__ __forceinline__ Pair Rotate(Pair v, SinCos angle) {
  return {v.a * angle.cos - v.b * angle.sin, v.a * angle.sin + v.b * angle.cos};
}
__device__ __forceinline__ Pair RotateBack(Pair v, SinCos angle) {
  return {v.a * angle.cos + v.b * angle.sin, v.b * angle.cos - v.a * angle.sin};
}

// Two floats rounded to bf16, `low` in the low half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace baton::kernels::cuda
