#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace baton::kernels::cuda {

// What R1 (contracts.md 1.3) decides about an FP4 matrix at load.
struct Fp4Scales {
  std::vector<uint8_t> exponents;  // e8m0 codes of the group scales, [rows, cols / 32]
  std::vector<float> common;       // S of each 128 x 128 block, [ceil(rows / 128), cols / 128]
  bool is_wide = false;            // a block's scales lie further than 2^14 apart
  int largest = -127;              // exponents of the scales that count
  int smallest = 127;
};

// Scales are powers of two, columns a multiple of 128. Groups whose codes are all zero do not
// count; a block of nothing but zeros has S = 1. Pure.
Fp4Scales ReadFp4Scales(const HostMatrix& host);

}  // namespace baton::kernels::cuda
