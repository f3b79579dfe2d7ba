#include "kernels/cuda/copy.h"

namespace baton::kernels::cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kParts = 16;  // blocks of a job: page tables are megabytes
constexpr uint32_t kStep = kParts * kThreads;

// Grid: (jobs, parts).
__global__ void CopyKernel(const CopyJob* jobs) {
  const CopyJob job = jobs[blockIdx.x];
  const uint32_t first = blockIdx.y * kThreads + threadIdx.x;
  const auto address = reinterpret_cast<uint64_t>(job.to) | reinterpret_cast<uint64_t>(job.from);
  if ((address | job.bytes) % 16 == 0) {
    const uint4 fill = make_uint4(job.fill, job.fill, job.fill, job.fill);
#pragma unroll 4
    for (uint32_t i = first; i < job.bytes / 16; i += kStep) {
      reinterpret_cast<uint4*>(job.to)[i] =
          job.from == nullptr ? fill : reinterpret_cast<const uint4*>(job.from)[i];
    }
    return;
  }
  for (uint32_t i = first; i < job.bytes; i += kStep) {
    job.to[i] = job.from == nullptr ? static_cast<uint8_t>(job.fill >> (8 * (i % 4))) : job.from[i];
  }
}

}  // namespace

cudaError_t RunCopies(const CopyJob* jobs, int num_jobs, cudaStream_t stream) {
  if (num_jobs == 0) return cudaSuccess;
  CopyKernel<<<dim3(static_cast<unsigned>(num_jobs), kParts), kThreads, 0, stream>>>(jobs);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
