#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace baton::kernels::cpu {

// A candidate of an argmax; -1: none yet. Higher score wins, then the lower id.
struct BestToken {
  float score = 0;
  int32_t token = -1;

  bool IsBeatenBy(float other_score, int32_t other_token) const {
    if (token < 0) return other_score > -kInfinity;
    return other_score > score || (other_score == score && other_token < token);
  }
  void Offer(float other_score, int32_t other_token) {
    if (IsBeatenBy(other_score, other_token)) *this = {other_score, other_token};
  }

 private:
  static constexpr float kInfinity = __builtin_inff();
};

// Where a row's noise comes from (contracts.md 2.1).
struct NoiseSource {
  uint64_t key = 0;
  int64_t position = 0;

  // Random words of tokens 4 * group .. 4 * group + 3.
  std::array<uint32_t, 4> Words(uint32_t group) const;
};

// Argmax over all tokens; NaN and -inf are never chosen. token -1: none.
BestToken ArgMax(std::span<const float> scores);

// score - maximum, 0 for the maximum itself, infinite or not (contracts.md 2.3).
float DistanceOf(float score, float maximum);

// masses[v] = Mass(DistanceOf(scores[v], maximum)); returns their sum.
uint64_t FillMasses(std::span<const float> scores, float maximum, std::span<uint64_t> masses,
                    bool has_fma);

// Sum of Mass(DistanceOf(scores[v], maximum)).
uint64_t SumMasses(std::span<const float> scores, float maximum, bool has_fma);

// Argmax of scores[v] + Gumbel noise over all tokens. `top`: the argmax of scores.
BestToken NoisyArgMax(std::span<const float> scores, const NoiseSource& noise, BestToken top,
                      bool has_fma);

}  // namespace baton::kernels::cpu
