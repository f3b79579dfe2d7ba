#include "kernels/cpu/cpu_ops.h"

#include <numeric>

#include "absl/strings/str_format.h"

#include "common/digest.h"
#include "kernels/cpu/attention_state.h"
#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cpu/mix.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kSampleParts =
    8;  // pieces a step's rows are sampled in, each with buffers of its own

size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

absl::Status CheckAtMost(const char* name, int value, int limit) {
  if (value > 0 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("CPU back end: %s is %d, supported are 1..%d", name, value, limit));
}

absl::Status CheckMultiple(const char* name, int value, int unit) {
  if (value > 0 && value % unit == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "CPU back end: %s is %d, must be a positive multiple of %d", name, value, unit));
}

// What the fixed buffers and blocks of this back end need (contracts.md 3.1 has the multiples).
absl::Status CheckOptions(const CpuOptions& options) {
  const ModelConfig& config = options.config;
  RETURN_IF_ERROR(CheckAtMost("hc_mult", config.hc_mult, kMaxStreams));
  RETURN_IF_ERROR(CheckAtMost("head_dim", config.head_dim, kMaxHeadDim));
  RETURN_IF_ERROR(CheckAtMost("index_head_dim", config.index_head_dim, kMaxIndexDim));
  RETURN_IF_ERROR(CheckAtMost("qk_rope_head_dim", config.qk_rope_head_dim, 2 * kMaxRopePairs));
  RETURN_IF_ERROR(CheckAtMost("o_groups", config.o_groups, config.num_attention_heads));
  RETURN_IF_ERROR(
      CheckAtMost("num_experts_per_tok", config.num_experts_per_tok, config.n_routed_experts));
  RETURN_IF_ERROR(CheckMultiple("hidden_size", config.hidden_size, kWeightBlock));
  RETURN_IF_ERROR(CheckMultiple("q_lora_rank", config.q_lora_rank, kWeightBlock));
  RETURN_IF_ERROR(
      CheckMultiple("moe_intermediate_size", config.moe_intermediate_size, kWeightBlock));
  RETURN_IF_ERROR(
      CheckMultiple("o_groups * o_lora_rank", config.o_groups * config.o_lora_rank, kWeightBlock));
  RETURN_IF_ERROR(CheckMultiple("num_attention_heads * head_dim / o_groups",
                                config.num_attention_heads * config.head_dim / config.o_groups,
                                kWeightBlock));
  if (options.max_rows <= 0 || options.max_sequences <= 0 || options.max_head_rows <= 0 ||
      options.max_context <= 0 || options.num_tail_slots <= 0 || options.pages == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "CPU back end: max_rows %d, max_sequences %d, max_head_rows %d, max_context %d, "
        "num_tail_slots %d must be positive and pages given",
        options.max_rows, options.max_sequences, options.max_head_rows, options.max_context,
        options.num_tail_slots));
  }
  return absl::OkStatus();
}

}  // namespace

