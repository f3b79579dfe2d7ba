#pragma once

#include "kernels/cpu/isa.h"

// The inner loops of attention, indexer and compressors, one version for each instruction set, all
// with the same bits (R11). Pure, any thread.
namespace baton::kernels::cpu {

inline constexpr int kKeyBlock = 64;  // R3: keys are taken in blocks of 64

// Up to 64 keys, each `dims` fp32 values; dims is a multiple of 32.
struct KeyBlock {
  const float* const* keys = nullptr;  // [num_keys]
  int num_keys = 0;
  int dims = 0;
};

// Running state of HCA pooling (contracts.md 1.4), or a stretch of its channels.
struct PoolState {
  float* max = nullptr;       // m
  float* sum = nullptr;       // s
  float* weighted = nullptr;  // o
  int channels = 0;           // a multiple of 16
};

// The state at a window's first token.
void ResetPool(const PoolState& state);

// Up to 8 contributions to one CSA entry, in token order.
struct PoolInput {
  static constexpr int kMaxTokens = 8;
  int num_tokens = 0;
  const float* kv[kMaxTokens];     // [channels] each
  const float* score[kMaxTokens];  // [channels] each, bias added
};

struct AttentionKernels {
  // scores[h * 64 + j] = query h . key j; queries [num_heads, dims].
  void (*score)(const float* queries, int num_heads, const KeyBlock& block, float* scores);
  // p = Exp(scale * score) in place; adds the unrounded p to *denominator, ascending.
  void (*exponentiate)(float* scores, int n, float scale, float* denominator);
  // p = ExpNeg(score - reference) in place, scores already scaled; adds as above.
  void (*exponentiate_below)(float* scores, int n, float reference, float* denominator);
  // sums[h * dims + d] += weights[h * 64 + j] * key j [d], j ascending.
  void (*accumulate)(const float* weights, int num_heads, const KeyBlock& block, float* sums);
  // One token into an HCA window.
  void (*fold)(const float* kv, const float* score, const PoolState& state);
  // entry [channels] = one CSA entry.
  void (*pool)(const PoolInput& input, int channels, float* entry);
};

const AttentionKernels& AttentionKernelsFor(Isa isa);

extern const AttentionKernels kAttentionKernelsScalar;
extern const AttentionKernels kAttentionKernelsAvx2;
extern const AttentionKernels kAttentionKernelsAvx512;

}  // namespace baton::kernels::cpu
