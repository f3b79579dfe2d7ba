#include "engine/model/forward.h"

#include "common/status.h"

namespace baton::engine {

absl::Status RunModel(kernels::Ops& ops, const kernels::ModelWeights& weights) {
  RETURN_IF_ERROR(ops.Embed({.step = ops.view(), .embed = weights.embed}));
  return ops.Repeat(kernels::StepPart::kModel, [&]() -> absl::Status {
    bool finishes_previous = false;
    for (const kernels::LayerWeights& layer : weights.layers) {
      RETURN_IF_ERROR(RunLayer(ops, layer, finishes_previous));
      finishes_previous = true;
    }
    return FinishLayers(ops);
  });
}

}  // namespace baton::engine
