#pragma once

#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/widen.cuh"

// The multiplying side of the kernels behind linear.h, and how the two sides
// meet.
namespace baton::kernels::cuda {

// A stage and how often the ring has been around.
template <typename Ring>
struct RingCursor {
  uint32_t stage = 0, round = 0;

  __device__ void Advance() {
    if (++stage < Ring::kStages) return;
    stage = 0;
    ++round;
  }
};

__device__ __forceinline__ void StoreMatricesTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

// Sums of one thread of a warpgroup, by block of 64 outputs: rows lane / 4 and + 8 of its warp's 16
// outputs, columns 8 j + 2 (lane % 4) and + 1.
template <LinearKind kKind, typename Ring>
class TileSums {
 public:
  static constexpr int kN = Ring::kRows;
  static constexpr int kSums = kN / 2;
  static constexpr int kBlockK = Ring::kBlockK;

  __device__ TileSums(const TileJob& job, uint8_t* shared)
      : job_(job),
        base_(SharedAddress(shared)),
        first_output_(static_cast<int>(threadIdx.x / kGroupThreads) * Ring::kMBlocks * 64),
        scales_{{job, first_output_}, {job, first_output_ + (Ring::kMBlocks - 1) * 64}} {
#pragma unroll
    for (int m = 0; m < Ring::kMBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums_[m][i] = 0.0f;
        if constexpr (Ring::kIsSegmented) total_[i] = 0.0f;
      }
    }
  }

