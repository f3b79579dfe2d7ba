#pragma once

#include "absl/status/status.h"

#include "kernels/ops.h"
#include "kernels/weights.h"

// The model as a sequence of phases (model.md 2.5, appendix A). Prefill and decode share it; they
// differ in the step AdvanceStep has set up. Engine thread.
namespace baton::engine {

// Both sites of one layer. `finishes_previous`: the site before has left a branch that is still to
// be merged. Leaves the layer's own last branch unmerged.
absl::Status RunLayer(kernels::Ops& ops, const kernels::LayerWeights& layer,
                      bool finishes_previous);

// The attention site up to its stored rows: all that later rows need of this one where nothing is
// drafted from it (mtp.h).
absl::Status StoreLayerRows(kernels::Ops& ops, const kernels::LayerWeights& layer,
                            bool finishes_previous);

// Merges the last branch: afterwards the streams are the layer's output.
absl::Status FinishLayers(kernels::Ops& ops);

// Embedding, all layers, last merge: the streams of every row of the step, before hc_head; with
// `has_head` the logits of every row too.
absl::Status RunModel(kernels::Ops& ops, const kernels::ModelWeights& weights, bool has_head);

}  // namespace baton::engine
