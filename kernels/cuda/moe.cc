#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// Route and Experts (model.md 6).
namespace baton::kernels::cuda {
namespace {

constexpr int kGateSegments = 8;  // k_segments of R1 (contracts.md 1.3)

bool PromotesPer32(const ExpertWeights& expert) {
  return ViewOf(expert.w1).is_wide || ViewOf(expert.w3).is_wide || ViewOf(expert.w2).is_wide;
}

const Matrix* MatrixOf(const ExpertWeights& expert, int matrix) {
  return matrix == 0 ? expert.w1 : (matrix == 1 ? expert.w3 : expert.w2);
}

absl::Status CheckExpert(const ExpertWeights& expert, const ExpertWeights& first, size_t number) {
  for (int matrix = 0; matrix < 3; ++matrix) {
    const MatrixView& view = ViewOf(MatrixOf(expert, matrix));
    const MatrixView& other = ViewOf(MatrixOf(first, matrix));
    const bool is_quantised = view.format == ValueFormat::kFp8 || view.format == ValueFormat::kFp4;
    if (is_quantised && view.format == other.format && view.rows == other.rows) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "CUDA back end: expert %d has a w%d of another format or size than the others, or none "
        "with scales",
        number, matrix + 1));
  }
  return absl::OkStatus();
}

}  // namespace

int CountPromotedExperts(const ModelWeights& weights) {
  return CountExperts(weights, PromotesPer32);
}

absl::Status CudaOps::Route(const LayerArgs& args) {
  LinearArgs gate = PlainLinear(args.layer.gate, act_.normed, scratch_.gate_logits);
  gate.k_segments = kGateSegments;
  RETURN_IF_ERROR(Multiply(gate, "gate"));
  RouteArgs route;
  route.step = Step();
  route.shape = shape_;
  route.logits = scratch_.gate_logits;
  route.bias = args.layer.gate_bias.data;
  route.token_experts = args.layer.token_experts;
  route.ids = act_.expert_ids;
  route.weights = act_.expert_weights;
  return ToStatus(RunRoute(route, stream()), "Route");
}

absl::Status CudaOps::BuildTable(const LayerWeights& layer, ExpertTable& table) {
  if (layer.experts.size() != static_cast<size_t>(shape_.experts)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Experts: layer %d has %d experts, expected %d", layer.layer,
                        layer.experts.size(), shape_.experts));
  }
  std::vector<ExpertWeights> all = layer.experts;
  all.push_back(layer.shared);
  std::vector<MatrixView> views;
  std::vector<uint8_t> promoted;
  for (int matrix = 0; matrix < 3; ++matrix) {
    for (const ExpertWeights& expert : all) views.push_back(ViewOf(MatrixOf(expert, matrix)));
  }
  for (size_t e = 0; e < all.size(); ++e) {
    const bool is_shared = e + 1 == all.size();
    RETURN_IF_ERROR(CheckExpert(all[e], is_shared ? all[e] : all[0], e));
    promoted.push_back(PromotesPer32(all[e]) ? 1 : 0);
  }
  ASSIGN_OR_RETURN(const uint8_t* matrices,
                   device_.UploadBytes(views.data(), views.size() * sizeof(MatrixView)));
  table.matrices = reinterpret_cast<const MatrixView*>(matrices);
  ASSIGN_OR_RETURN(table.is_promoted, device_.UploadBytes(promoted.data(), promoted.size()));
  table.source = layer.experts.data();
  return absl::OkStatus();
}

// Made when a layer runs first.
absl::StatusOr<const ExpertTable*> CudaOps::TableOf(const LayerWeights& layer) {
  ExpertTable& table = tables_[layer.layer];
  if (table.source != layer.experts.data()) RETURN_IF_ERROR(BuildTable(layer, table));
  return &table;
}

