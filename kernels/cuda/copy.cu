#include "kernels/cuda/copy.h"

namespace baton::kernels::cuda {
namespace {

constexpr unsigned kThreads = 128;

__global__ void CopyKernel(const CopyJob* jobs) {
  const CopyJob job = jobs[blockIdx.x];
  const auto address = reinterpret_cast<uint64_t>(job.to) | reinterpret_cast<uint64_t>(job.from);
  if ((address | job.bytes) % 16 == 0) {
    const uint4 fill = make_uint4(job.fill, job.fill, job.fill, job.fill);
    for (uint32_t i = threadIdx.x; i < job.bytes / 16; i += kThreads) {
      reinterpret_cast<uint4*>(job.to)[i] =
          job.from == nullptr ? fill : reinterpret_cast<const uint4*>(job.from)[i];
    }
    return;
  }
  for (uint32_t i = threadIdx.x; i < job.bytes; i += kThreads) {
    job.to[i] = job.from == nullptr ? static_cast<uint8_t>(job.fill >> (8 * (i % 4))) : job.from[i];
  }
}

}  // namespace

cudaError_t RunCopies(const CopyJob* jobs, int num_jobs, cudaStream_t stream) {
  if (num_jobs == 0) return cudaSuccess;
  CopyKernel<<<static_cast<unsigned>(num_jobs), kThreads, 0, stream>>>(jobs);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
