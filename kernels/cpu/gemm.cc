#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <array>

#include "common/check.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kPieceRows = 64;
constexpr int kPiecePanels = 8;  // 128 outputs
// Multiply-adds below which a section's hand-over to other threads costs more than it gains.
constexpr int64_t kSmallSection = 1 << 18;

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

int NumOutputs(const GemmArgs& linear) {
  return linear.num_outputs < 0 ? linear.weight->rows() - linear.first_output : linear.num_outputs;
}

int FirstPanel(const GemmArgs& linear) { return linear.first_output / kPanelOutputs; }

int NumPanels(const GemmArgs& linear) {
  return CeilDiv(linear.first_output + NumOutputs(linear), kPanelOutputs) - FirstPanel(linear);
}

int64_t NumMultiplies(const GemmArgs& linear) {
  return int64_t{linear.num_rows} * NumOutputs(linear) * linear.weight->cols();
}

void CheckArgs(const GemmArgs& linear) {
  CHECK(linear.weight != nullptr && linear.x != nullptr && linear.y != nullptr);
  CHECK(linear.x_stride >= linear.weight->cols() && linear.num_rows >= 0);
  CHECK(linear.first_output >= 0);
  CHECK(linear.first_output + NumOutputs(linear) <= linear.weight->rows());
}

PanelArgs PanelArgsFor(const GemmArgs& linear) {
  const PreparedMatrix& weight = Prepared(*linear.weight);
  PanelArgs args;
  args.cols = weight.cols();
  args.scale_group = weight.scale_group();
  args.promote_group = linear.promotes_per_32 ? 32 : weight.scale_group();
  args.round_bf16 = linear.round_bf16;
  return args;
}

// Copies the columns of a panel's result that the caller asked for.
void StoreOutputs(const GemmArgs& linear, int panel, int first_row, int num_rows, const float* y) {
  const int panel_begin = panel * kPanelOutputs;
  const int begin = std::max(panel_begin, linear.first_output);
  const int end = std::min(panel_begin + kPanelOutputs, linear.first_output + NumOutputs(linear));
  for (int row = 0; row < num_rows; ++row) {
    const float* source = y + row * kPanelOutputs + (begin - panel_begin);
    float* target = linear.y + (first_row + row) * linear.y_stride + (begin - linear.first_output);
    std::copy(source, source + (end - begin), target);
  }
}

}  // namespace

GemmRunner::GemmRunner(const ParallelFor& parallel, Isa isa)
    : parallel_(parallel), isa_(isa), panel_(PanelFunctionFor(isa)) {}

int GemmRunner::NumPieces(const GemmArgs& linear) {
  return CeilDiv(linear.num_rows, kPieceRows) * CeilDiv(NumPanels(linear), kPiecePanels);
}

GemmRunner::Piece GemmRunner::PieceOf(const GemmArgs& linear, int index) {
  const int columns = CeilDiv(NumPanels(linear), kPiecePanels);
  const int row = index / columns * kPieceRows, panel = index % columns * kPiecePanels;
  const int first = FirstPanel(linear);
  return {row, std::min(row + kPieceRows, linear.num_rows), first + panel,
          first + std::min(panel + kPiecePanels, NumPanels(linear))};
}

void GemmRunner::Run(std::span<const GemmArgs> linears) const {
  int num_pieces = 0;
  int64_t multiplies = 0;
  for (const GemmArgs& linear : linears) {
    CheckArgs(linear);
    num_pieces += NumPieces(linear);
    multiplies += NumMultiplies(linear);
  }
  if (!parallel_ || num_pieces < 2 || multiplies < kSmallSection) {
    for (const GemmArgs& linear : linears) RunHere(linear);
    return;
  }
  parallel_(num_pieces, [&](int part) {
    for (const GemmArgs& linear : linears) {
      const int here = NumPieces(linear);
      if (part < here) return RunPiece(linear, PieceOf(linear, part));
      part -= here;
    }
  });
}

void GemmRunner::RunHere(const GemmArgs& linear) const {
  CheckArgs(linear);
  for (int piece = 0; piece < NumPieces(linear); ++piece) RunPiece(linear, PieceOf(linear, piece));
}

void GemmRunner::RunPiece(const GemmArgs& linear, const Piece& piece) const {
  std::array<const float*, kPieceRows> x, x_scales;
  alignas(64) std::array<float, kPieceRows * kPanelOutputs> y;
  const int num_rows = piece.last_row - piece.first_row;
  for (int row = 0; row < num_rows; ++row) {
    const int index = piece.first_row + row;
    const int64_t source = linear.x_rows == nullptr ? index : linear.x_rows[index];
    x[static_cast<size_t>(row)] = linear.x + source * linear.x_stride;
    if (linear.x_scales == nullptr) continue;
    x_scales[static_cast<size_t>(row)] =
        linear.x_scales + source * (linear.x_stride / kWeightBlock);
  }
  const PreparedMatrix& weight = Prepared(*linear.weight);
  PanelArgs args = PanelArgsFor(linear);
  args.num_rows = num_rows;
  args.x = x.data();
  args.x_scales = linear.x_scales == nullptr ? nullptr : x_scales.data();
  args.y = y.data();
  for (int panel = piece.first_panel; panel < piece.last_panel; ++panel) {
    args.bf16 = weight.is_bf16() ? weight.Bf16Panel(panel) : nullptr;
    args.f32 = weight.is_bf16() ? nullptr : weight.F32Panel(panel);
    args.scales = weight.PanelScales(panel);
    panel_(args);
    StoreOutputs(linear, panel, piece.first_row, num_rows, y.data());
  }
}

PanelFunction PanelFunctionFor(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return MultiplyPanelScalar;
    case Isa::kAvx2:
      return MultiplyPanelAvx2;
    case Isa::kAvx512:
      return MultiplyPanelAvx512;
  }
  return MultiplyPanelScalar;
}

}  // namespace baton::kernels::cpu
