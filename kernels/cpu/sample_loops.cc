#include "kernels/cpu/sample_loops.h"

#include <algorithm>

#include "common/philox.h"
#include "kernels/exact_math.h"

// The loops over the vocabulary, each compiled twice: a machine with FMA runs the same operations
// as instructions instead of library calls.
#if defined(__x86_64__)
#define BATON_WITH_FMA __attribute__((target("avx2,fma")))
#else
#define BATON_WITH_FMA
#endif

namespace baton::kernels::cpu {
namespace {

// A token can win only if its noise exceeds `lead` = best score - its score. Noise g > lead needs u
// > exp(-exp(-lead)), so 1 - u < e^-lead: the leading bits of its word are ones. Drops most tokens
// without computing a logarithm, never a winner: the slack covers the error of g and the rounding
// of z + g.
struct NoiseBar {
  float bar;  // best z + g, less the slack

  explicit NoiseBar(float best) : bar(best - (0.01f + Abs(best) * 0x1p-21f)) {}

  // Number of leading ones a winner's word has at least; above 33 no word suffices (noise is at
  // most 22.88).
  int LeadingOnes(float score) const {
    const float lead = bar - score;
    if (!(lead > 0)) return lead == lead ? 0 : kNever;
    return lead > 24.0f ? kNever : static_cast<int>(lead * 1.4426f);
  }

  static bool HasLeadingOnes(uint32_t word, int count) {
    if (count >= 32) return count <= 33 && word == 0xffffffffu;
    return (static_cast<uint64_t>(~word) >> (32 - count)) == 0;
  }

  static constexpr int kNever = 34;
};

// From the largest score, which may be infinite.
BATON_EXACT float DistanceBody(float score, float maximum) {
  return score == maximum ? 0.0f : score - maximum;
}

BATON_EXACT uint64_t FillMassesBody(std::span<const float> scores, float maximum,
                                    std::span<uint64_t> masses) {
  uint64_t sum = 0;
  for (size_t v = 0; v < scores.size(); ++v) {
    masses[v] = Mass(DistanceBody(scores[v], maximum));
    sum += masses[v];
  }
  return sum;
}

BATON_EXACT uint64_t SumMassesBody(std::span<const float> scores, float maximum) {
  uint64_t sum = 0;
  for (float score : scores) sum += Mass(DistanceBody(score, maximum));
  return sum;
}

BATON_EXACT BestToken NoisyArgMaxBody(std::span<const float> scores, const NoiseSource& noise,
                                      BestToken top) {
  const auto top_id = static_cast<uint32_t>(top.token);
  BestToken best{top.score + Gumbel(noise.Words(top_id / 4)[top_id % 4]), top.token};
  NoiseBar bar(best.score);
  const auto num_tokens = static_cast<uint32_t>(scores.size());
  for (uint32_t first = 0; first < num_tokens; first += 4) {
    const uint32_t count = std::min(4u, num_tokens - first);
    std::array<int, 4> ones = {NoiseBar::kNever, NoiseBar::kNever, NoiseBar::kNever,
                               NoiseBar::kNever};
    for (uint32_t i = 0; i < count; ++i) ones[i] = bar.LeadingOnes(scores[first + i]);
    if (*std::min_element(ones.begin(), ones.end()) >= NoiseBar::kNever) continue;
    const std::array<uint32_t, 4> words = noise.Words(first / 4);
    for (uint32_t i = 0; i < count; ++i) {
      if (!NoiseBar::HasLeadingOnes(words[i], ones[i])) continue;
      const float score = scores[first + i] + Gumbel(words[i]);
      if (!best.IsBeatenBy(score, static_cast<int32_t>(first + i))) continue;
      best = {score, static_cast<int32_t>(first + i)};
      bar = NoiseBar(score);
    }
  }
  return best;
}

BATON_WITH_FMA uint64_t FillMassesFma(std::span<const float> scores, float maximum,
                                      std::span<uint64_t> masses) {
  return FillMassesBody(scores, maximum, masses);
}

BATON_WITH_FMA uint64_t SumMassesFma(std::span<const float> scores, float maximum) {
  return SumMassesBody(scores, maximum);
}

BATON_WITH_FMA BestToken NoisyArgMaxFma(std::span<const float> scores, const NoiseSource& noise,
                                        BestToken top) {
  return NoisyArgMaxBody(scores, noise, top);
}

}  // namespace

std::array<uint32_t, 4> NoiseSource::Words(uint32_t group) const {
  const auto p = static_cast<uint64_t>(position);
  return Philox4x32({static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
                    {static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), group, 0});
}

float DistanceOf(float score, float maximum) { return DistanceBody(score, maximum); }

BestToken ArgMax(std::span<const float> scores) {
  BestToken best;
  for (size_t v = 0; v < scores.size(); ++v) best.Offer(scores[v], static_cast<int32_t>(v));
  return best;
}

uint64_t FillMasses(std::span<const float> scores, float maximum, std::span<uint64_t> masses,
                    bool has_fma) {
  return has_fma ? FillMassesFma(scores, maximum, masses) : FillMassesBody(scores, maximum, masses);
}

uint64_t SumMasses(std::span<const float> scores, float maximum, bool has_fma) {
  return has_fma ? SumMassesFma(scores, maximum) : SumMassesBody(scores, maximum);
}

BestToken NoisyArgMax(std::span<const float> scores, const NoiseSource& noise, BestToken top,
                      bool has_fma) {
  return has_fma ? NoisyArgMaxFma(scores, noise, top) : NoisyArgMaxBody(scores, noise, top);
}

}  // namespace baton::kernels::cpu
