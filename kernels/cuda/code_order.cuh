#pragma once

#include <cstdint>

// Where the codes of a weight lie in device memory: not in the order of the columns but so that a
// thread reads those of its part of an instruction as one word (widen.cuh). Lane l % 4 = c takes
// columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of 16.
namespace baton::kernels::cuda {

// e4m3: word c of 16 codes has columns 2 c, 2 c + 8, 2 c + 1, 2 c + 9.
__host__ __device__ constexpr int PlaceOfFp8(int column) {
  return column / 16 * 16 + column % 8 / 2 * 4 + column % 2 * 2 + column / 8 % 2;
}

// e2m1, in codes of 4 bits: word c of 32 codes has columns 2 c, + 8, + 16, + 24, then each of these
// plus 1.
__host__ __device__ constexpr int PlaceOfFp4(int column) {
  return column / 32 * 32 + column % 8 / 2 * 8 + column / 8 % 4 + column % 2 * 4;
}

}  // namespace baton::kernels::cuda
