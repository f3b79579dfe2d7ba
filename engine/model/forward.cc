#include "engine/model/forward.h"

#include "common/status.h"

namespace baton::engine {

absl::Status RunModel(kernels::Ops& ops, const kernels::ModelWeights& weights, bool has_head) {
  const auto part = has_head ? kernels::StepPart::kModelAndHead : kernels::StepPart::kModel;
  return ops.Repeat(part, 0, [&]() -> absl::Status {
    RETURN_IF_ERROR(ops.Embed({.step = ops.view(), .embed = weights.embed}));
    bool finishes_previous = false;
    for (const kernels::LayerWeights& layer : weights.layers) {
      RETURN_IF_ERROR(RunLayer(ops, layer, finishes_previous));
      finishes_previous = true;
    }
    RETURN_IF_ERROR(FinishLayers(ops));
    if (!has_head) return absl::OkStatus();
    return ops.Head({.step = ops.view(),
                     .rows = {},
                     .has_all_rows = true,
                     .mix = weights.head_mix,
                     .norm = weights.norm,
                     .head = weights.head});
  });
}

}  // namespace baton::engine
