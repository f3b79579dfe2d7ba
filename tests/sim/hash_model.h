#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "common/rng.h"
#include "common/sampling_spec.h"
#include "kernels/page_layout.h"

// A model for the simulator: the row of a position is a hash of the tokens before it, of the window
// in its tail and of every byte of its pages below it, and the next token is a hash of that. One
// stale byte anywhere changes the text. Pure.
namespace baton::sim {

inline constexpr int kHashVocab = 512;
inline constexpr int32_t kHashEos = 1;
inline constexpr int kHashWindow = 16;

// Order of the arguments matters.
constexpr uint64_t Mix(uint64_t a, uint64_t b) { return Mix64(a * 0xD6E8FEB86659FD93u + b); }

// A small shape of the family, whose payload holds one word per token and some more.
kernels::LayoutShape HashLayoutShape();

// What a tail holds after `num_tokens` tokens.
struct HashState {
  int64_t num_tokens = 0;
  uint64_t chain = 0;                          // over the tokens
  std::array<uint64_t, kHashWindow> window{};  // rows by position mod kHashWindow
  bool operator==(const HashState&) const = default;
};

// Everything a position reads from pages, as one hash of all their words so far.
struct VisiblePages {
  uint64_t hash = 0;
  void Absorb(uint64_t word) { hash = Mix(hash, word); }
};

// Words of a page: one per token, then those written when its last token closes it.
inline uint64_t ClosingWord(uint64_t row, int index) {
  return Mix(row, static_cast<uint64_t>(index));
}

// Moves the state over `token` and returns the row's word.
uint64_t NextRow(HashState& state, const VisiblePages& visible, int32_t token);
// Absorbs the row of `position`, and a closed page's other words.
void AbsorbRow(VisiblePages& visible, int64_t position, uint64_t row, int closing_words);

// What the logits of a row are here; the visible pages include the row.
uint64_t Logits(const HashState& state, const VisiblePages& visible, uint64_t row);

// Contracts.md 2 in the small: a function of logits, request, choice and position alone.
// `num_generated` counts the tokens before this one.
TokenRecord Choose(uint64_t logits, const SamplingSpec& spec, const FinishRules& finish, int choice,
                   int64_t num_generated);

// The text of a run that meets no fault.
struct HashText {
  std::vector<TokenRecord> tokens;
  FinishReason reason = FinishReason::kLength;
  int32_t stop_token = -1;
};
HashText FaultFreeText(std::span<const int32_t> prompt, const SamplingSpec& spec,
                       const FinishRules& finish, int choice);

}  // namespace baton::sim
