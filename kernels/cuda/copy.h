#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

namespace baton::kernels::cuda {

// Many small moves inside device memory in one launch: tails, kept streams, cleared entries. The
// jobs of one launch must not depend on one another.
struct CopyJob {
  const uint8_t* from = nullptr;  // null: `to` is filled with the word
  uint8_t* to = nullptr;
  uint32_t bytes = 0;
  uint32_t fill = 0;  // bytes of a fill are a multiple of 4 unless it is 0
};
cudaError_t RunCopies(const CopyJob* jobs, int num_jobs, cudaStream_t stream);

}  // namespace baton::kernels::cuda
