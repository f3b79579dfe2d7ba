#pragma once

#include <vector>

#include "absl/status/status.h"

#include "kernels/tensor.h"

// What every back end asks of a checkpoint's matrix before it takes it.
namespace baton::kernels {

inline constexpr int kMatrixBlock = 128;  // of columns, and of fp8 scales

absl::Status CheckHost(const HostMatrix& host);

// Scales of an fp8 matrix by block of 128 x 128; that of a block of zeros, which may be anything,
// is 1.
std::vector<float> Fp8ScalesOf(const HostMatrix& host);

}  // namespace baton::kernels
