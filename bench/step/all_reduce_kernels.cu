#include "bench/step/all_reduce_kernels.h"

// One-shot all-reduce of two ranks over peer memory: each writes its rows into the other's inbox
// and adds what it finds in its own, rank 0's first. Two ways to know that the rows are there.
// Packets: 16 bytes hold 8 of rows and a flag beside each half, since 8 bytes arrive at once.
// Blocks: a block's threads store plainly, then one flag follows behind a fence.
namespace baton::bench {
namespace {

constexpr int kMaxPolls = 1 << 24;  // some seconds: a peer that never comes ends the wait

__device__ uint32_t Sum2(uint32_t a, uint32_t b) {
  const float low = __uint_as_float(a << 16) + __uint_as_float(b << 16);
  const float high = __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u);
  const auto round = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  };
  return round(low) | (round(high) << 16);
}

__device__ uint2 Sum(int rank, uint2 own, uint2 other) {
  const uint2 first = rank == 0 ? own : other, second = rank == 0 ? other : own;
  return make_uint2(Sum2(first.x, second.x), Sum2(first.y, second.y));
}

__device__ void StorePacket(uint4* to, uint2 data, uint32_t flag) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(data.x),
               "r"(flag), "r"(data.y)
               : "memory");
}

__device__ uint2 LoadPacket(const uint4* from, uint32_t flag, uint32_t* has_failed) {
  uint4 p;
  for (int polls = 0; polls < kMaxPolls; ++polls) {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.x), "=r"(p.y), "=r"(p.z), "=r"(p.w)
                 : "l"(from)
                 : "memory");
    if (p.y == flag && p.w == flag) return make_uint2(p.x, p.z);
  }
  *has_failed = 1;
  return make_uint2(0, 0);
}

__global__ void __launch_bounds__(kAllReduceThreads) PacketReduce(AllReduceArgs a) {
  const uint32_t flag = *a.epoch + static_cast<uint32_t>(a.index) + 1;
  const int half = (flag & 1) * a.count, step = gridDim.x * blockDim.x;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = first; i < a.count; i += step) StorePacket(a.to_packets + half + i, a.own[i], flag);
  for (int i = first; i < a.count; i += step) {
    a.sum[i] = Sum(a.rank, a.own[i], LoadPacket(a.packets + half + i, flag, a.has_failed));
  }
}

__global__ void __launch_bounds__(kAllReduceThreads) BlockReduce(AllReduceArgs a) {
  const uint32_t flag = *a.epoch + static_cast<uint32_t>(a.index) + 1;
  const int half = (flag & 1) * a.count, step = gridDim.x * blockDim.x;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = first; i < a.count; i += step) a.to_words[half + i] = a.own[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(a.to_flags + blockIdx.x), "r"(flag)
                 : "memory");
    uint32_t seen = 0;
    int polls = 0;
    do {
      asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
                   : "=r"(seen)
                   : "l"(a.flags + blockIdx.x)
                   : "memory");
    } while (static_cast<int32_t>(seen - flag) < 0 && ++polls < kMaxPolls);
    if (polls == kMaxPolls) *a.has_failed = 1;
  }
  __syncthreads();
  for (int i = first; i < a.count; i += step) {
    a.sum[i] = Sum(a.rank, a.own[i], __ldcv(a.words + half + i));
  }
}

__global__ void AdvanceEpoch(uint32_t* epoch, uint32_t count) { *epoch += count; }

}  // namespace

cudaError_t RunPacketReduce(const AllReduceArgs& args, cudaStream_t stream) {
  PacketReduce<<<args.blocks, kAllReduceThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunBlockReduce(const AllReduceArgs& args, cudaStream_t stream) {
  BlockReduce<<<args.blocks, kAllReduceThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunAdvanceEpoch(uint32_t* epoch, uint32_t count, cudaStream_t stream) {
  AdvanceEpoch<<<1, 1, 0, stream>>>(epoch, count);
  return cudaPeekAtLastError();
}

}  // namespace baton::bench
