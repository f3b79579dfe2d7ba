#include "tests/sim/hash_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/ids.h"

namespace baton::sim {
namespace {

bool IsStop(const FinishRules& finish, int32_t token) {
  return std::find(finish.stop_tokens.begin(), finish.stop_tokens.end(), token) !=
         finish.stop_tokens.end();
}

uint64_t HashOf(const SamplingSpec& spec, int choice) {
  uint64_t hash = spec.greedy ? 1 : Mix64(spec.seed + static_cast<uint64_t>(choice));
  hash = Mix(hash, std::bit_cast<uint32_t>(spec.inv_temperature));
  hash = Mix(hash, static_cast<uint64_t>(spec.top_k));
  hash = Mix(hash, spec.top_p);
  hash = Mix(hash, spec.min_p);
  hash = Mix(hash, std::bit_cast<uint32_t>(spec.frequency_penalty));
  return hash;
}

}  // namespace

kernels::LayoutShape HashLayoutShape() {
  return {.head_dim = 128,
          .rope_dim = 64,
          .index_head_dim = 32,
          .window = kHashWindow,
          .hc_mult = 2,
          .hidden_size = 128,
          .num_layers = 6,
          .csa_layers = {},
          .hca_layers = {0, 1, 2, 3, 4, 5}};
}

uint64_t NextRow(HashState& state, const VisiblePages& visible, int32_t token) {
  const auto position = static_cast<uint64_t>(state.num_tokens);
  state.chain = Mix(state.chain, Mix(position, static_cast<uint64_t>(token)));
  uint64_t& slot = state.window[position % kHashWindow];
  const uint64_t newest = state.window[(position + kHashWindow - 1) % kHashWindow];
  const uint64_t row = Mix(Mix(state.chain, visible.hash), Mix(slot, newest));
  slot = row;
  ++state.num_tokens;
  return row;
}

void AbsorbRow(VisiblePages& visible, int64_t position, uint64_t row, int closing_words) {
  visible.Absorb(row);
  if (position % kPageTokens != kPageTokens - 1) return;
  for (int i = 0; i < closing_words; ++i) visible.Absorb(ClosingWord(row, i));
}

uint64_t Logits(const HashState& state, const VisiblePages& visible, uint64_t row) {
  return Mix(Mix(state.chain, visible.hash), row);
}

TokenRecord Choose(uint64_t logits, const SamplingSpec& spec, const FinishRules& finish, int choice,
                   int64_t num_generated) {
  const uint64_t hash = Mix(logits, HashOf(spec, choice));
  TokenRecord record;
  record.token = static_cast<int32_t>(hash % kHashVocab);
  while (num_generated + 1 <= finish.min_tokens && IsStop(finish, record.token))
    record.token = (record.token + 1) % kHashVocab;
  if (spec.top_logprobs < 0) return record;
  record.logprob = -static_cast<float>(hash >> 44) * 0x1.0p-16f;
  for (int i = 0; i < spec.top_logprobs; ++i) {
    record.top.push_back({.token = (record.token + i) % kHashVocab,
                          .logprob = record.logprob - static_cast<float>(i)});
  }
  return record;
}

HashText FaultFreeText(std::span<const int32_t> prompt, const SamplingSpec& spec,
                       const FinishRules& finish, int choice) {
  const kernels::PageLayout layout(HashLayoutShape());
  const int closing = static_cast<int>(layout.payload_bytes() / sizeof(uint64_t)) - kPageTokens;
  HashState state;
  VisiblePages visible;
  uint64_t row = 0;
  const auto step = [&](int32_t token) {
    row = NextRow(state, visible, token);
    AbsorbRow(visible, state.num_tokens - 1, row, closing);
  };
  for (const int32_t token : prompt) step(token);
  HashText text;
  for (;;) {
    const auto generated = static_cast<int64_t>(text.tokens.size());
    text.tokens.push_back(Choose(Logits(state, visible, row), spec, finish, choice, generated));
    const int32_t token = text.tokens.back().token;
    if (IsStop(finish, token)) {
      text.reason = FinishReason::kStop;
      text.stop_token = token;
      return text;
    }
    if (generated + 1 >= finish.max_tokens) return text;
    step(token);
  }
}

}  // namespace baton::sim
