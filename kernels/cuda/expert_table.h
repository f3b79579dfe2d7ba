#pragma once

#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/weights.h"

namespace baton::kernels::cuda {

// A layer's experts as kernels take them; the shared one is the last.
struct ExpertTable {
  const ExpertWeights* source = nullptr;
  const MatrixView* matrices = nullptr;  // [3, E + 1] w1, w3, w2
  const uint8_t* is_promoted = nullptr;  // [E + 1]
};

// Projections of all experts from one input: one row of the table, or two.
struct ExpertStage {
  const ExpertTable* table = nullptr;
  int matrix = 0;                // w1 (and w3): 0, w2: 2
  uint16_t* second_y = nullptr;  // of w3
  int tile_rows = 0;
  const Matrix* routed = nullptr;  // any of the routed ones: shape and format
  LinearArgs linear;               // but the weight
};

}  // namespace baton::kernels::cuda
