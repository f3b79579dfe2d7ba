#include "kernels/cuda/activations.h"

#include <algorithm>

#include "common/status.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/select.h"

namespace baton::kernels::cuda {
namespace {

constexpr int64_t kIndexScoreFloats = int64_t{64} << 20;  // 256 MiB at most, one row at least

// Allocates one buffer after another; the first failure stays.
class Allocator {
 public:
  // Null: only counts.
  explicit Allocator(CudaDevice* device) : device_(device) {}

  template <typename T>
  void Make(T*& buffer, int64_t rows, int64_t width) {
    const size_t bytes = static_cast<size_t>(rows * width) * sizeof(T);
    bytes_ += bytes;
    if (!status_.ok() || device_ == nullptr) return;
    auto memory = device_->Allocate(bytes);
    if (memory.ok()) {
      buffer = reinterpret_cast<T*>(*memory);
    } else {
      status_ = memory.status();
    }
  }
  const absl::Status& status() const { return status_; }
  size_t bytes() const { return bytes_; }

 private:
  CudaDevice* const device_;
  size_t bytes_ = 0;
  absl::Status status_;
};

void MakeActivations(Allocator& make, const ModelConfig& c, const BufferSizes& sizes,
                     Activations& a) {
  const int64_t rows = sizes.max_rows, streams = c.hc_mult, hidden = c.hidden_size;
  const int64_t dim = c.head_dim, index_dim = c.index_head_dim;
  make.Make(a.streams, rows, streams * hidden);
  make.Make(a.post, rows, streams);
  make.Make(a.comb, rows, streams * streams);
  make.Make(a.branch, rows, hidden);
  make.Make(a.normed, rows, hidden);
  make.Make(a.normed8, rows, hidden);
  make.Make(a.query_low, rows, c.q_lora_rank);
  make.Make(a.query_low8, rows, c.q_lora_rank);
  make.Make(a.kv, rows, dim);
  make.Make(a.compressor_kv, rows, 2 * dim);
  make.Make(a.compressor_score, rows, 2 * dim);
  make.Make(a.index_kv, rows, 2 * index_dim);
  make.Make(a.index_score, rows, 2 * index_dim);
  make.Make(a.index_weights, rows, c.index_n_heads);
  make.Make(a.query, rows, c.num_attention_heads * dim);
  make.Make(a.index_query, rows, c.index_n_heads * index_dim);
  make.Make(a.selected, rows, c.index_topk);
  make.Make(a.num_selected, rows, 1);
  make.Make(a.attended, rows, c.num_attention_heads * dim);
  make.Make(a.expert_ids, rows, c.num_experts_per_tok);
  make.Make(a.expert_weights, rows, c.num_experts_per_tok);
  make.Make(a.logits, sizes.max_head_rows, c.vocab_size);
}

void MakeScratch(Allocator& make, const ModelConfig& c, const BufferSizes& sizes, Scratch& s) {
  const int64_t rows = sizes.max_rows, hidden = c.hidden_size, dim = c.head_dim;
  const int64_t streams = c.hc_mult, experts = c.n_routed_experts;
  make.Make(s.products, std::max<int64_t>(rows, sizes.max_head_rows), (2 + streams) * streams + 1);
  make.Make(s.old_window, sizes.max_sequences, (c.sliding_window - 1) * dim);
  make.Make(s.pooled, rows, dim);
  make.Make(s.hca_state, sizes.max_sequences, 3 * dim);
  s.max_entries = sizes.max_context / kCsaRatio + 1;
  s.select_rows = static_cast<int>(std::clamp<int64_t>(kIndexScoreFloats / s.max_entries, 1, rows));
  make.Make(s.index_scores, s.select_rows, s.max_entries);
  make.Make(s.index_maxima, 1, int64_t{s.select_rows} * s.max_entries / kGroupScores + rows);
  make.Make(s.select_arrivals, rows, 1);
  const int64_t hca_entries = sizes.max_context / kHcaRatio + 1;
  const int64_t segments = std::max(AttendSegments(kCsaRatio, c.index_topk, 0),
                                    AttendSegments(kHcaRatio, 0, hca_entries));
  make.Make(s.attend_partials, 1,
            AttendPartialFloats(rows, segments, c.num_attention_heads, c.head_dim));
  make.Make(s.low_out, rows, int64_t{c.o_groups} * c.o_lora_rank);
  make.Make(s.low_out8, rows, int64_t{c.o_groups} * c.o_lora_rank);
  make.Make(s.gate_logits, rows, experts);
  const int64_t pairs = rows * (c.num_experts_per_tok + 1);
  make.Make(s.part_counts, (rows + kPlanRows - 1) / kPlanRows, experts);
  make.Make(s.pair_rows, pairs, 1);
  make.Make(s.pair_weights, pairs, 1);
  make.Make(s.row_pairs, rows, c.num_experts_per_tok);
  make.Make(s.num_pairs, 1, 1);
  make.Make(s.num_tiles, 1, 1);
  make.Make(s.tiles, pairs + experts, 1);
  make.Make(s.gate, pairs, c.moe_intermediate_size);
  make.Make(s.up, pairs, c.moe_intermediate_size);
  make.Make(s.hidden8, pairs, c.moe_intermediate_size);
  make.Make(s.expert_out, pairs, hidden);
  if (c.num_nextn_predict_layers > 0) make.Make(s.draft_streams8, rows * streams, hidden);
  make.Make(s.collapsed, sizes.max_head_rows, hidden);
}

}  // namespace

absl::Status AllocateBuffers(CudaDevice& device, const ModelConfig& config,
                             const BufferSizes& sizes, Activations& activations, Scratch& scratch) {
  Allocator make(&device);
  MakeActivations(make, config, sizes, activations);
  MakeScratch(make, config, sizes, scratch);
  return make.status();
}

size_t BufferBytes(const ModelConfig& config, const BufferSizes& sizes) {
  Allocator count(nullptr);
  Activations activations;
  Scratch scratch;
  MakeActivations(count, config, sizes, activations);
  MakeScratch(count, config, sizes, scratch);
  return count.bytes();
}

}  // namespace baton::kernels::cuda
