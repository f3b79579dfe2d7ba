#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/select.h"

// The phases of attention, and how linears are queued.
namespace baton::kernels::cuda {
namespace {

// k_segments of R1 (contracts.md 1.3): how the sum over K is cut, a constant of the op.
constexpr int kInputSegments = 4;   // all of ProjectIn
constexpr int kOutputSegments = 8;  // wo_b

}  // namespace

LinearArgs CudaOps::Fp8Linear(const Matrix* weight, const uint16_t* x, uint16_t* y) const {
  LinearArgs linear;
  linear.weight = ViewOf(weight);
  linear.x = x;
  linear.has_fp8_input = true;
  linear.x_stride = weight->cols();
  linear.num_rows = view_.num_rows;
  linear.rows = launch_.rows;
  linear.y = y;
  linear.y_stride = weight->rows();
  return linear;
}

LinearArgs CudaOps::PlainLinear(const Matrix* weight, const uint16_t* x, float* y) const {
  LinearArgs linear;
  linear.weight = ViewOf(weight);
  linear.x = x;
  linear.x_stride = weight->cols();
  linear.num_rows = view_.num_rows;
  linear.rows = launch_.rows;
  linear.y = y;
  linear.y_stride = weight->rows();
  linear.output = OutputFormat::kF32;
  return linear;
}

absl::Status CudaOps::Multiply(const LinearArgs& linear, const char* what) {
  return MultiplyAll({&linear, 1}, what);
}

absl::Status CudaOps::MultiplyAll(std::span<const LinearArgs> linears, const char* what) {
  for (const LinearArgs& linear : linears) {
    const ValueFormat format = linear.weight.format;
    const bool has_scales = format == ValueFormat::kFp8 || format == ValueFormat::kFp4;
    if (linear.has_fp8_input && !has_scales) {
      return absl::InvalidArgumentError(
          absl::StrFormat("fp8 linear %s: weight [%d, %d] has no scales", what, linear.weight.rows,
                          linear.weight.cols));
    }
    if (!linear.has_fp8_input && (format == ValueFormat::kF32 || format == ValueFormat::kFp4)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("bf16 linear %s: weight [%d, %d] is neither bf16 nor fp8", what,
                          linear.weight.rows, linear.weight.cols));
    }
    if (!options_.has_reference_linears) continue;
    RETURN_IF_ERROR(ToStatus(RunReferenceLinear(linear, stream()), what));
  }
  if (options_.has_reference_linears) return absl::OkStatus();
  return ToStatus(RunLinears(linears.data(), static_cast<int>(linears.size()), stream()), what);
}

// All of one launch: they share their input's rows.
absl::Status CudaOps::ProjectIn(const LayerArgs& args) {
  const LayerWeights& layer = args.layer;
  std::vector<LinearArgs> linears = {Fp8Linear(layer.wq_a, act_.normed8, act_.query_low),
                                     Fp8Linear(layer.wkv, act_.normed8, act_.kv)};
  // Both widths of a compressor use the buffers' full stride of 2 d.
  const auto compress = [&](const CompressorWeights& weights, int d, float* values, float* score) {
    if (weights.wkv == nullptr) return;
    LinearArgs linear = PlainLinear(weights.wkv, act_.normed, values);
    linear.y_stride = 2 * d;
    linears.push_back(linear);
    linear.weight = ViewOf(weights.wgate);
    linear.y = score;
    linears.push_back(linear);
  };
  compress(layer.compressor, shape_.head_dim, act_.compressor_kv, act_.compressor_score);
  compress(layer.index_compressor, shape_.index_dim, act_.index_kv, act_.index_score);
  if (layer.index_weights != nullptr) {
    LinearArgs weights = PlainLinear(layer.index_weights, act_.normed, act_.index_weights);
    weights.output = OutputFormat::kScaledF32;
    weights.output_scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.index_dim)) /
                           std::sqrt(static_cast<double>(shape_.index_heads)));
    linears.push_back(weights);
  }
  for (LinearArgs& linear : linears) linear.k_segments = kInputSegments;
  return MultiplyAll(linears, "ProjectIn");
}

