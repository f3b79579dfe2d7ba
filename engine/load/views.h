#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/load/checkpoint.h"
#include "kernels/tensor.h"

// Numbers of a checkpoint's tensors in the form Device takes them. Errors name the tensor. Pure,
// any thread.
namespace baton::engine {

// BF16 or F32 as floats.
absl::StatusOr<std::vector<float>> FloatsOf(const HostTensor& tensor);

// F8_E8M0 or F32 scales as floats. Refuses what is no power of two: E8M0 255 (NaN), F32 values with
// a mantissa, zero, negative.
absl::StatusOr<std::vector<float>> ScalesOf(const HostTensor& tensor);

// I64 or I32 as 0 <= index < limit.
absl::StatusOr<std::vector<int32_t>> IndicesOf(const HostTensor& tensor, int limit);

// A weight matrix with the scales it points to.
struct LoadedMatrix {
  kernels::HostMatrix matrix;  // values: a view into the checkpoint; scales: into `scales`
  std::vector<float> scales;
};

// The matrix `name` (with its ".weight", if it has one) and the scale beside it: F32, BF16, F8_E4M3
// in blocks or packed FP4.
absl::StatusOr<LoadedMatrix> MatrixOf(const Checkpoint& checkpoint, std::string_view name);

}  // namespace baton::engine
