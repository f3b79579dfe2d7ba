#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/matrix_view.h"

// y = x W^T on the tensor cores (R1 of contracts.md 1.3).
namespace baton::kernels::cuda {

// Rows first .. first + count - 1 of x and y meet the matrix of one expert.
struct RowTile {
  int32_t expert = 0;
  int32_t first = 0;
  int32_t count = 0;
};

enum class OutputFormat : uint8_t {
  kF32,
  kBf16,
  kScaledF32  // r(y) * output_scale
};

struct LinearArgs {
  MatrixView weight;
  const uint16_t* x = nullptr;        // [.., x_stride] bf16
  bool has_fp8_input = false;         // they are e4m3 codes times their group's scale
  int64_t x_stride = 0;               // in values
  const int32_t* x_rows = nullptr;    // which row of x is row i; null: i
  const int32_t* num_rows = nullptr;  // [1] live rows; null: all `rows`
  int row_factor = 1;                 // live rows = *num_rows * row_factor
  int rows = 0;                       // rows to launch for
  void* y = nullptr;                  // [rows, y_stride]
  int64_t y_stride = 0;
  OutputFormat output = OutputFormat::kBf16;
  float output_scale = 1;
  int k_segments = 1;  // R1: constant of the op
  int groups = 1;      // wo_a: output rows of group g read x columns g * cols ..
};

// One or two linears per expert, of equal shape. The tiles are made for TileRows(rows_per_expert)
// rows.
struct ExpertLinearArgs {
  LinearArgs linear;                            // weight: shape and format of the routed ones
  const MatrixView* matrices = nullptr;         // [experts + 1], device; the shared one is the last
  const MatrixView* second_matrices = nullptr;  // their outputs go to second_y; null: none
  void* second_y = nullptr;
  const RowTile* tiles = nullptr;      // [max_tiles], device
  const int32_t* num_tiles = nullptr;  // [1]
  int max_tiles = 0;
  int tile_rows = 0;
  const uint8_t* is_promoted = nullptr;  // [experts + 1] per 32 of K, by the CPU's order of sums
};

// Rows of a tile for that many rows of input. Never changes a bit.
int TileRows(int rows);

inline constexpr int kMaxLinears = 8;

// Weights: bf16, fp8 or FP4; columns a multiple of 128. Device pointers; asynchronous.
cudaError_t RunLinear(const LinearArgs& args, cudaStream_t stream);
// Several of the same rows at once, of few rows in one launch. `count` is kMaxLinears at most.
cudaError_t RunLinears(const LinearArgs* linears, int count, cudaStream_t stream);
cudaError_t RunExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream);

// Codes of a weight in the order of its columns (fp8 or FP4, low nibble first) get the order that
// the linears take. `bytes` a multiple of 16; other formats stay as they are.
cudaError_t OrderCodes(uint8_t* codes, size_t bytes, ValueFormat format, cudaStream_t stream);

// The same in the CPU back end's order of sums, slow: what tests compare with.
cudaError_t RunReferenceLinear(const LinearArgs& args, cudaStream_t stream);
cudaError_t RunReferenceExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
