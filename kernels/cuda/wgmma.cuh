#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma_lists.cuh"

// Hopper's warpgroup matrix instructions, as the linears use them: D [64, N] fp32 and A
// [64, 16] bf16 in registers, B K-major in shared memory with the 128-byte swizzle. PTX ISA,
// "wgmma.mma_async".
namespace baton::kernels::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Tile of rows of 128 bytes, rows 0, 8, 16, .. at multiples of 1,024 bytes: stride 1,024 between
// groups of 8 rows, swizzle mode 1 = 128 bytes. `address` may point into the first row, at K.
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t address) {
  constexpr uint64_t kStride = 1024 >> 4;
  return (static_cast<uint64_t>(address & 0x3ffffu) >> 4) | (uint64_t{1} << 16) | (kStride << 32) |
         (uint64_t{1} << 62);
}

// Byte in such a tile of 16-byte piece `chunk` of row `row`.
__device__ __forceinline__ int Swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the last kLeft committed groups are done.
template <int kLeft = 0>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from reading results before the wait.
template <int kCount>
__device__ __forceinline__ void HoldResults(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// What ordinary stores and cp.async wrote to shared memory becomes visible to wgmma.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool is_valid) {
  const int bytes = is_valid ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
// Arrives at a barrier in shared memory once this thread's copies so far have. Who waits for it
// needs FenceAsyncProxy before wgmma reads what came. The one who copies must not fence: that would
// wait for copies under way.
__device__ __forceinline__ void ArriveBehindCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// All of this thread's copies have arrived.
__device__ __forceinline__ void CopyAsyncWaitAll() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// d += A B^T, or d = A B^T where `adds` is 0. A thread's part of A: rows lane / 4 and + 8 of its
// warp's 16, each columns 2 (lane % 4) and + 1; then the same rows, columns + 8.
template <int kN>
__device__ __forceinline__ void Wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                      int adds);

template <>
__device__ __forceinline__ void Wgmma<8>(float (&d)[4], const uint32_t (&a)[4], uint64_t b,
                                         int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" BATON_NUMBERS_4
      "}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}\n"
      : BATON_SUMS_4(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}
template <>
__device__ __forceinline__ void Wgmma<32>(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                                          int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" BATON_NUMBERS_16
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
      : BATON_SUMS_16(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}
template <>
__device__ __forceinline__ void Wgmma<64>(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                          int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" BATON_NUMBERS_32
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
      : BATON_SUMS_32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}
template <>
__device__ __forceinline__ void Wgmma<128>(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                           int adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BATON_NUMBERS_64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
      : BATON_SUMS_64(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

}  // namespace baton::kernels::cuda
