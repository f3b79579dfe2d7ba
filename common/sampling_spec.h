#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace baton {

inline constexpr uint64_t kTopPOff = uint64_t{1} << 32;
inline constexpr int kMaxTopLogprobs = 20;
inline constexpr size_t kMaxGrammarBytes = size_t{256} << 10;

// How one request's tokens are chosen (contracts.md 2); a valid value by construction (router or
// proto/wire checks).
struct SamplingSpec {
  bool greedy = false;
  float inv_temperature = 1.0f;  // 1 / T, computed once where the request is parsed
  uint64_t seed = 0;             // S of 2.1; choice i uses Mix64(seed + i)
  int top_k = 0;                 // 0: off
  uint64_t top_p = kTopPOff;     // rint(p * 2^32); 2^32: off
  uint64_t min_p = 0;            // rint(p * 2^32); 0: off
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // unique ids, ascending
  std::vector<int32_t> allowed_tokens;                // ascending; empty: all
  std::vector<std::vector<int32_t>>
      bad_words;          // each non-empty; its last token is banned after the others
  int top_logprobs = -1;  // -1: no logprobs; 0: the chosen token's only; at most 20
  bool operator==(const SamplingSpec&) const = default;
};

// When a sequence ends.
struct FinishRules {
  std::vector<int32_t> stop_tokens;  // eos and the request's stop ids; banned before min_tokens
  int64_t max_tokens = 1;
  int64_t min_tokens = 0;
  bool operator==(const FinishRules&) const = default;
};

// Which tokens engine/grammar allows after those already there (contracts.md 5, protocol.md 3.5
// and 4). In this order: reasoning up to and with </think>, the forced prefix, the grammar from its
// start, then eos alone. Without forced prefix and grammar nothing is masked after </think>.
struct MaskRules {
  std::string grammar;                     // common/grammar.h; empty: none
  std::vector<int32_t> forced_prefix;      // one-token masks; the grammar does not see them
  bool starts_in_reasoning = false;        // the prompt ends inside <think>
  std::optional<int64_t> thinking_budget;  // reasoning tokens before </think> is forced; 0 is legal
  std::vector<int32_t> reasoning_bans;     // never chosen while reasoning
  bool IsEmpty() const {
    return grammar.empty() && forced_prefix.empty() && !thinking_budget && reasoning_bans.empty();
  }
  bool operator==(const MaskRules&) const = default;
};

enum class FinishReason { kStop, kLength };

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  bool operator==(const TokenLogprob&) const = default;
};

// One chosen token with what 2.5 reports about it.
struct TokenRecord {
  int32_t token = 0;
  float logprob = 0;              // raw; 0 when no logprobs were asked for
  std::vector<TokenLogprob> top;  // in the order of 2.5, at most 20
  bool operator==(const TokenRecord&) const = default;
};

}  // namespace baton
