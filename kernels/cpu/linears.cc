#include "absl/strings/str_format.h"

#include "kernels/cpu/cpu_ops_impl.h"

namespace baton::kernels::cpu {

void CpuOps::NormRow(const float* x, const float* weight, int n, float* y) const {
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  ScaleByNorm(x, InverseRms(dot_, x, n, epsilon), weight, n, y);
  Round(y, n);
}

void CpuOps::QuantiseInto(const float* x, int width, int row, QuantisedRows& out) const {
  const auto index = static_cast<size_t>(row), columns = static_cast<size_t>(width);
  QuantiseRow(x, width, mode_, &out.codes[index * columns],
              &out.scales[index * columns / kFp8Group]);
}

GemmArgs CpuOps::Fp8Linear(const Matrix* weight, const QuantisedRows& x, int rows, float* y) const {
  GemmArgs linear;
  linear.weight = weight;
  linear.x = x.codes.data();
  linear.x_scales = x.scales.data();
  linear.x_stride = weight->cols();
  linear.y = y;
  linear.y_stride = weight->rows();
  linear.num_rows = rows;
  linear.round_bf16 = is_official();
  return linear;
}

GemmArgs CpuOps::PlainLinear(const Matrix* weight, const std::vector<float>& x, int rows,
                             float* y) const {
  GemmArgs linear;
  linear.weight = weight;
  linear.x = x.data();
  linear.x_stride = weight->cols();
  linear.y = y;
  linear.y_stride = weight->rows();
  linear.num_rows = rows;
  return linear;
}

absl::Status CpuOps::RunLinears(std::span<const GemmArgs> linears) const {
  for (const GemmArgs& linear : linears) {
    const bool has_scales = Prepared(*linear.weight).scale_group() != 0;
    if (linear.x_scales == nullptr || has_scales || !is_official()) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "fp8 linear: weight [%d, %d] has no scales", linear.weight->rows(), linear.weight->cols()));
  }
  gemm_.Run(linears);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
