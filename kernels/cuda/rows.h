#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/step_view.h"

// StoreRows and the shaping of queries (model.md 10.6 items 3 to 7; pooling: contracts.md 1.4).
// Everything but the products is computed here in the CPU back end's order: equal inputs give
// equal rows, states and page bytes. Device pointers, asynchronous.
namespace baton::kernels::cuda {

struct RowsArgs {
  DeviceStep step;
  ModelShape shape;
  SlotLayout slots;
  LayerPages pages;
  int layer = 0;                // its number: ring in the slot
  int ratio = 0;                // 0, 4 or 128
  int rank = 0;                 // among the layers of its kind
  bool has_short_runs = false;  // no run has more rows than the rings have beyond a window, which
                                // is as many as a verify run may have
  const float* frequencies = nullptr;        // [rope_dim / 2], of this layer
  const float* entry_frequencies = nullptr;  // of compressed entries

  uint16_t* query_low = nullptr;  // [rows, q_lora] in: qa, out: qr
  const float* q_norm = nullptr;
  uint16_t* query_low8 = nullptr;  // qr as wq_b takes it
  uint16_t* kv = nullptr;          // [rows, D] in: projection, out: row as attended
  const float* kv_norm = nullptr;
  uint16_t* old_window = nullptr;  // [sequences, window - 1, D]

  const float* compressor_kv = nullptr;     // [rows, 2 D]
  const float* compressor_score = nullptr;  // [rows, 2 D], without its bias
  const float* index_kv = nullptr;          // [rows, 2 I]
  const float* index_score = nullptr;
  const float* ape = nullptr;  // [ratio, coff D]
  const float* index_ape = nullptr;
  const float* entry_norm = nullptr;
  const float* index_entry_norm = nullptr;
  float* pooled = nullptr;     // [rows, D] HCA entries, by closing row
  float* hca_state = nullptr;  // [sequences, 3, D] states after the step, before they are kept
};

// All of StoreRows, in order.
cudaError_t RunStoreRows(const RowsArgs& args, cudaStream_t stream);
// The same for runs of any length, whatever has_short_runs says: equal bits.
cudaError_t RunStoreLongRows(const RowsArgs& args, cudaStream_t stream);

// Per head: q = r(rms(q)), rope, r; index q: rope, r, Hadamard, r, fp4.
struct QueryArgs {
  DeviceStep step;
  ModelShape shape;
  const float* frequencies = nullptr;
  uint16_t* query = nullptr;        // [rows, heads, D]
  uint16_t* index_query = nullptr;  // [rows, index heads, I]; null: none
};
cudaError_t RunShapeQueries(const QueryArgs& args, cudaStream_t stream);

// fp8 groups of 128 of bf16 rows, for a linear's input.
struct QuantiseArgs {
  DeviceStep step;
  int width = 0;
  const uint16_t* x = nullptr;    // [rows, width]
  uint16_t* quantised = nullptr;  // [rows, width] codes times scales
};
cudaError_t RunQuantiseRows(const QuantiseArgs& args, cudaStream_t stream);

// Folds verified rows of HCA layers into their states: positions from .. to - 1 of a slot.
struct FoldJob {
  int32_t slot = 0;
  int64_t from = 0, to = 0;
};
struct FoldArgs {
  SlotLayout slots;
  const FoldJob* jobs = nullptr;  // device
  int num_jobs = 0;
  int num_layers = 0;  // HCA layers
};
cudaError_t RunFold(const FoldArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
