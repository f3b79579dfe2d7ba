#include "nlohmann/json.hpp"

#include "engine/load/test_checkpoint.h"

namespace baton::engine {

using nlohmann::json;

ModelConfig TestModelConfig() {
  ModelConfig c;
  c.vocab_size = 512;
  c.hidden_size = 128;
  c.num_hidden_layers = 4;
  c.num_attention_heads = 2;
  c.head_dim = 512;
  c.qk_rope_head_dim = 64;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 128;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 6;
  c.moe_intermediate_size = 128;
  c.num_hash_layers = 1;
  c.index_n_heads = 8;
  c.index_head_dim = 128;
  c.index_topk = 32;
  c.sliding_window = 128;
  c.hc_mult = 4;
  c.hc_sinkhorn_iters = 20;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 1'048'576;
  c.bos_token_id = 0;
  c.eos_token_id = 1;
  c.rms_norm_eps = 1e-6;
  c.hc_eps = 1e-6;
  c.rope_theta = 10'000;
  c.compress_rope_theta = 160'000;
  c.yarn_factor = 16;
  c.yarn_beta_fast = 32;
  c.yarn_beta_slow = 1;
  c.yarn_original_positions = 65'536;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10;
  c.expert_dtype = "fp4";
  c.compress_ratios = {0, 4, 128, 4};
  return c;
}

std::string ModelConfigJson(const ModelConfig& c) {
  std::vector<int> ratios = c.compress_ratios;
  if (c.num_nextn_predict_layers > 0) ratios.push_back(0);
  const json root = {
      {"architectures", json::array({"DeepseekV4ForCausalLM"})},
      {"model_type", "deepseek_v4"},
      {"hidden_act", "silu"},
      {"n_shared_experts", 1},
      {"norm_topk_prob", true},
      {"num_key_value_heads", 1},
      {"scoring_func", "sqrtsoftplus"},
      {"topk_method", "noaux_tc"},
      {"tie_word_embeddings", false},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"num_attention_heads", c.num_attention_heads},
      {"head_dim", c.head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"q_lora_rank", c.q_lora_rank},
      {"o_groups", c.o_groups},
      {"o_lora_rank", c.o_lora_rank},
      {"n_routed_experts", c.n_routed_experts},
      {"num_experts_per_tok", c.num_experts_per_tok},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"num_hash_layers", c.num_hash_layers},
      {"index_n_heads", c.index_n_heads},
      {"index_head_dim", c.index_head_dim},
      {"index_topk", c.index_topk},
      {"sliding_window", c.sliding_window},
      {"hc_mult", c.hc_mult},
      {"hc_sinkhorn_iters", c.hc_sinkhorn_iters},
      {"num_nextn_predict_layers", c.num_nextn_predict_layers},
      {"max_position_embeddings", c.max_position_embeddings},
      {"bos_token_id", c.bos_token_id},
      {"eos_token_id", c.eos_token_id},
      {"rms_norm_eps", c.rms_norm_eps},
      {"hc_eps", c.hc_eps},
      {"rope_theta", c.rope_theta},
      {"compress_rope_theta", c.compress_rope_theta},
      {"routed_scaling_factor", c.routed_scaling_factor},
      {"swiglu_limit", c.swiglu_limit},
      {"expert_dtype", c.expert_dtype},
      {"compress_ratios", ratios},
      {"rope_scaling",
       {{"type", "yarn"},
        {"factor", c.yarn_factor},
        {"original_max_position_embeddings", c.yarn_original_positions},
        {"beta_fast", c.yarn_beta_fast},
        {"beta_slow", c.yarn_beta_slow}}},
      {"quantization_config",
       {{"activation_scheme", "dynamic"},
        {"fmt", "e4m3"},
        {"quant_method", "fp8"},
        {"scale_fmt", "ue8m0"},
        {"weight_block_size", {128, 128}}}},
  };
  return root.dump(2);
}

}  // namespace baton::engine
