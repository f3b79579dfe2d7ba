#pragma once

#include <cstdint>

// Where the values of a weight lie in device memory: not in the order of the columns but so that a
// thread reads those of its part of an instruction, or of its lane of a sum, at once.
namespace baton::kernels::cuda {

// Codes: lane l % 4 = c takes columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of 16 (widen.cuh).
// e4m3: word c of 16 codes has columns 2 c, 2 c + 8, 2 c + 1, 2 c + 9.
__host__ __device__ constexpr int PlaceOfFp8(int column) {
  return column / 16 * 16 + column % 8 / 2 * 4 + column % 2 * 2 + column / 8 % 2;
}

// e2m1, in codes of 4 bits: word c of 32 codes has columns 2 c, + 8, + 16, + 24, then each of these
// plus 1.
__host__ __device__ constexpr int PlaceOfFp4(int column) {
  return column / 32 * 32 + column % 8 / 2 * 8 + column / 8 % 4 + column % 2 * 4;
}

// f32, a matrix of so many rows and columns: R11's lanes (contracts.md 1.3) one after the other, of
// each four columns of all rows, then the next four. Column c is step c / 16 of lane c % 16.
constexpr int kStepsTogether = 4;
__host__ __device__ constexpr int64_t PlaceOfF32(int row, int column, int rows, int columns) {
  const int lane = column % 16, step = column / 16;
  const int64_t fours = int64_t{columns} / 64 * lane + step / kStepsTogether;
  return (fours * rows + row) * kStepsTogether + step % kStepsTogether;
}

}  // namespace baton::kernels::cuda
