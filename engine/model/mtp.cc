#include "engine/model/mtp.h"

#include "common/status.h"
#include "engine/model/forward.h"

namespace baton::engine {
namespace {

absl::Status EnterDrafter(kernels::Ops& ops, const kernels::ModelWeights& weights, bool goes_on) {
  return ops.DraftInput(
      {.step = ops.view(), .embed = weights.embed, .mtp = weights.mtp, .goes_on = goes_on});
}

absl::Status DraftOnce(kernels::Ops& ops, const kernels::ModelWeights& weights) {
  RETURN_IF_ERROR(RunLayer(ops, weights.mtp.block, /*finishes_previous=*/false));
  RETURN_IF_ERROR(FinishLayers(ops));
  RETURN_IF_ERROR(ops.Head({.step = ops.view(),
                            .rows = {},
                            .has_all_rows = true,
                            .mix = weights.mtp.head_mix,
                            .norm = weights.mtp.norm,
                            .head = weights.head}));
  return ops.KeepDraft();
}

}  // namespace

absl::Status RunDrafter(kernels::Ops& ops, const kernels::ModelWeights& weights, int num_drafts) {
  return ops.Repeat(kernels::StepPart::kDrafter, num_drafts, [&]() -> absl::Status {
    RETURN_IF_ERROR(ops.AdvanceDrafter(kernels::DrafterRows::kKnown));
    RETURN_IF_ERROR(EnterDrafter(ops, weights, /*goes_on=*/false));
    RETURN_IF_ERROR(StoreLayerRows(ops, weights.mtp.block, /*finishes_previous=*/false));
    if (num_drafts == 0) return absl::OkStatus();
    RETURN_IF_ERROR(ops.AdvanceDrafter(kernels::DrafterRows::kDrafting));
    for (int i = 0; i < num_drafts; ++i) {
      RETURN_IF_ERROR(EnterDrafter(ops, weights, /*goes_on=*/i > 0));
      RETURN_IF_ERROR(DraftOnce(ops, weights));
    }
    return absl::OkStatus();
  });
}

}  // namespace baton::engine
