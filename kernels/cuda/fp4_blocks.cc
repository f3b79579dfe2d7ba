#include "kernels/cuda/fp4_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace baton::kernels::cuda {
namespace {

constexpr int kBlock = 128;
constexpr int kGroup = 32;
constexpr uint8_t kAnyExponent = 127;   // of zeros
constexpr int kWidestExactSpread = 14;  // code * 2^k is an e4m3 for k = -8 .. 6

bool IsZeroGroup(const std::byte* codes) {
  return std::all_of(codes, codes + kGroup / 2,
                     [](std::byte pair) { return (pair & std::byte{0x77}) == std::byte{0}; });
}

// e8m0 code of a power of two; 2^-127 is code 0.
uint8_t ExponentOf(float scale) {
  return static_cast<uint8_t>(std::clamp(std::ilogb(scale) + 127, 0, 254));
}

}  // namespace

Fp4Scales ReadFp4Scales(const HostMatrix& host) {
  const auto rows = static_cast<size_t>(host.rows), cols = static_cast<size_t>(host.cols);
  const size_t groups = cols / kGroup, blocks = cols / kBlock;
  Fp4Scales result;
  result.exponents.resize(rows * groups);
  result.common.assign((rows + kBlock - 1) / kBlock * blocks, 1.0f);
  std::vector<int> largest(result.common.size(), -1), smallest(result.common.size(), 255);
  for (size_t group = 0; group < rows * groups; ++group) {
    const uint8_t exponent = ExponentOf(host.scales[group]);
    if (IsZeroGroup(host.values + group * (kGroup / 2))) {
      result.exponents[group] = kAnyExponent;
      continue;
    }
    result.exponents[group] = exponent;
    result.largest = std::max(result.largest, exponent - 127);
    result.smallest = std::min(result.smallest, exponent - 127);
    const size_t block = group / groups / kBlock * blocks + group % groups / (kBlock / kGroup);
    largest[block] = std::max(largest[block], int{exponent});
    smallest[block] = std::min(smallest[block], int{exponent});
  }
  for (size_t block = 0; block < result.common.size(); ++block) {
    if (largest[block] < 0) continue;
    result.common[block] = std::ldexp(1.0f, largest[block] - 127 - 6);
    if (largest[block] - smallest[block] > kWidestExactSpread) result.is_wide = true;
  }
  return result;
}

}  // namespace baton::kernels::cuda
