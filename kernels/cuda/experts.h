#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/step_view.h"

// Routing and what lies between the experts' products (model.md 6, R5, R7 of contracts.md 1.3).
// Device pointers, asynchronous.
namespace baton::kernels::cuda {

inline constexpr int kMaxExpertsPerToken = 32;
inline constexpr int kMaxExperts = 1024;
inline constexpr int kPlanRows = 128;  // rows of one part of the plan

struct RouteArgs {
  DeviceStep step;
  ModelShape shape;
  const float* logits = nullptr;           // [rows, E]
  const float* bias = nullptr;             // [E], learned layers
  const int32_t* token_experts = nullptr;  // [V, k], hash layers
  int32_t* ids = nullptr;                  // [rows, k]
  float* weights = nullptr;                // [rows, k]
};
cudaError_t RunRoute(const RouteArgs& args, cudaStream_t stream);

// The step's rows regrouped by expert: a pair is one row at one expert, ordered by expert, then by
// row. An expert a row names twice is one pair with the sum of its weights.
struct ExpertPlanArgs {
  DeviceStep step;
  int experts = 0;
  int slots = 0;  // experts per token
  int tile_rows = 0;
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  int32_t* part_counts = nullptr;  // [parts of kPlanRows rows, E]
  int32_t* pair_rows = nullptr;    // [rows * k + rows]: of a pair its row; then the shared rows
  float* pair_weights = nullptr;   // the same; the shared expert's are 1
  int32_t* row_pairs = nullptr;    // [rows, k] pair of a slot, -1: named before in the row
  int32_t* num_pairs = nullptr;    // [1]
  RowTile* tiles = nullptr;        // first the shared expert's, number E, rows from shared_first
  int32_t* num_tiles = nullptr;    // [1]
  int shared_first = 0;
};
cudaError_t RunExpertPlan(const ExpertPlanArgs& args, cudaStream_t stream);

// silu(min(gate, limit)) * clamp(up) * weight, r, fp8 (model.md 10.6 item 12).
struct SwigluArgs {
  DeviceStep step;
  ModelShape shape;
  int pairs = 0;         // to launch for, the shared rows behind shared_first included
  int shared_first = 0;  // pairs before it are live below *num_pairs
  const int32_t* num_pairs = nullptr;
  const float* pair_weights = nullptr;
  const uint16_t* gate = nullptr;  // [pairs, I]
  const uint16_t* up = nullptr;
  uint16_t* hidden8 = nullptr;  // [pairs, I]
};
cudaError_t RunSwiglu(const SwigluArgs& args, cudaStream_t stream);

// branch = r(the row's experts by ascending id, then the shared one).
struct SumExpertsArgs {
  DeviceStep step;
  ModelShape shape;
  int shared_first = 0;
  const int32_t* row_pairs = nullptr;
  const uint16_t* outputs = nullptr;  // [pairs, H]
  uint16_t* branch = nullptr;         // [rows, H]
};
cudaError_t RunSumExperts(const SumExpertsArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
