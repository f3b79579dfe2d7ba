#pragma once

#include "absl/status/status.h"

#include "kernels/ops.h"
#include "kernels/weights.h"

// The drafter (model.md 8): row i takes H of position i and token i + 1, and predicts token i + 2.
// Engine thread.
namespace baton::engine {

// After Accept. Of rows that nothing is drafted from it makes the window rows and nothing else: the
// block is one layer deep over H, so that is all a later row needs. Then, if num_drafts > 0, drafts
// so many tokens of every row that drafts: the whole block, draft logits, a sample; the rows'
// streams become the block's output, from which the next draft goes on.
absl::Status RunDrafter(kernels::Ops& ops, const kernels::ModelWeights& weights, int num_drafts);

}  // namespace baton::engine
