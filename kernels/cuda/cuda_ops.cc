#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/mix.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kWeightBlock = 128;
constexpr int kMaxRowFloats = 11264;  // a row as fp32 and 4 KiB more fill 48 KiB of shared memory
constexpr int kMaxRopeDim = 64;       // of heads: what attention holds of a stored row
constexpr size_t kArgumentBytes = size_t{8} << 20;

absl::Status CheckAtMost(const char* name, int value, int limit) {
  if (value > 0 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("CUDA back end: %s is %d, supported are 1..%d", name, value, limit));
}

absl::Status CheckMultiple(const char* name, int value, int unit) {
  if (value > 0 && value % unit == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "CUDA back end: %s is %d, must be a positive multiple of %d", name, value, unit));
}

absl::Status CheckSizes(const ModelConfig& config) {
  RETURN_IF_ERROR(CheckAtMost("hc_mult", config.hc_mult, kMaxStreams));
  RETURN_IF_ERROR(CheckAtMost("head_dim", config.head_dim, 512));
  RETURN_IF_ERROR(CheckAtMost("index_head_dim", config.index_head_dim, 128));
  RETURN_IF_ERROR(CheckAtMost("hidden_size", config.hidden_size, kMaxRowFloats));
  RETURN_IF_ERROR(CheckAtMost("q_lora_rank", config.q_lora_rank, 8192));
  RETURN_IF_ERROR(
      CheckAtMost("moe_intermediate_size", config.moe_intermediate_size, kMaxRowFloats));
  RETURN_IF_ERROR(CheckAtMost("vocab_size", config.vocab_size, kMaxVocabulary));
  RETURN_IF_ERROR(CheckAtMost("n_routed_experts", config.n_routed_experts, kMaxExperts));
  RETURN_IF_ERROR(CheckAtMost("num_experts_per_tok", config.num_experts_per_tok,
                              std::min(kMaxExpertsPerToken, config.n_routed_experts)));
  RETURN_IF_ERROR(CheckAtMost("o_groups", config.o_groups, config.num_attention_heads));
  return CheckAtMost("qk_rope_head_dim", config.qk_rope_head_dim,
                     std::min(kMaxRopeDim, config.head_dim));
}

absl::Status CheckMultiples(const ModelConfig& config) {
  RETURN_IF_ERROR(CheckMultiple("hidden_size", config.hidden_size, kWeightBlock));
  RETURN_IF_ERROR(CheckMultiple("q_lora_rank", config.q_lora_rank, kWeightBlock));
  RETURN_IF_ERROR(CheckMultiple("head_dim", config.head_dim, 32));
  RETURN_IF_ERROR(CheckMultiple("qk_rope_head_dim", config.qk_rope_head_dim, 16));
  RETURN_IF_ERROR(
      CheckMultiple("moe_intermediate_size", config.moe_intermediate_size, kWeightBlock));
  RETURN_IF_ERROR(
      CheckMultiple("o_groups * o_lora_rank", config.o_groups * config.o_lora_rank, kWeightBlock));
  return CheckMultiple("num_attention_heads * head_dim / o_groups",
                       config.num_attention_heads * config.head_dim / config.o_groups,
                       kWeightBlock);
}

// Entries exist in some layer: their rows and the index's Hadamard transform need these.
absl::Status CheckIndex(const ModelConfig& config) {
  RETURN_IF_ERROR(CheckMultiple("index_head_dim", config.index_head_dim, 32));
  if ((config.index_head_dim & (config.index_head_dim - 1)) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "CUDA back end: index_head_dim is %d, must be a power of two", config.index_head_dim));
  }
  return CheckAtMost("qk_rope_head_dim", config.qk_rope_head_dim, config.index_head_dim);
}

