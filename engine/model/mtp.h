#pragma once

#include "absl/status/status.h"

#include "kernels/ops.h"
#include "kernels/weights.h"

// The drafter (model.md 8): row i takes H of position i and token i + 1, and predicts token i + 2.
// Engine thread; AdvanceDrafter has set up the rows, the token of row i being token i + 1.
namespace baton::engine {

// Makes the rows' window rows and nothing else: the block is one layer deep over H, so that is all
// a later row needs.
absl::Status StoreDrafterRows(kernels::Ops& ops, const kernels::ModelWeights& weights);

// Drafts `count` tokens of every row: the whole block, draft logits, a sample; the rows' streams
// become the block's output, from which the next draft goes on.
absl::Status RunDrafts(kernels::Ops& ops, const kernels::ModelWeights& weights, int count);

}  // namespace baton::engine
