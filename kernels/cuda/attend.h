#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/step_view.h"

// Attention over window rows and entries with one sink, by R3 (contracts.md 1.3). Products by bf16
// wgmma. Device pointers, asynchronous.
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
  // More than one: segments may run beside one another, and a second launch adds them. At least
  // AttendSegments; for few rows. Never changes a bit.
  int segments = 1;
  float* partials = nullptr;  // [AttendPartialFloats]
};
// Rows up to which segments should run beside one another.
inline constexpr int kMaxSplitRows = 32;
// And segments of a row from which on that is worth the second launch.
inline constexpr int kFewestSplitSegments = 3;
// Segments of R3 that rows of a layer have at most; `entries`: of an HCA layer, that any row sees.
int AttendSegments(int ratio, int index_topk, int64_t entries);
// Blocks of threads that attend at most.
inline constexpr int kMaxAttendBlocks = 144;
// Room for the sums of up to kMaxSplitRows rows' segments, or for every block's of its row so far.
int64_t AttendPartialFloats(int64_t rows, int64_t segments, int heads, int head_dim);
cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
