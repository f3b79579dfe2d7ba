#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

// The weights of one layer as the ops take them (model.md 9.2). Pointers belong to the Device that
// uploaded them.
namespace baton::kernels {

struct MixWeights {            // one mHC site, or hc_head (fn [S, S*H], base [S], scale [1])
  const Matrix* fn = nullptr;  // f32 [(2 + S) * S, S * H]
  Vector base;                 // [(2 + S) * S]
  Vector scale;                // [3]
};

struct CompressorWeights {
  const Matrix* wkv = nullptr;    // bf16 [coff * d, H]
  const Matrix* wgate = nullptr;  // bf16 [coff * d, H]
  Vector ape;                     // [ratio, coff * d]
  Vector norm;                    // [d]
};

struct ExpertWeights {
  const Matrix* w1 = nullptr;  // gate [I, H]
  const Matrix* w3 = nullptr;  // up   [I, H]
  const Matrix* w2 = nullptr;  // down [H, I]
};

struct LayerWeights {
  int layer = 0;  // its number; num_layers for the MTP block
  int ratio = 0;  // 0, 4 or 128
  MixWeights attn_mix, ffn_mix;
  Vector attn_norm, ffn_norm;                           // [H]
  const Matrix *wq_a = nullptr, *wkv = nullptr;         // fp8, share x
  const Matrix *wq_b = nullptr, *index_wq_b = nullptr;  // fp8, share qr
  const Matrix *wo_a = nullptr, *wo_b = nullptr;  // wo_a: bf16 or fp8 widened exactly; wo_b fp8
  const Matrix* index_weights = nullptr;          // bf16 [index heads, H]
  Vector q_norm, kv_norm, attn_sink;
  CompressorWeights compressor, index_compressor;
  bool has_bounded_scores = true;          // R3: reference 0 may be used
  const Matrix* gate = nullptr;            // bf16 [E, H]
  Vector gate_bias;                        // [E], learned layers
  const int32_t* token_experts = nullptr;  // [vocab, experts per token], hash layers
  std::vector<ExpertWeights> experts;
  ExpertWeights shared;
};

struct MtpWeights {
  Vector enorm, hnorm, norm;
  const Matrix *e_proj = nullptr, *h_proj = nullptr;
  LayerWeights block;
  MixWeights head_mix;
};

struct ModelWeights {
  const Matrix* embed = nullptr;  // bf16 [V, H]
  const Matrix* head = nullptr;   // bf16 [V, H]
  Vector norm;
  MixWeights head_mix;
  std::vector<LayerWeights> layers;
  bool has_mtp = false;
  MtpWeights mtp;
};

// Of the routed experts of all layers, MTP's included, how many `is` says true of.
template <typename Predicate>
int CountExperts(const ModelWeights& weights, Predicate is) {
  const auto count = [&is](const LayerWeights& layer) {
    return std::count_if(layer.experts.begin(), layer.experts.end(), is);
  };
  auto total = weights.has_mtp ? count(weights.mtp.block) : 0;
  for (const LayerWeights& layer : weights.layers) total += count(layer);
  return static_cast<int>(total);
}

}  // namespace baton::kernels