  // All blocks of the job; of `segments` each is a sum of its own.
  __device__ void Run(RingCursor<Ring>& cursor, int segments) {
    constexpr int kFactor = 128 / kBlockK;
    if constexpr (!Ring::kIsSegmented) {
      if (job_.first_block < job_.end_block) {
        RunSegment(cursor, job_.first_block * kFactor, job_.end_block * kFactor);
      }
    } else {
      const int per_segment = (job_.weight.cols / 128 + segments - 1) / segments;
      for (int first = job_.first_block; first < job_.end_block; first += per_segment) {
        const int end = min(first + per_segment, job_.end_block);
        RunSegment(cursor, first * kFactor, end * kFactor);
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          total_[i] = segments == 1 ? sums_[0][i] : total_[i] + sums_[0][i];
        }
      }
    }
  }

  // out [kN, 64] (FloatOffset) = the totals of block kBlock.
  template <int kBlock>
  __device__ void Write(float* out) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int output = static_cast<int>(threadIdx.x % kGroupThreads / 32) * 16 + lane / 4;
    float* even = out + FloatOffset(lane % 4 * 2, output);
    float* far = out + FloatOffset(lane % 4 * 2, output + 8);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      even[8 * j * 64] = Total<kBlock>(4 * j);
      even[(8 * j + 1) * 64] = Total<kBlock>(4 * j + 1);
      far[8 * j * 64] = Total<kBlock>(4 * j + 2);
      far[(8 * j + 1) * 64] = Total<kBlock>(4 * j + 3);
    }
  }

  // store(row of x, output, its total) for all of block kBlock.
  template <int kBlock, typename Store>
  __device__ void ForEach(const Store& store) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int output = static_cast<int>(threadIdx.x % kGroupThreads / 32) * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      store(i / 4 * 8 + lane % 4 * 2 + i % 2, output + i / 2 % 2 * 8, Total<kBlock>(i));
    }
  }

  // The same as bf16, [kN, 64], 16-byte chunks swizzled.
  template <int kBlock>
  __device__ void WriteBf16(uint32_t out) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int chunk = static_cast<int>(threadIdx.x % kGroupThreads / 32) * 2 + lane / 8 % 2;
    const int column = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = PackBf16(Total<kBlock>(4 * j + 2 * i), Total<kBlock>(4 * j + 2 * i + 1));
      }
      StoreMatricesTransposed(out + Swizzled(8 * j + column, chunk), pairs);
    }
  }

 private:
  static_assert(!Ring::kIsSegmented || Ring::kMBlocks == 1);

  template <int kBlock>
  __device__ float Total(int i) const {
    if constexpr (Ring::kIsSegmented) {
      return total_[i];
    } else {
      return sums_[kBlock][i];
    }
  }

  // One sum over blocks first .. end - 1 of kBlockK columns.
  __device__ __forceinline__ void RunSegment(RingCursor<Ring>& cursor, int first, int end) {
    RingCursor<Ring> behind = cursor;
#pragma unroll
    for (int m = 0; m < Ring::kMBlocks; ++m) scales_[m].Fetch(first);
    RunStage<true>(cursor, behind, min(first + 1, end - 1));
#pragma unroll 1
    for (int block = first + 1; block < end; ++block) {
      RunStage<false>(cursor, behind, min(block + 1, end - 1));
    }
    WgmmaWait();
#pragma unroll
    for (int m = 0; m < Ring::kMBlocks; ++m) HoldResults(sums_[m]);
    Release(behind);
  }

  // The first stage of a segment has a copy of its own: a branch between instructions makes ptxas
  // wait for each (C7513).
  template <bool kIsFirst>
  __device__ __forceinline__ void RunStage(RingCursor<Ring>& cursor, RingCursor<Ring>& behind,
                                           int next) {
    BarrierWait(Ring::Full(base_, cursor.stage), cursor.round & 1);
    if constexpr (!Ring::kHasTensorX) FenceAsyncProxy();
    RunUnit<0>(cursor, kIsFirst, next);
    WgmmaWait<1>();  // the stage before is done
    if constexpr (!kIsFirst) Release(behind);
    RunUnit<1>(cursor, kIsFirst, next);
    cursor.Advance();
  }

  // Unit kUnit of a stage: operands, then instructions, while those of the unit before still run.
  // `next`: the block whose scales come next.
  template <int kUnit>
  __device__ __forceinline__ void RunUnit(const RingCursor<Ring>& cursor, bool is_first, int next) {
    constexpr bool kHasTwo = Ring::kMBlocks == 2;
    constexpr int kBlock = kHasTwo ? kUnit : 0, kPart = kHasTwo ? 0 : kUnit;
    WgmmaWait<1>();  // the unit two before is done
    const uint32_t stage = base_ + cursor.stage * Ring::kStageBytes;
    LoadWeights<kKind, kBlockK, kPart>(
        stage + (first_output_ + 64 * kBlock) * Ring::WeightRowBytes(kKind), scales_[kBlock],
        operands_[kUnit]);
    if constexpr (kHasTwo || kUnit == 1) scales_[kBlock].Fetch(next);
    const uint32_t x = stage + Ring::kWeightBytes + kPart * Ring::kPanelBytes;
    const int adds = is_first && (kHasTwo || kUnit == 0) ? 0 : 1;
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kUnitSteps; ++step) {
      Wgmma<kN>(sums_[kBlock], operands_[kUnit][step], TileDescriptor(x + step * 2 * kStepK),
                step == 0 ? adds : 1);
    }
    WgmmaCommit();
  }

  __device__ void Release(RingCursor<Ring>& behind) const {
    BarrierArrive(Ring::Empty(base_, behind.stage));
    behind.Advance();
  }

  const TileJob& job_;
  const uint32_t base_;
  const int first_output_;  // of this warpgroup, in the tile
  RowScales<kKind, kBlockK> scales_[2];
  uint32_t operands_[2][kUnitSteps][4];
  float sums_[Ring::kMBlocks][kSums];
  float total_[Ring::kIsSegmented ? kSums : 1];
};

// Of a kernel whose x comes by tensor copies: starts to load the weights of the first stages of a
// first job, which need no earlier kernel. How many stages.
template <LinearKind kKind, typename Ring>
__device__ __forceinline__ int CopyFirstWeights(const LinearArgs& args, const TileJob& job,
                                                uint8_t* shared) {
  constexpr int kFactor = 128 / Ring::kBlockK;
  const StageLoader<kKind, Ring> loader(args, job, shared);
  const int stages = min(Ring::kStages, (job.end_block - job.first_block) * kFactor);
  for (int i = 0; i < stages; ++i) {
    loader.Load(job.first_block * kFactor + i, i);
    ArriveBehindCopies(Ring::Full(SharedAddress(shared), static_cast<uint32_t>(i)));
  }
  return stages;
}

