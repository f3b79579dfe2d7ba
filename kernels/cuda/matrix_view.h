#pragma once

#include <cstdint>

// A weight matrix [rows, cols] in device memory, as kernels read it.
namespace baton::kernels::cuda {

enum class ValueFormat : uint8_t { kF32, kBf16, kFp8, kFp4 };

struct MatrixView {
  const uint8_t* values = nullptr;  // row-major bf16, or in the order of code_order.cuh
  const float* scales = nullptr;    // fp8, FP4: [ceil(rows / 128), cols / 128]; FP4: S of R1
  const uint8_t* exponents = nullptr;  // FP4: e8m0 codes of the group scales, [rows, cols / 32]
  int rows = 0;
  int cols = 0;
  ValueFormat format = ValueFormat::kF32;
  bool is_wide = false;  // FP4 with a block whose scales lie further than 2^14 apart (R1)
};

}  // namespace baton::kernels::cuda
