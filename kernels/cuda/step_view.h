#pragma once

#include <cstddef>
#include <cstdint>

// What kernels know about the step, the slots and the pages: plain values passed by value. All
// pointers are device memory.
namespace baton::kernels::cuda {

// One sequence's rows in the step.
struct RunInfo {
  int32_t slot = 0;
  int32_t is_verify = 0;
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int64_t first = 0;  // position
};

struct DeviceStep {
  const int32_t* num_rows = nullptr;  // [1]
  const int32_t* token = nullptr;     // [max_rows]
  const int32_t* position = nullptr;
  const int32_t* sequence = nullptr;
  const int32_t* page_table = nullptr;  // [max_sequences, max_pages]
  const RunInfo* runs = nullptr;        // [max_sequences]
  int max_pages = 0;
  int rows = 0;       // rows to launch for: live rows rounded up to a bucket
  int sequences = 0;  // sequences to launch for; a run past the live ones has no rows
};

// Device form of tails (contracts.md 3.3); the same rings as the CPU back end's, every row
// addressed by position. Streams are bf16.
struct SlotLayout {
  uint8_t* base = nullptr;
  uint64_t slot_bytes = 0;
  int window_ring = 0, row_data_bytes = 0, row_scale_bytes = 0;
  int csa_ring = 0, unverified_ring = 0;
  int head_dim = 0, index_dim = 0;
  uint64_t csa_offset = 0, hca_offset = 0, unverified_offset = 0, streams_offset = 0;
  uint64_t stream_bytes = 0;  // of one position: S * H bf16
};

// A layer's rows in pages.
struct LayerPages {
  uint8_t* base = nullptr;
  uint64_t stride = 0;
  uint64_t data = 0, scales = 0, index_values = 0, index_scales = 0;  // offsets of row 0
  int data_bytes = 0, scale_bytes = 0, index_value_bytes = 0, index_scale_bytes = 0;
  int rows_per_page = 0;
  bool has_fp4_index = false;
};

// Sizes a kernel needs of the model.
struct ModelShape {
  int hidden = 0, streams = 0, heads = 0, head_dim = 0, rope_dim = 0;
  int q_lora = 0, index_heads = 0, index_dim = 0, index_topk = 0, window = 0;
  int experts = 0, experts_per_token = 0, intermediate = 0, vocabulary = 0;
  int sinkhorn_iterations = 0;
  float norm_epsilon = 0, mix_epsilon = 0;
  float routed_scaling = 0, swiglu_limit = 0, score_scale = 0, index_norm = 0;
};

}  // namespace baton::kernels::cuda
