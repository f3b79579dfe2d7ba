#pragma once

#include <cuda_runtime_api.h>

// Launches that begin while the one before in the stream still runs (programmatic dependent
// launch): until WaitForLaunchBefore they may read weights only.
namespace baton::kernels::cuda {

__device__ __forceinline__ void WaitForLaunchBefore() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// The next launch may begin once all blocks have said so.
__device__ __forceinline__ void AllowNextLaunch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// For a kernel whose threads all call WaitForLaunchBefore.
inline cudaLaunchAttribute EarlyLaunch() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

}  // namespace baton::kernels::cuda
