#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>

// Launches that may start while the stream's kernels before still end, which hides the time that a
// launch takes (PTX ISA, "griddepcontrol"; CUDA, "programmatic dependent launch"). A kernel
// launched so has every thread call WaitForEarlier before it reads or writes what other kernels
// write or read.
namespace baton::kernels::cuda {

// Lets the next kernel of the stream, if it was launched so, start to prepare as soon as all blocks
// of this one came here.
__device__ __forceinline__ void LetNextStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// What earlier kernels wrote is there from here on. Every thread comes here, lest a kernel ends
// before those that it follows.
__device__ __forceinline__ void WaitForEarlier() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// The start of a kernel that has nothing to prepare.
__device__ __forceinline__ void StartAfterEarlier() {
  LetNextStart();
  WaitForEarlier();
}

class EarlyLaunch {
 public:
  EarlyLaunch(dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream, int cluster = 1) {
    config_.gridDim = grid;
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    attributes_[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes_[0].val.programmaticStreamSerializationAllowed = 1;
    attributes_[1].id = cudaLaunchAttributeClusterDimension;
    attributes_[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config_.numAttrs = cluster > 1 ? 2 : 1;
  }
  EarlyLaunch(const EarlyLaunch&) = delete;
  EarlyLaunch& operator=(const EarlyLaunch&) = delete;

  template <typename... Parameters>
  cudaError_t Run(void (*kernel)(Parameters...), const Parameters&... arguments) {
    return cudaLaunchKernelEx(&config_, kernel, arguments...);
  }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

}  // namespace baton::kernels::cuda
