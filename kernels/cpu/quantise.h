#pragma once

#include <bit>
#include <cstdint>

#include "kernels/tensor.h"

// Number formats of the checkpoint and of activations, and their roundings (model.md 9.3, 10). Pure
// functions, any thread. All rounding is to nearest, ties to even. Groups are small enough that
// scales stay powers of two in fp32's normal range.
namespace baton::kernels::cpu {

inline constexpr int kFp8Group = 128;     // linears' activations
inline constexpr int kKvGroup = 64;       // cached rows
inline constexpr int kFp4Group = 32;      // expert weights, index rows
inline constexpr float kFp8Max = 448.0f;  // largest e4m3
inline constexpr float kFp4Max = 6.0f;    // largest e2m1

// Smallest power of two >= v, from the bits (model.md 10). v is positive and normal.
inline float PowerOfTwoCeil(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  return std::bit_cast<float>((bits + 0x007fffffu) & 0x7f800000u);
}

// The nearest bf16, as fp32. Infinities stay; a NaN stays a NaN.
inline float RoundBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}
void RoundBf16(float* x, int n);  // in place
inline uint16_t EncodeBf16(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(RoundBf16(x)) >> 16);
}
inline float DecodeBf16(uint16_t code) {
  return std::bit_cast<float>(static_cast<uint32_t>(code) << 16);
}

// e4m3fn: bias 7, no infinity, 0x7f and 0xff are NaN. Encoding saturates at 448.
float RoundE4m3(float x);
uint8_t EncodeE4m3(float x);
float DecodeE4m3(uint8_t code);

// e8m0: byte b is 2^(b - 127); 255 is NaN. EncodeE8m0 takes a power of two in the normal range.
inline uint8_t EncodeE8m0(float scale) {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(scale) >> 23);
}
float DecodeE8m0(uint8_t code);

// e2m1 code in the low four bits (bit 3 is the sign; code 8 decodes to 0). Encoding saturates at 6.
uint8_t EncodeE2m1(float x);
float DecodeE2m1(uint8_t code);

// Scale of a group: PowerOfTwoCeil(max(amax, 1e-4) / 448) and PowerOfTwoCeil(max(amax, 6 * 2^-126)
// / 6) (model.md 10.1-10.3).
float Fp8Scale(const float* x, int n);
float Fp4Scale(const float* x, int n);

// codes[i] = e4m3(x[i] / s) as fp32 values, s = Fp8Scale(x, n); returns s. `codes` may be x.
float QuantiseFp8(const float* x, int n, float* codes);

// One row of an fp8 linear's input: groups of 128. codes [n], scales [n / 128]; n a multiple of
// 128. `codes` may be x. In float32 mode the values are copied and the scales are 1.
void QuantiseRow(const float* x, int n, NumericsMode mode, float* codes, float* scales);

// Round trips through the cache formats, in place (model.md 10.2, 10.3): e4m3 by groups of 64, e2m1
// by groups of 32. n a multiple of the group.
void SimulateFp8Kv(float* x, int n);
void SimulateFp4(float* x, int n);

// Orthonormal Walsh-Hadamard transform in natural order, fp32 butterflies of distance 1, 2, 4, ..,
// then one product by n^-0.5 (model.md 10.4). n is a power of two. In place, not rounded.
void Hadamard(float* x, int n);

// What an index query and an index key go through after rope: r(hadamard), then fp4 (model.md 10.6
// item 6, 7). float32 mode: nothing, the transform is orthogonal and cancels in the dot product.
void IndexForm(float* x, int n, NumericsMode mode);

}  // namespace baton::kernels::cpu
