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

absl::Status DraftAgain(kernels::Ops& ops, const kernels::ModelWeights& weights) {
  RETURN_IF_ERROR(EnterDrafter(ops, weights, /*goes_on=*/true));
  return DraftOnce(ops, weights);
}

}  // namespace

absl::Status StoreDrafterRows(kernels::Ops& ops, const kernels::ModelWeights& weights) {
  RETURN_IF_ERROR(EnterDrafter(ops, weights, /*goes_on=*/false));
  return ops.Repeat(kernels::StepPart::kDrafterRows, [&] {
    return StoreLayerRows(ops, weights.mtp.block, /*finishes_previous=*/false);
  });
}

absl::Status RunDrafts(kernels::Ops& ops, const kernels::ModelWeights& weights, int count) {
  RETURN_IF_ERROR(EnterDrafter(ops, weights, /*goes_on=*/false));
  RETURN_IF_ERROR(ops.Repeat(kernels::StepPart::kDraft, [&] { return DraftOnce(ops, weights); }));
  for (int i = 1; i < count; ++i) {
    RETURN_IF_ERROR(
        ops.Repeat(kernels::StepPart::kNextDraft, [&] { return DraftAgain(ops, weights); }));
  }
  return absl::OkStatus();
}

}  // namespace baton::engine