absl::Status CudaOps::PlanExperts(int tile_rows) {
  ExpertPlanArgs plan;
  plan.step = Step();
  plan.experts = shape_.experts;
  plan.slots = shape_.experts_per_token;
  plan.tile_rows = tile_rows;
  plan.ids = act_.expert_ids;
  plan.weights = act_.expert_weights;
  plan.part_counts = scratch_.part_counts;
  plan.pair_rows = scratch_.pair_rows;
  plan.pair_weights = scratch_.pair_weights;
  plan.row_pairs = scratch_.row_pairs;
  plan.num_pairs = scratch_.num_pairs;
  plan.tiles = scratch_.tiles;
  plan.num_tiles = scratch_.num_tiles;
  plan.shared_first = launch_.rows * shape_.experts_per_token;
  return ToStatus(RunExpertPlan(plan, stream()), "expert plan");
}

// Shared and routed experts together.
absl::Status CudaOps::RunStage(const ExpertStage& stage) {
  const ExpertTable& table = *stage.table;
  ExpertLinearArgs args;
  args.linear = stage.linear;
  args.linear.weight = ViewOf(stage.routed);
  args.linear.y_stride = stage.routed->rows();
  args.matrices = table.matrices + stage.matrix * (shape_.experts + 1);
  if (stage.second_y != nullptr) {
    args.second_matrices = args.matrices + shape_.experts + 1;
    args.second_y = stage.second_y;
  }
  args.is_promoted = table.is_promoted;
  args.tiles = scratch_.tiles;
  args.num_tiles = scratch_.num_tiles;
  args.tile_rows = stage.tile_rows;
  const int pairs = launch_.rows * shape_.experts_per_token;
  args.max_tiles = std::min(pairs, pairs / stage.tile_rows + shape_.experts) +
                   (launch_.rows + stage.tile_rows - 1) / stage.tile_rows;
  return ToStatus(options_.has_reference_linears ? RunReferenceExpertLinear(args, stream())
                                                 : RunExpertLinear(args, stream()),
                  "experts");
}

absl::Status CudaOps::Experts(const LayerArgs& args) {
  const LayerWeights& layer = args.layer;
  ASSIGN_OR_RETURN(const ExpertTable* table, TableOf(layer));
  const int pairs = launch_.rows * shape_.experts_per_token;
  ExpertStage stage;
  stage.table = table;
  stage.tile_rows = TileRows(std::max(1, 2 * pairs / shape_.experts));
  RETURN_IF_ERROR(PlanExperts(stage.tile_rows));

  LinearArgs in = Fp8Linear(layer.shared.w1, act_.normed8, scratch_.gate);
  in.x_rows = scratch_.pair_rows;
  stage.linear = in;
  stage.routed = layer.experts[0].w1;
  stage.second_y = scratch_.up;
  RETURN_IF_ERROR(RunStage(stage));

  SwigluArgs swiglu;
  swiglu.step = Step();
  swiglu.shape = shape_;
  swiglu.pairs = pairs + launch_.rows;
  swiglu.shared_first = pairs;
  swiglu.num_pairs = scratch_.num_pairs;
  swiglu.pair_weights = scratch_.pair_weights;
  swiglu.gate = scratch_.gate;
  swiglu.up = scratch_.up;
  swiglu.hidden8 = scratch_.hidden8;
  RETURN_IF_ERROR(ToStatus(RunSwiglu(swiglu, stream()), "SwiGLU"));

  stage.matrix = 2;
  stage.second_y = nullptr;
  stage.linear = Fp8Linear(layer.shared.w2, scratch_.hidden8, scratch_.expert_out);
  stage.routed = layer.experts[0].w2;
  RETURN_IF_ERROR(RunStage(stage));
  return ToStatus(RunSumExperts({.step = Step(),
                                 .shape = shape_,
                                 .shared_first = pairs,
                                 .row_pairs = scratch_.row_pairs,
                                 .outputs = scratch_.expert_out,
                                 .branch = act_.branch},
                                stream()),
                  "sum of experts");
}

}  // namespace baton::kernels::cuda
