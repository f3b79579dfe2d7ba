#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/tensor.h"

namespace baton::kernels::cpu {

inline constexpr int kPanelOutputs = 16;  // output rows whose weights lie side by side
inline constexpr int kWeightBlock = 128;  // of K; also rows and columns of a scale block

// A weight matrix as the CPU's linears read it. Immutable.
//
// Panels of 16 output rows (the last one padded with zeros). In a panel, blocks of 128 of K follow
// each other; in a block the values lie in the order in which the 16-lane sum of R11 takes them:
// lane pairs (i, i + 8) for i = 0, 4, 2, 6, 1, 5, 3, 7, each over the block's 8 steps of 16, each
// value 16 outputs wide. So a linear streams through its weights, and its tree needs no shuffles.
//
// Values are bf16 where all of them are exact in it (every checkpoint format but F32), else fp32.
// In official mode fp8 and FP4 matrices hold operands and scales apart: value = operand * scale,
// one scale per output row and scale_group() columns.
class PreparedMatrix final : public Matrix {
 public:
  // Errors: kInvalidArgument where a size is no multiple of 128 or scales are missing.
  static absl::StatusOr<std::unique_ptr<PreparedMatrix>> Prepare(const HostMatrix& host,
                                                                 NumericsMode mode);

  bool is_bf16() const { return is_bf16_; }
  int num_panels() const { return (rows() + kPanelOutputs - 1) / kPanelOutputs; }
  const uint16_t* Bf16Panel(int panel) const;
  const float* F32Panel(int panel) const;

  // Columns that share a scale: 0 (no scales), 128, or 32 (FP4 whose block spread is beyond 2^14).
  int scale_group() const { return scale_group_; }
  const float* PanelScales(int panel) const;  // [cols / scale_group, 16]

  // Whether a 128 x 128 block of an FP4 matrix has scales further than 2^14 apart (R1).
  bool has_wide_spread() const { return scale_group_ == 32; }

  // The row's values times their scales: out [cols].
  void CopyRow(int row, float* out) const;

  size_t bytes() const;

 private:
  struct Operands;  // dense, before packing

  PreparedMatrix(int rows, int cols) : Matrix(rows, cols) {}
  static Operands Widen(const HostMatrix& host, NumericsMode mode);
  void Pack(const Operands& operands);
  size_t ValueIndex(int row, int col) const;

  bool is_bf16_ = true;
  int scale_group_ = 0;
  std::vector<uint16_t> bf16_;
  std::vector<float> f32_;
  std::vector<float> scales_;
};

// The one Matrix type of this back end.
inline const PreparedMatrix& Prepared(const Matrix& matrix) {
  return static_cast<const PreparedMatrix&>(matrix);
}

}  // namespace baton::kernels::cpu
