#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace baton::kernels::cpu {

// One panel of a weight matrix (prepared_matrix.h) times a few rows, the inner loop of every
// linear: y[r][o] = sum over k of x[r][k] * w[o][k], by the orders of R1 and R11.
// - x_scales and scales given: 16 lanes over `promote_group` columns, their tree, then
//   acc = fma(part, x_scale * scale, acc), ascending.
// - only scales given: the weight is operand * scale (exact); 16 lanes over all columns, tree.
// - no scales: 16 lanes over all columns, tree.
struct PanelArgs {
  const uint16_t* bf16 = nullptr;  // the panel's values, one of the two
  const float* f32 = nullptr;
  const float* scales = nullptr;  // [cols / scale_group, 16]
  int cols = 0;                   // a multiple of 128
  int scale_group = 0;            // 128 or 32
  int promote_group = 0;          // 128 or 32, at most scale_group
  int num_rows = 0;
  const float* const* x = nullptr;         // [num_rows] rows of `cols` values
  const float* const* x_scales = nullptr;  // [num_rows] rows of cols / 128 scales
  bool round_bf16 = false;                 // the result
  float* y = nullptr;                      // [num_rows, 16]
};

using PanelFunction = void (*)(const PanelArgs& args);

void MultiplyPanelScalar(const PanelArgs& args);
void MultiplyPanelAvx2(const PanelArgs& args);
void MultiplyPanelAvx512(const PanelArgs& args);

PanelFunction PanelFunctionFor(Isa isa);

}  // namespace baton::kernels::cpu
