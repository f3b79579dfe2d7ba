#pragma once

#include <cstdint>

#include "kernels/cuda/copy.h"  // CUDA's own types

namespace baton::bench {

// One rank's part in one all-reduce: it sends `own` to the peer, waits for the peer's rows, and
// adds both.
struct AllReduceArgs {
  int rank = 0;                     // 0 or 1
  int index = 0;                    // of this all-reduce in its graph
  int count = 0;                    // words of four bf16
  int blocks = 0;                   // of the grid, the same on both ranks
  const uint32_t* epoch = nullptr;  // all-reduces of all graphs before, the same on both ranks
  const uint2* own = nullptr;       // [count]
  uint2* sum = nullptr;             // [count]
  // Written by the sender's kernel, in the receiver's memory. Two halves, used in turn: the peer
  // can be one all-reduce ahead, not two.
  uint4* to_packets = nullptr;  // [2, count], of the peer
  const uint4* packets = nullptr;
  uint2* to_words = nullptr;  // [2, count], of the peer
  const uint2* words = nullptr;
  uint32_t* to_flags = nullptr;  // [blocks], of the peer
  const uint32_t* flags = nullptr;
  uint32_t* has_failed = nullptr;  // set where the peer does not come
};
inline constexpr int kAllReduceThreads = 256;

cudaError_t RunPacketReduce(const AllReduceArgs& args, cudaStream_t stream);
cudaError_t RunBlockReduce(const AllReduceArgs& args, cudaStream_t stream);
// epoch += count.
cudaError_t RunAdvanceEpoch(uint32_t* epoch, uint32_t count, cudaStream_t stream);

}  // namespace baton::bench