absl::Status CheckOptions(const CudaOptions& options) {
  RETURN_IF_ERROR(CheckSizes(options.config));
  RETURN_IF_ERROR(CheckMultiples(options.config));
  if (!options.layout.shape().csa_layers.empty()) RETURN_IF_ERROR(CheckIndex(options.config));
  const LayoutShape& shape = options.layout.shape();
  if (shape.rows != RowFormat::kFp8 || shape.index == IndexFormat::kF32) {
    return absl::InvalidArgumentError(
        "CUDA back end: cached rows are f32, supported are fp8 rows with fp8 or FP4 index");
  }
  if (options.max_rows <= 0 || options.max_sequences <= 0 || options.max_head_rows <= 0 ||
      options.max_context <= 0 || options.num_tail_slots <= 0 || options.pages == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "CUDA back end: max_rows %d, max_sequences %d, max_head_rows %d, max_context %d, "
        "num_tail_slots %d must be positive and pages given",
        options.max_rows, options.max_sequences, options.max_head_rows, options.max_context,
        options.num_tail_slots));
  }
  return absl::OkStatus();
}

ModelShape ShapeOf(const ModelConfig& c) {
  ModelShape s;
  s.hidden = c.hidden_size;
  s.streams = c.hc_mult;
  s.heads = c.num_attention_heads;
  s.head_dim = c.head_dim;
  s.rope_dim = c.qk_rope_head_dim;
  s.q_lora = c.q_lora_rank;
  s.index_heads = c.index_n_heads;
  s.index_dim = c.index_head_dim;
  s.index_topk = c.index_topk;
  s.window = c.sliding_window;
  s.experts = c.n_routed_experts;
  s.experts_per_token = c.num_experts_per_tok;
  s.intermediate = c.moe_intermediate_size;
  s.vocabulary = c.vocab_size;
  s.sinkhorn_iterations = c.hc_sinkhorn_iters;
  s.norm_epsilon = static_cast<float>(c.rms_norm_eps);
  s.mix_epsilon = static_cast<float>(c.hc_eps);
  s.routed_scaling = static_cast<float>(c.routed_scaling_factor);
  s.swiglu_limit = static_cast<float>(c.swiglu_limit);
  s.score_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  s.index_norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.index_head_dim)));
  return s;
}

BufferSizes SizesOf(const CudaOptions& options) {
  return {.max_rows = options.max_rows,
          .max_sequences = options.max_sequences,
          .max_head_rows = options.max_head_rows,
          .max_context = options.max_context};
}

size_t Rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

// How drafts are sampled, H of the drafter's rows, numbers of rows and drafts, what a step that
// follows folds, where streams are kept.
size_t DraftBytes(const CudaOptions& options) {
  return static_cast<size_t>(options.max_head_rows) * sizeof(SampleRowArgs) +
         static_cast<size_t>(options.max_rows) * sizeof(uint16_t*) + 4 * sizeof(int32_t) +
         static_cast<size_t>(options.max_sequences) * (sizeof(FoldJob) + sizeof(int32_t));
}

StepOutcome::Sizes OutcomeSizes(const CudaOptions& options) {
  return {.max_runs = options.max_sequences,
          .max_draft_rows = options.max_head_rows,
          .max_choices = options.max_rows};
}

int MaxPages(const CudaOptions& options) {
  return (options.max_context + kPageTokens - 1) / kPageTokens;
}

// A view's block of device memory: number of rows, three arrays by row, slots, runs, pages. The
// drafter's has no pages.
struct StepOffsets {
  size_t token, position, sequence, slot, runs, pages, end;
};
StepOffsets OffsetsOf(const CudaOptions& options, int max_pages) {
  const auto rows = static_cast<size_t>(options.max_rows) * sizeof(int32_t);
  const auto sequences = static_cast<size_t>(options.max_sequences);
  StepOffsets o;
  o.token = 16;
  o.position = o.token + rows;
  o.sequence = o.position + rows;
  o.slot = o.sequence + rows;
  o.runs = Rounded(o.slot + sequences * sizeof(int32_t));
  o.pages = o.runs + sequences * sizeof(RunInfo);
  o.end = Rounded(o.pages + sequences * static_cast<size_t>(max_pages) * sizeof(PageId));
  return o;
}

}  // namespace

