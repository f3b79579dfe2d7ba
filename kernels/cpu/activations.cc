#include "kernels/cpu/activations.h"

namespace baton::kernels::cpu {
namespace {

// Rows of an fp8 linear's input.
void Resize(QuantisedRows& rows, size_t num_rows, int width) {
  rows.codes.resize(num_rows * static_cast<size_t>(width));
  rows.scales.resize(num_rows * static_cast<size_t>(width / 128));
}

}  // namespace

Activations::Activations(const ModelConfig& config, int max_rows, int max_head_rows) {
  const auto rows = static_cast<size_t>(max_rows);
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const auto num_streams = static_cast<size_t>(config.hc_mult);
  const auto head_dim = static_cast<size_t>(config.head_dim);
  const auto heads = static_cast<size_t>(config.num_attention_heads);
  const auto index_dim = static_cast<size_t>(config.index_head_dim);
  const auto index_heads = static_cast<size_t>(config.index_n_heads);
  const auto low = static_cast<size_t>(config.q_lora_rank);
  const auto experts = static_cast<size_t>(config.num_experts_per_tok);

  streams.resize(rows * num_streams * hidden);
  post.resize(rows * num_streams);
  comb.resize(rows * num_streams * num_streams);
  branch.resize(rows * hidden);
  normed.resize(rows * hidden);
  Resize(normed8, rows, config.hidden_size);
  query_low.resize(rows * low);
  Resize(query_low8, rows, config.q_lora_rank);
  kv.resize(rows * head_dim);
  compressor_kv.resize(rows * 2 * head_dim);
  compressor_score.resize(rows * 2 * head_dim);
  index_compressor_kv.resize(rows * 2 * index_dim);
  index_compressor_score.resize(rows * 2 * index_dim);
  index_weights.resize(rows * index_heads);
  query.resize(rows * heads * head_dim);
  index_query.resize(rows * index_heads * index_dim);
  selected.resize(rows * static_cast<size_t>(config.index_topk));
  num_selected.resize(rows);
  attended.resize(rows * heads * head_dim);
  expert_ids.resize(rows * experts);
  expert_weights.resize(rows * experts);
  logits.resize(static_cast<size_t>(max_head_rows) * static_cast<size_t>(config.vocab_size));
}

}  // namespace baton::kernels::cpu
