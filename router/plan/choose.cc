#include "router/plan/choose.h"

#include <algorithm>

namespace baton::router {

uint32_t UncachedTokens(const RequestFacts& request, uint32_t cached_pages) {
  if (!request.reads_cache) return std::max(1u, request.prompt_tokens);
  const uint64_t cached = uint64_t{cached_pages} * kPageTokens;
  if (cached >= request.prompt_tokens) return 1;
  return request.prompt_tokens - static_cast<uint32_t>(cached);
}

std::optional<PrefillChoice> ChoosePrefill(std::span<const PrefillCandidate> candidates,
                                           const RequestFacts& request) {
  std::optional<PrefillChoice> best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const PrefillCandidate& candidate = candidates[i];
    const uint32_t uncached = UncachedTokens(request, candidate.cached_pages);
    const double tokens = static_cast<double>(candidate.queued_tokens) + uncached;
    const double seconds = tokens / std::max(candidate.tokens_per_s, 1e-6);
    if (!best || seconds < best->seconds)
      best = PrefillChoice{.index = i, .uncached_tokens = uncached, .seconds = seconds};
  }
  return best;
}

double ExpectedStepUs(const DecodeCandidate& candidate, const RequestFacts& request,
                      const ChooseWeights& weights) {
  double step = weights.nominal_step_us;
  if (candidate.last_step_us > 0)
    step = candidate.running > 0 ? candidate.last_step_us
                                 : std::min<double>(candidate.last_step_us, step);
  const double before = std::max(1u, candidate.running);
  const double after = static_cast<double>(candidate.sequences) + request.num_sequences;
  return step * (0.5 + 0.5 * after / before);
}

std::optional<size_t> ChooseDecode(std::span<const DecodeCandidate> candidates,
                                   const RequestFacts& request, const ChooseWeights& weights) {
  std::optional<size_t> best;
  double best_step = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const DecodeCandidate& candidate = candidates[i];
    if (candidate.free_pages < request.num_pages) continue;
    if (candidate.sequences + request.num_sequences > candidate.max_sequences) continue;
    const double step = ExpectedStepUs(candidate, request, weights);
    if (best && step >= best_step) continue;
    best = i;
    best_step = step;
  }
  return best;
}

}  // namespace baton::router
