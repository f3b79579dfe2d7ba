#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/panel.h"
#include "kernels/cpu/prepared_matrix.h"
#include "kernels/device.h"

namespace baton::kernels::cpu {

// y = round(x W^T). x: `num_rows` rows of weight->cols() fp32 values; y: fp32.
struct GemmArgs {
  const Matrix* weight = nullptr;
  const float* x = nullptr;  // [.., x_stride]
  int64_t x_stride = 0;
  const float* x_scales =
      nullptr;  // [.., x_stride / 128] of fp8 codes; null: the values themselves, unquantised
  const int32_t* x_rows = nullptr;  // [num_rows] which row of x; null: 0, 1, 2, ..
  float* y = nullptr;               // [num_rows, y_stride]; must not overlap x
  int64_t y_stride = 0;
  int num_rows = 0;
  bool round_bf16 = false;
  bool promotes_per_32 =
      false;             // R1's form for experts with a wide block; else by the weight's own groups
  int first_output = 0;  // a range of W's rows; y column o - first_output
  int num_outputs = -1;  // -1: all from first_output
};

// Runs linears. A weight without scales, or an input without, is summed over all of K; both with:
// R1's promotion. Each row's bits depend on that row and the weight alone. Immutable; `parallel`
// must outlive it.
class GemmRunner {
 public:
  GemmRunner(const ParallelFor& parallel, Isa isa);

  // The linears share one parallel section and must not depend on one another.
  void Run(std::span<const GemmArgs> linears) const;
  // On the calling thread: for callers that are a part of a section themselves.
  void RunHere(const GemmArgs& linear) const;

  Isa isa() const { return isa_; }

 private:
  struct Piece {
    int first_row, last_row, first_panel, last_panel;
  };
  static int NumPieces(const GemmArgs& linear);
  static Piece PieceOf(const GemmArgs& linear, int index);
  void RunPiece(const GemmArgs& linear, const Piece& piece) const;

  const ParallelFor& parallel_;
  const Isa isa_;
  const PanelFunction panel_;
};

}  // namespace baton::kernels::cpu
