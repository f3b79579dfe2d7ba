#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/sampling_spec.h"

// Top-k, top-p and min-p by integer masses (contracts.md 2.3).
namespace baton::kernels::cpu {

inline constexpr int kTokenBits = 17;

// Rank order as one integer: mass descending, then id ascending.
inline uint64_t RankKey(uint64_t mass, int32_t token) {
  return (mass << kTokenBits) + ((1u << kTokenBits) - 1 - static_cast<uint32_t>(token));
}
inline uint64_t MassOf(uint64_t key) { return key >> kTokenBits; }
inline int32_t TokenOf(uint64_t key) {
  constexpr uint64_t kMask = (1u << kTokenBits) - 1;
  return static_cast<int32_t>(kMask - (key & kMask));
}

// Whether any of the three is on; if not, no mass is computed and every token stays.
inline bool IsTruncated(const SamplingSpec& spec) {
  return spec.top_k > 0 || spec.top_p < kTopPOff || spec.min_p > 0;
}

// Cuts `keys`, the keys of all tokens that may be chosen in any order, to the allowed set, in any
// order.
void KeepAllowed(const SamplingSpec& spec, std::vector<uint64_t>& keys);

}  // namespace baton::kernels::cpu