CudaOps::CudaOps(CudaOptions options, CudaDevice& device)
    : options_(std::move(options)),
      config_(options_.config),
      device_(device),
      shape_(ShapeOf(options_.config)) {}

absl::StatusOr<std::unique_ptr<CudaOps>> CudaOps::Create(CudaOptions options, CudaDevice& device) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<CudaOps> ops(new CudaOps(std::move(options), device));
  RETURN_IF_ERROR(ops->Initialise());
  return ops;
}

absl::Status CudaOps::Initialise() {
  RETURN_IF_ERROR(AllocateBuffers(device_, config_, SizesOf(options_), act_, scratch_));
  RETURN_IF_ERROR(slots_.Create(device_, options_.layout.shape(), options_.num_tail_slots,
                                options_.max_draft_rows));
  RETURN_IF_ERROR(AllocateViews());
  ASSIGN_OR_RETURN(wire_, device_.Allocate(MaxTailBytes(options_.layout, 0)));
  RETURN_IF_ERROR(AllocateDrafts());
  edit_of_.assign(static_cast<size_t>(config_.vocab_size), -1);
  return MakeFrequencies();
}

absl::Status CudaOps::AllocateViews() {
  const int max_pages = MaxPages(options_);
  const StepOffsets offsets = OffsetsOf(options_, max_pages);
  ASSIGN_OR_RETURN(std::byte * memory, device_.Allocate(offsets.end + offsets.pages));
  const auto make = [&](std::byte* block) {
    const auto at = [block](size_t offset) {
      return reinterpret_cast<const int32_t*>(block + offset);
    };
    View view;
    view.arrays.max_rows = options_.max_rows;
    view.arrays.max_sequences = options_.max_sequences;
    view.arrays.max_pages = max_pages;
    view.arrays.num_rows = at(0);
    view.arrays.token = at(offsets.token);
    view.arrays.position = at(offsets.position);
    view.arrays.sequence = at(offsets.sequence);
    view.arrays.tail_slot = at(offsets.slot);
    view.arrays.page_table = reinterpret_cast<const PageId*>(memory + offsets.pages);
    view.runs = reinterpret_cast<RunInfo*>(block + offsets.runs);
    return view;
  };
  main_view_ = make(memory);
  drafter_view_ = make(memory + offsets.end);
  Use(main_view_);
  return staging_.Create(device_, offsets.end + kArgumentBytes);
}

absl::Status CudaOps::AllocateDrafts() {
  const auto head_rows = static_cast<size_t>(options_.max_head_rows);
  const size_t results = head_rows * sizeof(SampleResult);
  ASSIGN_OR_RETURN(std::byte * device_results, device_.Allocate(results));
  ASSIGN_OR_RETURN(std::byte * host_results, device_.AllocateHost(results));
  results_ = reinterpret_cast<SampleResult*>(device_results);
  host_results_ = reinterpret_cast<SampleResult*>(host_results);
  RETURN_IF_ERROR(outcome_.Create(device_, OutcomeSizes(options_)));
  ASSIGN_OR_RETURN(std::byte * memory, device_.Allocate(DraftBytes(options_)));
  kept_.max_rows = options_.max_head_rows;
  kept_.max_drafts = kMaxKeptDrafts;
  kept_.rows = reinterpret_cast<SampleRowArgs*>(memory);
  kept_.tokens = outcome_.drafts();
  sources_ = reinterpret_cast<const uint16_t**>(memory + head_rows * sizeof(SampleRowArgs));
  drafter_counts_ = reinterpret_cast<int32_t*>(sources_ + options_.max_rows);
  kept_.num_kept = drafter_counts_ + 3;
  following_folds_ = reinterpret_cast<FoldJob*>(drafter_counts_ + 4);
  streams_before_ = reinterpret_cast<int32_t*>(following_folds_ + options_.max_sequences);
  return absl::OkStatus();
}