RowsArgs CudaOps::RowsArgsOf(const LayerWeights& layer) const {
  RowsArgs rows;
  rows.step = Step();
  rows.shape = shape_;
  rows.slots = slots_.layout();
  rows.pages = PagesOf(layer);
  rows.layer = layer.layer;
  rows.ratio = layer.ratio;
  rows.rank = layer.ratio == 0 ? 0 : RankOf(layer.layer);
  rows.has_short_runs = launch_.has_short_runs;
  rows.frequencies = FrequenciesOf(layer.ratio);
  rows.entry_frequencies = compressed_;
  rows.query_low = act_.query_low;
  rows.q_norm = layer.q_norm.data;
  rows.query_low8 = act_.query_low8;
  rows.kv = act_.kv;
  rows.kv_norm = layer.kv_norm.data;
  rows.old_window = scratch_.old_window;
  rows.compressor_kv = act_.compressor_kv;
  rows.compressor_score = act_.compressor_score;
  rows.index_kv = act_.index_kv;
  rows.index_score = act_.index_score;
  rows.ape = layer.compressor.ape.data;
  rows.index_ape = layer.index_compressor.ape.data;
  rows.entry_norm = layer.compressor.norm.data;
  rows.index_entry_norm = layer.index_compressor.norm.data;
  rows.pooled = scratch_.pooled;
  rows.hca_state = scratch_.hca_state;
  return rows;
}

absl::Status CudaOps::StoreRows(const LayerArgs& args) {
  if (runs_.empty()) return absl::OkStatus();
  return ToStatus(RunStoreRows(RowsArgsOf(args.layer), stream()), "StoreRows");
}

absl::Status CudaOps::ProjectQuery(const LayerArgs& args) {
  const LayerWeights& layer = args.layer;
  const bool has_index = layer.index_wq_b != nullptr;
  std::vector<LinearArgs> linears = {Fp8Linear(layer.wq_b, act_.query_low8, act_.query)};
  if (has_index) {
    linears.push_back(Fp8Linear(layer.index_wq_b, act_.query_low8, act_.index_query));
  }
  RETURN_IF_ERROR(MultiplyAll(linears, "ProjectQuery"));
  return ToStatus(RunShapeQueries({.step = Step(),
                                   .shape = shape_,
                                   .frequencies = FrequenciesOf(layer.ratio),
                                   .query = act_.query,
                                   .index_query = has_index ? act_.index_query : nullptr},
                                  stream()),
                  "ProjectQuery");
}

absl::Status CudaOps::SelectEntries(const LayerArgs& args) {
  if (args.layer.ratio != kCsaRatio) return absl::OkStatus();
  SelectArgs select;
  select.step = Step();
  select.shape = shape_;
  select.pages = PagesOf(args.layer);
  select.index_query = act_.index_query;
  select.index_weights = act_.index_weights;
  select.scores = scratch_.index_scores;
  select.maxima = scratch_.index_maxima;
  select.arrivals = scratch_.select_arrivals;
  select.slice_rows = scratch_.select_rows;
  select.max_entries = scratch_.max_entries;
  select.selected = act_.selected;
  select.num_selected = act_.num_selected;
  return ToStatus(RunSelect(select, launch_.entries, stream()), "SelectEntries");
}

absl::Status CudaOps::Attend(const LayerArgs& args) {
  AttendArgs attend;
  attend.step = Step();
  attend.shape = shape_;
  attend.pages = PagesOf(args.layer);
  attend.ratio = args.layer.ratio;
  attend.has_bounded_scores = args.layer.has_bounded_scores;
  attend.frequencies = FrequenciesOf(args.layer.ratio);
  attend.query = act_.query;
  attend.kv = act_.kv;
  attend.old_window = scratch_.old_window;
  attend.selected = act_.selected;
  attend.num_selected = act_.num_selected;
  attend.sink = args.layer.attn_sink.data;
  attend.attended = act_.attended;
  if (launch_.rows <= kMaxSplitRows) {
    const int64_t entries = int64_t{launch_.entries} * kCsaRatio / kHcaRatio;
    const int segments = AttendSegments(attend.ratio, shape_.index_topk, entries);
    if (segments >= kFewestSplitSegments) attend.segments = segments;
  }
  attend.partials = scratch_.attend_partials;
  return ToStatus(RunAttend(attend, stream()), "Attend");
}

// Per group y = r(wo_a . o) on unquantised values, then fp8 and wo_b (model.md 3.5).
absl::Status CudaOps::ProjectOut(const LayerArgs& args) {
  LinearArgs low = PlainLinear(args.layer.wo_a, act_.attended, nullptr);
  low.groups = config_.o_groups;
  low.x_stride = int64_t{config_.o_groups} * args.layer.wo_a->cols();
  low.y = scratch_.low_out;
  low.output = OutputFormat::kBf16;
  RETURN_IF_ERROR(Multiply(low, "wo_a"));
  RETURN_IF_ERROR(ToStatus(RunQuantiseRows({.step = Step(),
                                            .width = config_.o_groups * config_.o_lora_rank,
                                            .x = scratch_.low_out,
                                            .quantised = scratch_.low_out8},
                                           stream()),
                           "quantise wo_a's output"));
  LinearArgs out = Fp8Linear(args.layer.wo_b, scratch_.low_out8, act_.branch);
  out.k_segments = kOutputSegments;
  return Multiply(out, "wo_b");
}

}  // namespace baton::kernels::cuda
