#pragma once

#include "kernels/weights.h"

// The mHC arithmetic of one row (model.md 2.3, 2.4, 2.6). Everything is fp32; sums ascend and no
// multiply is fused with an add. Pure, any thread.
namespace baton::kernels::cpu {

inline constexpr int kMaxStreams = 16;

struct MixShape {
  int num_streams = 0;  // S
  int sinkhorn_iterations = 0;
  float epsilon = 0.0f;  // hc_eps
};

// products [(2 + S) * S] = (fn . x) * rsqrt of the streams -> pre [S], post [S], comb [S, S] (row,
// column).
void SplitMix(const MixShape& shape, const MixWeights& mix, const float* products, float* pre,
              float* post, float* comb);

// p[i] = sigmoid(products[i] * scale[0] + base[i]) + epsilon: `pre` above, and the whole of
// hc_head.
void StreamWeights(const MixShape& shape, const MixWeights& mix, const float* products, float* pre);

// u [H] = sum over i of pre[i] * streams[i]; streams [S, H].
void CollapseStreams(int num_streams, int hidden, const float* streams, const float* pre, float* u);

// streams[k] = post[k] * branch + sum over j of comb[j][k] * streams[j], in place, unrounded.
struct MergeArgs {
  int num_streams = 0, hidden = 0;
  const float* branch = nullptr;  // [H]
  const float* post = nullptr;    // [S]
  const float* comb = nullptr;    // [S, S]
  float* streams = nullptr;       // [S, H]
};
void MergeBranch(const MergeArgs& args);

}  // namespace baton::kernels::cpu
