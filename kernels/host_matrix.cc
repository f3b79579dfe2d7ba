#include "kernels/host_matrix.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_format.h"

namespace baton::kernels {
namespace {

bool IsZeroBlock(const HostMatrix& host, int first_row, int first_col) {
  const int end = std::min(first_row + kMatrixBlock, host.rows);
  for (int row = first_row; row < end; ++row) {
    const std::byte* codes =
        host.values + static_cast<size_t>(row) * static_cast<size_t>(host.cols) + first_col;
    const auto is_zero = [](std::byte code) { return (code & std::byte{0x7f}) == std::byte{0}; };
    if (!std::all_of(codes, codes + kMatrixBlock, is_zero)) return false;
  }
  return true;
}

}  // namespace

absl::Status CheckHost(const HostMatrix& host) {
  if (host.rows <= 0 || host.cols <= 0 || host.cols % kMatrixBlock != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "matrix of %d x %d: columns must be a positive multiple of 128", host.rows, host.cols));
  }
  if (host.values == nullptr) return absl::InvalidArgumentError("matrix without values");
  const bool needs_scales =
      host.format == WeightFormat::kFp8Block128 || host.format == WeightFormat::kFp4Group32;
  if (needs_scales && host.scales == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("quantised matrix of %d x %d without scales", host.rows, host.cols));
  }
  return absl::OkStatus();
}

std::vector<float> Fp8ScalesOf(const HostMatrix& host) {
  std::vector<float> scales;
  for (int row = 0; row < host.rows; row += kMatrixBlock) {
    for (int col = 0; col < host.cols; col += kMatrixBlock) {
      scales.push_back(IsZeroBlock(host, row, col) ? 1.0f : host.scales[scales.size()]);
    }
  }
  return scales;
}

}  // namespace baton::kernels
