#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/step_view.h"

// SelectEntries: the lightning indexer (model.md 5). Scores in the CPU back end's order, top-k
// exact, ties to the lowest index, selected entries ascending (R3, R7). Device pointers,
// asynchronous.
namespace baton::kernels::cuda {

struct SelectArgs {
  DeviceStep step;
  ModelShape shape;
  LayerPages pages;
  const uint16_t* index_query = nullptr;  // [rows, index heads, I]
  const float* index_weights = nullptr;   // [rows, index heads]
  float* scores = nullptr;                // [slice_rows, max_entries]
  int slice_rows = 0;                     // rows scored at a time
  int max_entries = 0;
  int32_t* selected = nullptr;      // [rows, index_topk]
  int32_t* num_selected = nullptr;  // [rows]
};
// `longest`: at least the entries that any row may see; bounds the grid.
cudaError_t RunSelect(const SelectArgs& args, int longest, cudaStream_t stream);

// The k best of scores [rows, stride], `counts[r]` of row r: test entry of the selection alone.
struct PickArgs {
  const float* scores = nullptr;
  int64_t stride = 0;
  const int32_t* counts = nullptr;
  int rows = 0;
  int k = 0;
  int32_t* selected = nullptr;  // [rows, k]
  int32_t* num_selected = nullptr;
};
cudaError_t RunPick(const PickArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
