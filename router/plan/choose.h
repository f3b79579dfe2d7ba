#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "common/ids.h"

// Placement decisions: facts in, choice out; ties go to the first candidate (design.md 9). Pure.
namespace baton::router {

struct PrefillCandidate {
  WorkerId worker;
  uint64_t queued_tokens = 0;  // uncached tokens before ours
  double tokens_per_s = 0;     // measured, or the assumed rate; > 0
  uint32_t cached_pages = 0;   // of the request's leading full pages
};

struct DecodeCandidate {
  WorkerId worker;
  uint32_t free_pages = 0;  // free or evictable, less what is promised already
  uint32_t sequences = 0;   // running, waiting and promised
  uint32_t running = 0;     // in the batch whose step time is known
  uint32_t max_sequences = 0;
  uint32_t last_step_us = 0;  // 0: not measured
};

struct RequestFacts {
  uint32_t prompt_tokens = 0;
  uint32_t num_pages = 0;  // to book
  uint32_t num_sequences = 1;
  bool reads_cache = true;  // false with prompt_logprobs (contracts.md 5)
};

struct ChooseWeights {
  double nominal_step_us = 5'000;  // of an idle decode worker
};

struct PrefillChoice {
  size_t index = 0;              // into the candidates
  uint32_t uncached_tokens = 0;  // to compute, at least 1
  double seconds = 0;            // expected until the first token
};

// Prompt tokens a worker with that overlap still computes: at least the last one.
uint32_t UncachedTokens(const RequestFacts& request, uint32_t cached_pages);

// The candidate that is expected to finish this prompt first; absent if there is none.
std::optional<PrefillChoice> ChoosePrefill(std::span<const PrefillCandidate> candidates,
                                           const RequestFacts& request);

// Expected step time in microseconds with this request's sequences in the batch: half of a step is
// taken as fixed, half as proportional to the batch.
double ExpectedStepUs(const DecodeCandidate& candidate, const RequestFacts& request,
                      const ChooseWeights& weights);

// The candidate with room for the request and the lowest expected step time; absent if none has
// room.
std::optional<size_t> ChooseDecode(std::span<const DecodeCandidate> candidates,
                                   const RequestFacts& request, const ChooseWeights& weights);

}  // namespace baton::router