// Loads of one job. `num_early`: stages whose weights are on their way.
template <LinearKind kKind, typename Ring>
__device__ __forceinline__ void CopyJob(const LinearArgs& args, const TileJob& job, uint8_t* shared,
                                        RingCursor<Ring>& loading, int num_early) {
  using Loader = StageLoader<kKind, Ring>;
  constexpr int kBarrier = Ring::kConsumers + 1;
  constexpr int kFactor = 128 / Ring::kBlockK;
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
  if constexpr (!Ring::kHasTensorX) {
    auto* sources = reinterpret_cast<int32_t*>(shared + Ring::kSources);
    MeetAt(kBarrier, kGroupThreads);  // the job before is done with the sources
    if (thread < Ring::kRows) {
      const int index = job.rows.first + thread;
      const bool is_live = thread < job.rows.count;
      sources[thread] = !is_live ? -1 : (args.x_rows == nullptr ? index : args.x_rows[index]);
    }
    MeetAt(kBarrier, kGroupThreads);
  }
  const Loader loader(args, job, shared);
  const int first = job.first_block * kFactor;
  const int blocks = (job.end_block - job.first_block) * kFactor;
  for (int i = 0; i < blocks; ++i) {
    const uint32_t full = Ring::Full(base, loading.stage);
    if (loading.round > 0) {
      BarrierWait(Ring::Empty(base, loading.stage), (loading.round - 1) & 1);
    }
    if constexpr (Ring::kHasTensorX) {
      if (thread == 0) loader.LoadTensorX(first + i, static_cast<int>(loading.stage), full);
    }
    if (i >= num_early) {
      loader.Load(first + i, static_cast<int>(loading.stage));
      ArriveBehindCopies(full);
    }
    loading.Advance();
  }
}

// Outputs of the warpgroup's block kBlock.
template <int kBlock, LinearKind kKind, typename Ring>
__device__ __forceinline__ void WriteBlock(const LinearArgs& args, const TileJob& job,
                                           uint8_t* shared, const TileSums<kKind, Ring>& sums) {
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const int first = (group * Ring::kMBlocks + kBlock) * 64;
  uint8_t* out = OwnOutputs<Ring, false>(shared, kBlock);
  if constexpr (!Ring::kHasWideTiles) {
    MeetAt(group + 1, kGroupThreads);  // the outputs before are read
    sums.template Write<kBlock>(reinterpret_cast<float*>(out));
    MeetAt(group + 1, kGroupThreads);
    StoreOwn<Ring>(args, job, shared, kBlock);
    return;
  }
  if constexpr (kKind != LinearKind::kBf16) {
    if (HasWideOutputs(args, job)) {
      MeetAt(group + 1, kGroupThreads);
      sums.template WriteBf16<kBlock>(SharedAddress(out));
      MeetAt(group + 1, kGroupThreads);
      StoreWide<Ring>(args, job, out, first);
      return;
    }
  }
  const int width = job.end_output - job.first_output - first;
  sums.template ForEach<kBlock>([&](int row, int output, float total) {
    if (row >= job.rows.count || output >= width) return;
    const int64_t at = (job.rows.first + row) * args.y_stride + job.first_output + first + output;
    StoreOutput(args, job.y, at, total);
  });
}

