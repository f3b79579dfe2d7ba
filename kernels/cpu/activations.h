#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/model_config.h"

namespace baton::kernels::cpu {

// fp8 activations: codes as fp32 values, one scale per 128 (official); in float32 mode `codes`
// holds the plain values, scales 1.
struct QuantisedRows {
  std::vector<float> codes;   // [rows, width]
  std::vector<float> scales;  // [rows, width / 128]
};

// What flows between the CPU ops. Everything is fp32 storage; in official mode the values are
// bf16-exact where model.md 10.6 rounds. Row-major, first dimension max_rows. Sized once.
struct Activations {
  std::vector<float> streams;    // [rows, S, H]
  std::vector<float> post;       // [rows, S]       of the mHC site entered last
  std::vector<float> comb;       // [rows, S, S]
  std::vector<float> branch;     // [rows, H]       output of the site that ran
  std::vector<float> normed;     // [rows, H]       x
  QuantisedRows normed8;         // [rows, H]       x8
  std::vector<float> query_low;  // [rows, q_lora]  qa, then qr after StoreRows
  QuantisedRows query_low8;      // [rows, q_lora]  qr8
  std::vector<float> kv;         // [rows, D]       projection; after StoreRows normed, rotated and
                                 // quantised: the row as attended
  std::vector<float> compressor_kv;           // [rows, 2 * D]   raw wkv.x (coff * D used)
  std::vector<float> compressor_score;        // [rows, 2 * D]   raw wgate.x, after StoreRows + ape
  std::vector<float> index_compressor_kv;     // [rows, 2 * I]
  std::vector<float> index_compressor_score;  // [rows, 2 * I]
  std::vector<float> index_weights;           // [rows, index heads], scaled by I^-0.5 * heads^-0.5
  std::vector<float> query;                   // [rows, heads, D]
  std::vector<float> index_query;             // [rows, index heads, I]
  std::vector<int32_t> selected;              // [rows, index_topk] ascending entry numbers
  std::vector<int32_t> num_selected;          // [rows]
  std::vector<float> attended;                // [rows, heads, D] after the inverse rope
  std::vector<int32_t> expert_ids;            // [rows, experts per token]
  std::vector<float> expert_weights;          // [rows, experts per token]
  std::vector<float> logits;                  // [max head rows, V]

  Activations(const ModelConfig& config, int max_rows, int max_head_rows);
};

}  // namespace baton::kernels::cpu
