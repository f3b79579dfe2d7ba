#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/step_view.h"

// SelectEntries: the lightning indexer (model.md 5). Scores in the CPU back end's order, top-k
// exact, ties to the lowest index, selected entries ascending (R3, R7). Device pointers,
// asynchronous.
namespace baton::kernels::cuda {

constexpr int kGroupScores = 16;  // neighbouring scores of a row, whose maximum is kept

struct SelectArgs {
  DeviceStep step;
  ModelShape shape;
  LayerPages pages;
  const uint16_t* index_query = nullptr;  // [rows, index heads, I]
  const float* index_weights = nullptr;   // [rows, index heads]
  float* scores = nullptr;  // [slice_rows, max_entries]: what is scored at a time, in rows as long
  float* maxima = nullptr;  // as many groups' maxima as fit: scores / kGroupScores + rows
  uint32_t* arrivals = nullptr;  // [rows] zero, before and after
  int slice_rows = 0;            // as the step needs
  int max_entries = 0;
  int32_t* selected = nullptr;      // [rows, index_topk]
  int32_t* num_selected = nullptr;  // [rows]
};
// `longest`: at least the entries that any row may see; bounds the grid.
cudaError_t RunSelect(const SelectArgs& args, int longest, cudaStream_t stream);

// The k best of each row's scores, ascending; ties to the lowest index (pick.cu).
struct PickArgs {
  const float* scores = nullptr;  // [rows, stride]
  int64_t stride = 0;
  const float* maxima = nullptr;  // [rows, maxima_stride] of groups of kGroupScores; null: unknown
  int64_t maxima_stride = 0;
  const int32_t* counts = nullptr;     // [rows] scores of a row, or
  const int32_t* positions = nullptr;  // [rows] the row's position, which says how many it has
  const int32_t* num_rows = nullptr;   // [1] live rows of the step; null: all
  int first_row = 0;                   // of the step, for num_rows
  int rows = 0;
  int longest = 0;  // at least the scores of any row
  int k = 0;
  int32_t* selected = nullptr;  // [rows, k]
  int32_t* num_selected = nullptr;
};
cudaError_t RunPick(const PickArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
