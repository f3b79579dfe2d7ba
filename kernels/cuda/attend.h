#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/step_view.h"

// Attention over window rows and entries with one sink, by R3 (contracts.md 1.3). Products by bf16
// mma.sync (bit-equal to wgmma). Device pointers, asynchronous.
namespace baton::kernels::cuda {

struct AttendArgs {
  DeviceStep step;
  ModelShape shape;
  LayerPages pages;
  int ratio = 0;
  bool has_bounded_scores = true;  // R3: reference 0; else the running maximum
  const float* frequencies = nullptr;
  const uint16_t* query = nullptr;       // [rows, heads, D]
  const uint16_t* kv = nullptr;          // [rows, D] rows of this step
  const uint16_t* old_window = nullptr;  // [sequences, window - 1, D]
  const int32_t* selected = nullptr;     // [rows, index_topk] CSA
  const int32_t* num_selected = nullptr;
  const float* sink = nullptr;   // [heads]
  uint16_t* attended = nullptr;  // [rows, heads, D]
};
cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
