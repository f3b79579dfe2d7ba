#include "common/status.h"
#include "engine/model/forward.h"

namespace baton::engine {
namespace {

using kernels::LayerArgs;
using kernels::LayerWeights;
using kernels::Ops;

absl::Status Attention(Ops& ops, const LayerArgs& args) {
  RETURN_IF_ERROR(ops.ProjectQuery(args));
  RETURN_IF_ERROR(ops.SelectEntries(args));
  RETURN_IF_ERROR(ops.Attend(args));
  return ops.ProjectOut(args);
}

absl::Status Moe(Ops& ops, const LayerArgs& args) {
  RETURN_IF_ERROR(ops.Route(args));
  return ops.Experts(args);
}

}  // namespace

absl::Status StoreLayerRows(Ops& ops, const LayerWeights& layer, bool finishes_previous) {
  const LayerArgs args{.step = ops.view(), .layer = layer};
  RETURN_IF_ERROR(ops.MixBoundary({.step = ops.view(),
                                   .finish_previous = finishes_previous,
                                   .next = &layer.attn_mix,
                                   .norm = layer.attn_norm}));
  RETURN_IF_ERROR(ops.ProjectIn(args));
  return ops.StoreRows(args);
}

absl::Status RunLayer(Ops& ops, const LayerWeights& layer, bool finishes_previous) {
  const LayerArgs args{.step = ops.view(), .layer = layer};
  RETURN_IF_ERROR(StoreLayerRows(ops, layer, finishes_previous));
  RETURN_IF_ERROR(Attention(ops, args));
  RETURN_IF_ERROR(ops.MixBoundary({.step = ops.view(),
                                   .finish_previous = true,
                                   .next = &layer.ffn_mix,
                                   .norm = layer.ffn_norm}));
  return Moe(ops, args);
}

absl::Status FinishLayers(Ops& ops) {
  return ops.MixBoundary(
      {.step = ops.view(), .finish_previous = true, .next = nullptr, .norm = {}});
}

}  // namespace baton::engine