CpuOps::CpuOps(CpuOptions options)
    : options_(std::move(options)),
      config_(options_.config),
      mode_(options_.mode),
      act_(config_, options_.max_rows, options_.max_head_rows),
      gemm_(options_.parallel, ChooseIsa(options_.force_scalar)),
      dot_(DotFunctionFor(gemm_.isa())),
      swiglu_(SwigluFunctionFor(gemm_.isa())),
      rope_(config_),
      attention_(new AttentionState(options_)),
      expert_scratch_(config_, options_.max_rows) {
  const int rows = options_.max_rows, streams = config_.hc_mult, hidden = config_.hidden_size;
  token_.resize(static_cast<size_t>(rows));
  position_.resize(static_cast<size_t>(rows));
  sequence_.resize(static_cast<size_t>(rows));
  tail_slot_.resize(static_cast<size_t>(options_.max_sequences));
  view_.max_rows = rows;
  view_.max_sequences = options_.max_sequences;
  view_.max_pages = (options_.max_context + kPageTokens - 1) / kPageTokens;
  page_table_.resize(Product(options_.max_sequences, view_.max_pages));
  view_.num_rows = &num_rows_;
  view_.token = token_.data();
  view_.position = position_.data();
  view_.sequence = sequence_.data();
  view_.page_table = page_table_.data();
  view_.tail_slot = tail_slot_.data();

  const int low = config_.o_groups * config_.o_lora_rank;
  mixes_.resize(Product(rows, (2 + streams) * streams));
  low_out_.resize(Product(rows, low));
  low_out8_.codes.resize(Product(rows, low));
  low_out8_.scales.resize(Product(rows, low / kFp8Group));
  gate_logits_.resize(Product(rows, config_.n_routed_experts));
  head_products_.resize(Product(options_.max_head_rows, streams));
  collapsed_.resize(Product(options_.max_head_rows, hidden));
  all_rows_.resize(static_cast<size_t>(options_.max_head_rows));
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
  if (config_.num_nextn_predict_layers > 0) {
    const size_t lines = Product(rows, streams);
    draft_streams_.resize(lines * static_cast<size_t>(hidden));
    draft_streams8_.codes.resize(lines * static_cast<size_t>(hidden));
    draft_streams8_.scales.resize(lines * static_cast<size_t>(hidden / kFp8Group));
  }
  const int slice = std::min(rows, kExpertSlice), slots = config_.num_experts_per_tok;
  sample_scratch_.resize(kSampleParts);
  expert_plan_.Reserve(slice, slots, config_.n_routed_experts);
  expert_parts_.reserve(Product(slice, slots + 1) / 32 +
                        static_cast<size_t>(config_.n_routed_experts) + 1);
}

CpuOps::~CpuOps() = default;

absl::Status CpuOps::Sample(const SampleArgs& args) {
  const int rows = static_cast<int>(args.rows.size());
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  for (const SampleRow& row : args.rows) {
    if (row.logits_row >= 0 && row.logits_row < options_.max_head_rows) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("Sample: logits row %d, have %d", row.logits_row, options_.max_head_rows));
  }
  if (rows == 0) return absl::OkStatus();
  std::span<TokenRecord> chosen = args.chosen;
  std::span<uint8_t> empty = args.is_empty;
  const bool are_kept = chosen.empty();
  if (are_kept) {
    const size_t before = outcome_.kept.size(), count = args.rows.size();
    RETURN_IF_ERROR(CheckKept(before + count, options_.max_rows));
    outcome_.kept.resize(before + count);
    outcome_.kept_empty.resize(before + count);
    chosen = std::span(outcome_.kept).subspan(before);
    empty = std::span(outcome_.kept_empty).subspan(before);
  }
  const int piece = (rows + kSampleParts - 1) / kSampleParts;
  ForRows(rows, piece, [&](int begin, int end) {
    SampleScratch& scratch = sample_scratch_[static_cast<size_t>(begin / piece)];
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      SampleRow row = args.rows[i];
      const auto logits_row = static_cast<size_t>(row.logits_row);
      if (are_kept && !early_by_.empty()) {
        row.position -= early_by_[static_cast<size_t>(sequence_[logits_row])];
      }
      bool is_empty = false;
      SampleRowOnCpu(row, {&act_.logits[logits_row * vocabulary], vocabulary}, chosen[i], is_empty,
                     scratch);
      empty[i] = is_empty ? 1 : 0;
    }
  });
  return absl::OkStatus();
}

absl::Status CpuOps::Digest(const DigestArgs& args) {
  const NhDigest digest(args.secret,
                        options_.force_scalar ? NhDigest::Path::kScalar : NhDigest::Path::kBest);
  ForRows(static_cast<int>(args.items.size()), 1, [&](int begin, int) {
    const auto item = static_cast<size_t>(begin);
    args.digests[item] = digest.Of(args.items[item].header, args.items[item].data);
  });
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Ops>> MakeCpuOps(CpuOptions options, Device&) {
  RETURN_IF_ERROR(CheckOptions(options));
  return std::make_unique<CpuOps>(std::move(options));
}

}  // namespace baton::kernels::cpu
