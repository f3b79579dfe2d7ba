#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/check.h"

namespace baton::kernels::cpu {
namespace {

constexpr std::array<float, 8> kE2m1Values = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

float AbsMax(const float* x, int n) {
  float amax = 0.0f;
  for (int i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

// Branch-free so that loops over it vectorise; |x| <= 448.
inline float RoundE4m3InRange(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  // Normal values keep 3 of 23 mantissa bits.
  const uint32_t normal = (bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u;
  // Below 2^-6 the step is 2^-9: adding 2^14 puts that step at fp32's last bit.
  const float magnitude = std::fabs(x);
  const float subnormal = std::copysign((magnitude + 0x1p14f) - 0x1p14f, x);
  return magnitude < 0x1p-6f ? subnormal : std::bit_cast<float>(normal);
}

// Nearest e2m1 of |x| <= 6, ties to the even code (model.md 10.3).
inline float RoundE2m1InRange(float x) {
  const float a = std::fabs(x);
  // Steps of the format: 0.5 below 2, 1 below 4, 2 above; the magic sums round to them.
  const float fine = (a + 0x1.8p22f) - 0x1.8p22f;
  const float middle = (a + 0x1.8p23f) - 0x1.8p23f;
  const float coarse = ((a * 0.5f + 0x1.8p23f) - 0x1.8p23f) * 2.0f;
  return std::copysign(a < 2.0f ? fine : (a < 4.0f ? middle : coarse), x);
}

}  // namespace

void RoundBf16(float* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = RoundBf16(x[i]);
}

float RoundE4m3(float x) { return RoundE4m3InRange(std::clamp(x, -kFp8Max, kFp8Max)); }

uint8_t EncodeE4m3(float x) {
  const float value = RoundE4m3(x);
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const float magnitude = std::fabs(value);
  if (magnitude < 0x1p-6f)
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(magnitude * 0x1p9f));
  const uint32_t exponent = ((bits >> 23) & 0xffu) - 120u;
  return static_cast<uint8_t>(sign | (exponent << 3) | ((bits >> 20) & 7u));
}

float DecodeE4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  const float value = magnitude < 8u ? static_cast<float>(magnitude) * 0x1p-9f
                                     : std::bit_cast<float>((magnitude << 20) + (120u << 23));
  return (code & 0x80u) != 0 ? -value : value;
}

float DecodeE8m0(uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<uint32_t>(code) << 23);
}

uint8_t EncodeE2m1(float x) {
  const float value = RoundE2m1InRange(std::clamp(x, -kFp4Max, kFp4Max));
  const auto found = std::find(kE2m1Values.begin(), kE2m1Values.end(), std::fabs(value));
  const auto code = static_cast<uint8_t>(found - kE2m1Values.begin());
  return static_cast<uint8_t>(value < 0.0f ? code | 8 : code);
}

float DecodeE2m1(uint8_t code) {
  const float value = kE2m1Values[code & 7u];
  return (code & 8u) != 0 && value != 0.0f ? -value : value;
}

float Fp8Scale(const float* x, int n) {
  return PowerOfTwoCeil(std::max(AbsMax(x, n), 1e-4f) * (1.0f / kFp8Max));
}

float Fp4Scale(const float* x, int n) {
  return PowerOfTwoCeil(std::max(AbsMax(x, n), kFp4Max * 0x1p-126f) / kFp4Max);
}

float QuantiseFp8(const float* x, int n, float* codes) {
  const float scale = Fp8Scale(x, n);
  const float inverse = 1.0f / scale;  // exact: scale is a power of two >= 2^-22
  for (int i = 0; i < n; ++i) {
    codes[i] = RoundE4m3InRange(std::min(std::max(x[i] * inverse, -kFp8Max), kFp8Max));
  }
  return scale;
}

void QuantiseRow(const float* x, int n, NumericsMode mode, float* codes, float* scales) {
  CHECK(n % kFp8Group == 0);
  if (mode == NumericsMode::kFloat32) {
    if (codes != x) std::copy_n(x, n, codes);
    std::fill_n(scales, n / kFp8Group, 1.0f);
    return;
  }
  for (int group = 0; group < n / kFp8Group; ++group) {
    scales[group] = QuantiseFp8(x + group * kFp8Group, kFp8Group, codes + group * kFp8Group);
  }
}

void SimulateFp8Kv(float* x, int n) {
  CHECK(n % kKvGroup == 0);
  for (float* group = x; group < x + n; group += kKvGroup) {
    const float scale = QuantiseFp8(group, kKvGroup, group);
    for (int i = 0; i < kKvGroup; ++i) group[i] *= scale;
  }
}

void SimulateFp4(float* x, int n) {
  CHECK(n % kFp4Group == 0);
  for (float* group = x; group < x + n; group += kFp4Group) {
    const float scale = Fp4Scale(group, kFp4Group);
    const float inverse = 1.0f / scale;  // exact: 2^-126 <= scale
    for (int i = 0; i < kFp4Group; ++i) {
      const float scaled = std::min(std::max(group[i] * inverse, -kFp4Max), kFp4Max);
      group[i] = RoundE2m1InRange(scaled) * scale;
    }
  }
}

void Hadamard(float* x, int n) {
  CHECK(std::has_single_bit(static_cast<unsigned>(n)));
  for (int distance = 1; distance < n; distance *= 2) {
    for (int start = 0; start < n; start += 2 * distance) {
      float* low = x + start;
      float* high = low + distance;
      for (int i = 0; i < distance; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
  }
  const auto norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
  for (int i = 0; i < n; ++i) x[i] *= norm;
}

void IndexForm(float* x, int n, NumericsMode mode) {
  if (mode == NumericsMode::kFloat32) return;
  Hadamard(x, n);
  RoundBf16(x, n);
  SimulateFp4(x, n);
}

}  // namespace baton::kernels::cpu
