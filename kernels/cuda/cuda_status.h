#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace baton::kernels::cuda {

// OK, or kInternal (kResourceExhausted out of memory) naming what failed and CUDA's reason.
inline absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrFormat("CUDA: %s: %s (%s)", what, cudaGetErrorString(error),
                                              cudaGetErrorName(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

}  // namespace baton::kernels::cuda
