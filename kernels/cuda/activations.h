#pragma once

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/linear.h"
#include "kernels/model_config.h"

namespace baton::kernels::cuda {

// What flows between the phases, in device memory; bf16 where model.md 10.6 rounds. An fp8 input of
// a linear (named ..8) is bf16 too: e4m3 codes times their group's power of two, exact. Row-major,
// first dimension max_rows (head: max_head_rows). Sized once.
struct Activations {
  uint16_t* streams = nullptr;        // [rows, S, H]
  float* post = nullptr;              // [rows, S]
  float* comb = nullptr;              // [rows, S, S]
  uint16_t* branch = nullptr;         // [rows, H]
  uint16_t* normed = nullptr;         // [rows, H]
  uint16_t* normed8 = nullptr;        // [rows, H]
  uint16_t* query_low = nullptr;      // [rows, q_lora]
  uint16_t* query_low8 = nullptr;     // [rows, q_lora]
  uint16_t* kv = nullptr;             // [rows, D]
  float* compressor_kv = nullptr;     // [rows, 2 D]
  float* compressor_score = nullptr;  // [rows, 2 D]
  float* index_kv = nullptr;          // [rows, 2 I]
  float* index_score = nullptr;       // [rows, 2 I]
  float* index_weights = nullptr;     // [rows, index heads]
  uint16_t* query = nullptr;          // [rows, heads, D]
  uint16_t* index_query = nullptr;    // [rows, index heads, I]
  int32_t* selected = nullptr;        // [rows, index_topk]
  int32_t* num_selected = nullptr;    // [rows]
  uint16_t* attended = nullptr;       // [rows, heads, D]
  int32_t* expert_ids = nullptr;      // [rows, k]
  float* expert_weights = nullptr;    // [rows, k]
  float* logits = nullptr;            // [head rows, V]
};

// Buffers of single phases.
struct Scratch {
  float* products = nullptr;            // [rows, (2 + S) S + 1] mHC
  uint16_t* old_window = nullptr;       // [sequences, window - 1, D]
  float* pooled = nullptr;              // [rows, D]
  float* hca_state = nullptr;           // [sequences, 3, D]
  float* index_scores = nullptr;        // [select_rows, max_entries]
  float* index_maxima = nullptr;        // of their groups
  uint32_t* select_arrivals = nullptr;  // [rows] zero
  int select_rows = 0, max_entries = 0;
  float* attend_partials = nullptr;  // [AttendPartialFloats]
  uint16_t* low_out = nullptr;       // [rows, o_groups * o_lora]
  uint16_t* low_out8 = nullptr;      // [rows, o_groups * o_lora]
  float* gate_logits = nullptr;      // [rows, E]
  int32_t* part_counts = nullptr;
  int32_t *pair_rows = nullptr, *row_pairs = nullptr;
  float* pair_weights = nullptr;
  int32_t *num_pairs = nullptr, *num_tiles = nullptr;
  RowTile* tiles = nullptr;
  uint16_t *gate = nullptr, *up = nullptr, *expert_out = nullptr;  // [rows * (k + 1), I or H]
  uint16_t* hidden8 = nullptr;                                     // [rows * (k + 1), I]
  uint16_t* draft_streams8 = nullptr;                              // [rows * S, H]
  uint16_t* collapsed = nullptr;                                   // [head rows, H]
};

struct BufferSizes {
  int max_rows = 0, max_sequences = 0, max_head_rows = 0, max_context = 0;
};

// kResourceExhausted where the GPU's memory does not suffice.
absl::Status AllocateBuffers(CudaDevice& device, const ModelConfig& config,
                             const BufferSizes& sizes, Activations& activations, Scratch& scratch);
// What AllocateBuffers takes.
size_t BufferBytes(const ModelConfig& config, const BufferSizes& sizes);

}  // namespace baton::kernels::cuda
