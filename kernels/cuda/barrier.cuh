#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

// Barriers in shared memory (mbarrier), barriers of named groups of warps, and clusters. PTX ISA,
// "mbarrier", "bar", "barrier.cluster".
namespace baton::kernels::cuda {

__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Returns once the barrier's phase of that parity has ended.
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra WAIT;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Whether it has.
__device__ __forceinline__ bool BarrierHasEnded(uint32_t barrier, uint32_t parity) {
  uint32_t has_ended;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(has_ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return has_ended != 0;
}
// `threads` threads meet at barrier `id` (0 is __syncthreads).
__device__ __forceinline__ void MeetAt(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Lets others pass MeetAt without waiting for them.
__device__ __forceinline__ void ArriveAt(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// All threads of a cluster, by whole warps.
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// Tells nobody of what this thread wrote.
__device__ __forceinline__ void ClusterArriveRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterSync() {
  ClusterArrive();
  ClusterWait();
}
// Makes barriers known to copies once the block's threads have met, and to the cluster's other
// blocks once it has.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives at the same barrier of block `rank` of the cluster, by one who has only read: without
// telling the cluster of what this thread wrote, which would wait until it is there. Release at a
// block's scope: less than the model formally asks between blocks, and enough, as the reads are
// done when the arrival leaves.
__device__ __forceinline__ void BarrierFreeAt(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// A value to the same place of block `rank` of the cluster; four bytes come for its barrier.
__device__ __forceinline__ void SendTo(int rank, uint32_t place, float value, uint32_t barrier) {
  asm volatile(
      "{\n.reg .b32 there, signal;\n"
      "mapa.shared::cluster.u32 there, %0, %2;\n"
      "mapa.shared::cluster.u32 signal, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %3, "
      "[signal];\n}\n" ::"r"(place),
      "r"(barrier), "r"(rank), "r"(__float_as_uint(value))
      : "memory");
}
// The same place in the shared memory of block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* AtRank(T* own, int rank) {
  return static_cast<T*>(__cluster_map_shared_rank(own, static_cast<unsigned>(rank)));
}
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// What is at `address` of this block's shared memory in that of block `rank` of the cluster.
__device__ __forceinline__ uint32_t AddressAtRank(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// Stores into another block of the cluster; its barrier counts the 16 bytes once they are there.
__device__ __forceinline__ void StoreAsync16(uint32_t to, float a, float b, float c, float d,
                                             uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}
// Four fp32 values at `address` of the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float4 LoadFourFromRank(uint32_t address, uint32_t rank) {
  uint32_t there;
  float4 value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(there)
               : "memory");
  return value;
}

// Registers move from warpgroups that copy to those that multiply.
template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace baton::kernels::cuda
