#include "engine/model/mtp.h"

#include <numeric>
#include <vector>

#include "common/status.h"
#include "engine/model/forward.h"

namespace baton::engine {
namespace {

absl::Status EnterDrafter(kernels::Ops& ops, const kernels::ModelWeights& weights,
                          std::span<const int32_t> source_row) {
  return ops.DraftInput(
      {.step = ops.view(), .embed = weights.embed, .mtp = weights.mtp, .source_row = source_row});
}

absl::Status RunBlock(kernels::Ops& ops, const kernels::ModelWeights& weights) {
  return ops.Repeat(kernels::StepPart::kDrafter, [&]() -> absl::Status {
    RETURN_IF_ERROR(RunLayer(ops, weights.mtp.block, /*finishes_previous=*/false));
    return FinishLayers(ops);
  });
}

}  // namespace

absl::Status StoreDrafterRows(kernels::Ops& ops, const kernels::ModelWeights& weights,
                              std::span<const int32_t> source_row) {
  RETURN_IF_ERROR(EnterDrafter(ops, weights, source_row));
  return ops.Repeat(kernels::StepPart::kDrafterRows, [&] {
    return StoreLayerRows(ops, weights.mtp.block, /*finishes_previous=*/false);
  });
}

absl::Status RunDrafter(kernels::Ops& ops, const kernels::ModelWeights& weights,
                        std::span<const int32_t> source_row) {
  RETURN_IF_ERROR(EnterDrafter(ops, weights, source_row));
  RETURN_IF_ERROR(RunBlock(ops, weights));
  std::vector<int32_t> rows(source_row.size());
  std::iota(rows.begin(), rows.end(), 0);
  return ops.Head({.step = ops.view(),
                   .rows = rows,
                   .mix = weights.mtp.head_mix,
                   .norm = weights.mtp.norm,
                   .head = weights.head});
}

}  // namespace baton::engine