// Products and outputs of one job. In a cluster the outputs only go to shared memory.
template <LinearKind kKind, typename Ring, bool kIsClustered>
__device__ __forceinline__ void MultiplyJob(const LinearArgs& args, const TileJob& job,
                                            uint8_t* shared, RingCursor<Ring>& cursor) {
  TileSums<kKind, Ring> sums(job, shared);
  sums.Run(cursor, args.k_segments);
  if constexpr (kIsClustered) {
    constexpr int kAllConsumers = Ring::kConsumers + 2;
    MeetAt(kAllConsumers, Ring::kConsumers * kGroupThreads);  // outputs lie where stages were
    const auto place = [shared](int block) {
      return reinterpret_cast<float*>(OwnOutputs<Ring, true>(shared, block));
    };
    sums.template Write<0>(place(0));
    if constexpr (Ring::kMBlocks == 2) sums.template Write<1>(place(1));
  } else {
    WriteBlock<0>(args, job, shared, sums);
    if constexpr (Ring::kMBlocks == 2) WriteBlock<1>(args, job, shared, sums);
  }
}

template <typename Ring>
__device__ __forceinline__ void PrepareRing(uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  if (threadIdx.x == 0) {
    if ((base & 1023u) != 0) __trap();  // the swizzle counts on it
    for (uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      BarrierInit(Ring::Full(base, stage), kGroupThreads + (Ring::kHasTensorX ? 1 : 0));
      BarrierInit(Ring::Empty(base, stage), Ring::kConsumers * kGroupThreads);
    }
    FenceBarrierInit();
  }
  __syncthreads();
}

// Runs what `jobs` lists for this block of threads: jobs.ForEach(visit) calls visit(kind, args,
// job) for each, in the same order on both sides, jobs.First(visit) for the first, without its
// rows, where it is sure. kIsClustered: one job at most, its outputs behind all of the cluster's.
template <typename Ring, bool kIsClustered, typename Jobs>
__device__ __forceinline__ void RunJobs(const Jobs& jobs) {
  extern __shared__ __align__(1024) uint8_t shared[];
  LetNextStart();
  PrepareRing<Ring>(shared);
  RingCursor<Ring> cursor;
  if (static_cast<int>(threadIdx.x) / kGroupThreads == Ring::kConsumers) {
    ShrinkRegisters<Ring::kCopyRegisters>();
    int num_early = 0;
    if constexpr (Ring::kHasTensorX) {
      jobs.First([&](auto kind, const LinearArgs& args, const TileJob& job) {
        num_early = CopyFirstWeights<kind.value, Ring>(args, job, shared);
      });
    }
    WaitForEarlier();
    jobs.ForEach([&](auto kind, const LinearArgs& args, const TileJob& job) {
      CopyJob<kind.value, Ring>(args, job, shared, cursor, num_early);
      num_early = 0;
    });
    CopyAsyncWaitAll();  // no thread leaves before its copies
    if constexpr (kIsClustered) {
      ClusterSync();
      ClusterSync();
    }
  } else {
    GrowRegisters<Ring::kMultiplyRegisters>();
    WaitForEarlier();
    jobs.ForEach([&](auto kind, const LinearArgs& args, const TileJob& job) {
      MultiplyJob<kind.value, Ring, kIsClustered>(args, job, shared, cursor);
    });
    if constexpr (kIsClustered) {
      ClusterSync();
      jobs.ForEach([&](auto, const LinearArgs& args, const TileJob& job) {
        for (int block = 0; block < Ring::kMBlocks; ++block) {
          StoreSum<Ring>(args, job, shared, block);
        }
      });
      ClusterSync();  // the others may still read this block's
    }
  }
}

// Calls visit(kind) with the kind of a weight that a ring takes.
template <typename Ring, typename Visit>
__device__ __forceinline__ void VisitKind(ValueFormat format, const Visit& visit) {
  if constexpr (Ring::kTakesBf16) {
    if (format == ValueFormat::kBf16) {
      visit(std::integral_constant<LinearKind, LinearKind::kBf16>{});
      return;
    }
  }
  if constexpr (Ring::kTakesFp4) {
    if (format == ValueFormat::kFp4) {
      visit(std::integral_constant<LinearKind, LinearKind::kFp4>{});
      return;
    }
  }
  if constexpr (Ring::kTakesCodes) visit(std::integral_constant<LinearKind, LinearKind::kFp8>{});
}

}  // namespace baton::kernels::cuda
