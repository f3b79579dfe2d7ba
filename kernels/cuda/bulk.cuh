#pragma once

#include <cstdint>

// Copies of whole stretches and boxes of memory to shared memory, PTX ISA "cp.async.bulk",
// "cp.async.bulk.tensor"; barriers: barrier.cuh.
namespace baton::kernels::cuda {

// Bytes, a multiple of 16, to come by CopyBulk before the barrier's phase ends: one arrival.
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CopyBulk(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Box of a tensor of two dimensions from `column`, `row`, as `map` (CUtensorMap, a kernel's
// parameter) describes it.
__device__ __forceinline__ void CopyTensor(uint32_t to, const void* map, int column, int row,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

}  // namespace baton::kernels::cuda