absl::Status CudaOps::MakeFrequencies() {
  const RopeShape plain{.rope_dim = config_.qk_rope_head_dim, .theta = config_.rope_theta};
  const RopeShape compressed{.rope_dim = config_.qk_rope_head_dim,
                             .theta = config_.compress_rope_theta,
                             .yarn_factor = config_.yarn_factor,
                             .yarn_beta_fast = config_.yarn_beta_fast,
                             .yarn_beta_slow = config_.yarn_beta_slow,
                             .yarn_original_positions = config_.yarn_original_positions};
  const auto upload = [this](const RopeShape& shape) -> absl::StatusOr<Vector> {
    std::vector<float> frequencies(static_cast<size_t>(shape.rope_dim / 2));
    for (size_t i = 0; i < frequencies.size(); ++i) {
      frequencies[i] = RopeFrequency(shape, static_cast<int>(i));
    }
    return device_.UploadVector(frequencies);
  };
  ASSIGN_OR_RETURN(const Vector plain_vector, upload(plain));
  ASSIGN_OR_RETURN(const Vector compressed_vector, upload(compressed));
  plain_ = plain_vector.data;
  compressed_ = compressed_vector.data;
  return absl::OkStatus();
}

DeviceStep CudaOps::Step() const {
  DeviceStep step;
  step.num_rows = view_.num_rows;
  step.token = view_.token;
  step.position = view_.position;
  step.sequence = view_.sequence;
  step.page_table = view_.page_table;
  step.runs = step_runs_;
  step.max_pages = view_.max_pages;
  step.rows = launch_.rows;
  step.sequences = launch_.sequences;
  return step;
}

int CudaOps::RankOf(int layer) const {
  const LayoutShape& shape = options_.layout.shape();
  const auto& layers = config_.IsCsa(layer) ? shape.csa_layers : shape.hca_layers;
  return static_cast<int>(std::lower_bound(layers.begin(), layers.end(), layer) - layers.begin());
}

LayerPages CudaOps::PagesOf(const LayerWeights& layer) const {
  const PageLayout& layout = options_.layout;
  LayerPages pages;
  pages.base = reinterpret_cast<uint8_t*>(options_.pages);
  pages.stride = layout.stride_bytes();
  pages.data_bytes = layout.row_data_bytes();
  pages.scale_bytes = layout.row_scale_bytes();
  pages.index_value_bytes = layout.index_value_bytes();
  pages.index_scale_bytes = layout.index_scale_bytes();
  pages.has_fp4_index = layout.shape().index == IndexFormat::kFp4;
  if (layer.ratio == 0) return pages;
  const bool is_csa = layer.ratio == kCsaRatio;
  pages.rows_per_page = kPageTokens / layer.ratio;
  pages.data = is_csa ? layout.CsaRowData(layer.layer, 0) : layout.HcaRowData(layer.layer, 0);
  pages.scales = is_csa ? layout.CsaRowScales(layer.layer, 0) : layout.HcaRowScales(layer.layer, 0);
  if (!is_csa) return pages;
  pages.index_values = layout.IndexValues(layer.layer, 0);
  pages.index_scales = layout.IndexScales(layer.layer, 0);
  return pages;
}

size_t CudaWorkspaceBytes(const CudaOptions& options) {
  const size_t slot_bytes =
      SlotBook::LayoutOf(options.layout.shape(), options.max_draft_rows).slot_bytes;
  const StepOffsets step = OffsetsOf(options, MaxPages(options));
  return BufferBytes(options.config, SizesOf(options)) +
         static_cast<size_t>(options.num_tail_slots) * slot_bytes + step.end + step.pages +
         Staging::DeviceBytes(step.end + kArgumentBytes) + MaxTailBytes(options.layout, 0) +
         static_cast<size_t>(options.max_head_rows) * sizeof(SampleResult) +
         StepOutcome::DeviceBytes(OutcomeSizes(options)) + DraftBytes(options);
}

absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(CudaOptions options, Device& device) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaOps> ops,
                   CudaOps::Create(std::move(options), static_cast<CudaDevice&>(device)));
  return std::unique_ptr<Ops>(std::move(ops));
}

}  // namespace baton::kernels::cuda
