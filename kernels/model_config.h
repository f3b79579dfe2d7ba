#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace baton::kernels {

inline constexpr int kCsaRatio = 4;
inline constexpr int kHcaRatio = 128;

// The model's shape: config.json of the DeepSeek-V4 family, field for field (model.md 1.1).
// engine/model/config.h reads and checks it.
struct ModelConfig {
  int vocab_size = 0;
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int head_dim = 0;
  int qk_rope_head_dim = 0;
  int q_lora_rank = 0;
  int o_groups = 0;
  int o_lora_rank = 0;
  int n_routed_experts = 0;
  int num_experts_per_tok = 0;
  int moe_intermediate_size = 0;
  int num_hash_layers = 0;
  int index_n_heads = 0;
  int index_head_dim = 0;
  int index_topk = 0;
  int sliding_window = 0;
  int hc_mult = 0;
  int hc_sinkhorn_iters = 0;
  int num_nextn_predict_layers = 0;  // 0 or 1
  int max_position_embeddings = 0;
  int bos_token_id = 0;
  int eos_token_id = 0;
  double rms_norm_eps = 0;
  double hc_eps = 0;
  double rope_theta = 0;
  double compress_rope_theta = 0;
  double yarn_factor = 0;
  double yarn_beta_fast = 0;
  double yarn_beta_slow = 0;
  int yarn_original_positions = 0;
  double routed_scaling_factor = 0;
  double swiglu_limit = 0;
  std::string expert_dtype;          // "fp4" (also when absent) or "fp8"
  std::vector<int> compress_ratios;  // num_hidden_layers entries of 0, 4, 128 (the MTP's trailing 0
                                     // checked and dropped)

  bool IsCsa(int layer) const { return compress_ratios[static_cast<size_t>(layer)] == kCsaRatio; }
  bool IsHca(int layer) const { return compress_ratios[static_cast<size_t>(layer)] == kHcaRatio; }
  bool IsHashed(int layer) const { return layer < num_hash_layers; }
};

}  // namespace baton::kernels
