#pragma once

#include <type_traits>

#include "kernels/cuda/linear.cuh"

// The multiplying side of the kernels behind linear.h, and how the two sides
// meet.
namespace baton::kernels::cuda {

// A stage and how often the ring has been around.
template <typename Ring>
struct Cursor {
  uint32_t stage = 0, round = 0;

  __device__ void Advance() {
    if (++stage < Ring::kStages) return;
    stage = 0;
    ++round;
  }
};

// Sums of one thread of a warpgroup: rows lane / 4 and + 8 of its warp's 16
// outputs, columns 8 j + 2 (lane % 4) and + 1.
template <LinearKind kKind, typename Ring, bool kPer32>
class TileSums {
 public:
  static constexpr int kN = Ring::kRows;
  static constexpr int kSums = kN / 2;

  __device__ TileSums(const TileJob& job, uint8_t* shared)
      : job_(job), shared_(shared), group_(static_cast<int>(threadIdx.x / kGroupThreads)) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums_[i] = total_[i] = 0.0f;
  }

  // All blocks of the job, `per_segment` of them a sum of its own.
  __device__ void Run(Cursor<Ring>& cursor, int per_segment) {
    for (int first = job_.first_block; first < job_.end_block; first += per_segment) {
      const int end = min(first + per_segment, job_.end_block);
      if constexpr (IsFp8Input(kKind)) {
        RunFp8(cursor, first, end);
      } else {
        RunBf16(cursor, end - first);
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) total_[i] = total_[i] + sums_[i];
    }
  }

  // out [kN, kOutStride] = the totals.
  __device__ void Write(float* out) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x % kGroupThreads / 32) * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      float* column = out + (8 * j + lane % 4 * 2) * Ring::kOutStride + row;
      column[0] = total_[4 * j];
      column[Ring::kOutStride] = total_[4 * j + 1];
      column[8] = total_[4 * j + 2];
      column[Ring::kOutStride + 8] = total_[4 * j + 3];
    }
  }

 private:
  __device__ uint32_t Base() const { return SharedAddress(shared_); }

  __device__ void ClearSums() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums_[i] = 0.0f;
  }

  // Address of the 64 rows of weights of this warpgroup.
  __device__ uint32_t Weights(const Cursor<Ring>& cursor) const {
    const uint32_t own = static_cast<uint32_t>(group_) * 64 * kRowBytes;
    if constexpr (!IsConverted(kKind)) return Base() + cursor.stage * Ring::kStageBytes + own;
    const uint32_t tile = (cursor.round * Ring::kStages + cursor.stage) % kConvertedTiles;
    return Base() + Ring::kConverted + tile * Ring::kABytes + own;
  }
  __device__ uint32_t Rows(const Cursor<Ring>& cursor) const {
    return Base() + cursor.stage * Ring::kStageBytes + Ring::kWeightBytes;
  }

  __device__ void WaitFull(const Cursor<Ring>& cursor) const {
    BarrierWait(Ring::Full(Base(), cursor.stage), cursor.round & 1);
  }

  // One accumulator for the whole segment: the next block's instructions are
  // queued behind this one's, whose stage is given back when they have run.
  __device__ void RunBf16(Cursor<Ring>& cursor, int blocks) {
    WaitFull(cursor);
    MultiplyBf16(cursor, 0);
    uint32_t behind = cursor.stage;
    cursor.Advance();
#pragma unroll 1
    for (int i = 1; i < blocks; ++i) {
      WaitFull(cursor);
      MultiplyBf16(cursor, 1);
      WgmmaWait<1>();
      WarpArrive(Ring::Empty(Base(), behind));
      behind = cursor.stage;
      cursor.Advance();
    }
    WgmmaWait();
    HoldResults(sums_);
    WarpArrive(Ring::Empty(Base(), behind));
  }

  __device__ __forceinline__ void MultiplyBf16(const Cursor<Ring>& cursor, int adds) {
    const uint32_t a = Weights(cursor), b = Rows(cursor);
    WgmmaFence();
#pragma unroll
    for (uint32_t step = 0; step < 4; ++step) {
      Wgmma<kN, false>(sums_, TileDescriptor(a + step * 32), TileDescriptor(b + step * 32),
                       step == 0 ? adds : 1);
    }
    WgmmaCommit();
  }

  __device__ void RunFp8(Cursor<Ring>& cursor, int first, int end) {
    ClearSums();
#pragma unroll 1
    for (int block = first; block < end; ++block, cursor.Advance()) {
      WaitFull(cursor);
      MultiplyFp8(block, cursor);
      WarpArrive(Ring::Empty(Base(), cursor.stage));
    }
  }

  __device__ void MultiplyFp8(int block, const Cursor<Ring>& cursor) {
    const float scale = BlockScale(block);  // on its way while products run
    const uint32_t a = Weights(cursor), b = Rows(cursor);
    if constexpr (!kPer32) {
      WgmmaFence();
#pragma unroll
      for (uint32_t step = 0; step < 4; ++step) {
        Wgmma<kN, true>(part_, TileDescriptor(a + step * 32), TileDescriptor(b + step * 32),
                        step == 0 ? 0 : 1);
      }
      WgmmaCommit();
      WgmmaWait();
      HoldResults(part_);
      PromoteBy(cursor.stage, scale, scale);
    } else {
      for (uint32_t step = 0; step < 4; ++step) {
        WgmmaFence();
        Wgmma<kN, true>(part_, TileDescriptor(a + step * 32), TileDescriptor(b + step * 32), 0);
        WgmmaCommit();
        WgmmaWait();
        HoldResults(part_);
        PromoteGroup(block, step, cursor.stage, scale);
      }
    }
  }

  __device__ float BlockScale(int block) const {
    const int64_t line = job_.first_output / 128;
    return job_.weight.scales[line * (job_.weight.cols / 128) + block];
  }

  // acc = fma(part, scale_a * scale_b, acc); `low` and `high` are the scales of
  // the two outputs.
  __device__ void PromoteBy(uint32_t stage, float low, float high) {
    const float* scales =
        reinterpret_cast<const float*>(shared_ + Ring::kScales) + stage * kN + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float2 x = *reinterpret_cast<const float2*>(scales + 8 * j);
      sums_[4 * j] = Fma(part_[4 * j], x.x * low, sums_[4 * j]);
      sums_[4 * j + 1] = Fma(part_[4 * j + 1], x.y * low, sums_[4 * j + 1]);
      sums_[4 * j + 2] = Fma(part_[4 * j + 2], x.x * high, sums_[4 * j + 2]);
      sums_[4 * j + 3] = Fma(part_[4 * j + 3], x.y * high, sums_[4 * j + 3]);
    }
  }

  __device__ void PromoteGroup(int block, uint32_t group, uint32_t stage, float scale) {
    if constexpr (kKind == LinearKind::kFp4) {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int row = job_.first_output + static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
      const uint8_t* exponents = job_.weight.exponents + block * 4 + group;
      const int64_t width = job_.weight.cols / 32;
      const int last = job_.end_output - 1;
      PromoteBy(stage, DecodeE8m0(exponents[min(row, last) * width]),
                DecodeE8m0(exponents[min(row + 8, last) * width]));
    } else {
      PromoteBy(stage, scale, scale);
    }
  }

  const TileJob& job_;
  uint8_t* shared_;
  const int group_;
  float part_[IsFp8Input(kKind) ? kSums : 1];
  float sums_[kSums], total_[kSums];
};

__device__ __forceinline__ void StoreOutput(const LinearArgs& args, void* y, int64_t at,
                                            float value) {
  switch (args.output) {
    case OutputFormat::kF32:
      static_cast<float*>(y)[at] = value;
      break;
    case OutputFormat::kBf16:
      static_cast<Bf16*>(y)[at] = EncodeBf16(value);
      break;
    case OutputFormat::kScaledF32:
      static_cast<float*>(y)[at] = RoundBf16(value) * args.output_scale;
      break;
  }
}

// The warpgroup's 64 outputs of rows first_row, + row_step, .. below the tile's
// number; value(row, column) says what they are. A thread stores two
// neighbours.
template <typename Value>
__device__ __forceinline__ void StoreOutputs(const LinearArgs& args, const TileJob& job,
                                             int first_row, int row_step, const Value& value) {
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
  const int first = static_cast<int>(threadIdx.x / kGroupThreads) * 64;
  const int width = min(64, job.end_output - job.first_output - first);
  const int column = thread % 32 * 2;
  const bool is_paired = column + 1 < width && args.y_stride % 2 == 0 &&
                         (job.first_output & 1) == 0 && args.output != OutputFormat::kScaledF32;
  for (int row = first_row + thread / 32 * row_step; row < job.rows.count; row += 4 * row_step) {
    const int64_t at = (job.rows.first + row) * args.y_stride + job.first_output + first + column;
    if (is_paired) {
      const float low = value(row, column), high = value(row, column + 1);
      if (args.output == OutputFormat::kBf16) {
        *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(job.y) + at) =
            EncodeBf16(low) | static_cast<uint32_t>(EncodeBf16(high)) << 16;
      } else {
        *reinterpret_cast<float2*>(static_cast<float*>(job.y) + at) = make_float2(low, high);
      }
      continue;
    }
    for (int i = 0; i < 2; ++i) {
      if (column + i < width) StoreOutput(args, job.y, at + i, value(row, column + i));
    }
  }
}

// Loads, and for converted kinds conversions, of one job.
template <LinearKind kKind, typename Ring, bool kPer32>
__device__ __forceinline__ void CopyJob(const LinearArgs& args, const TileJob& job, uint8_t* shared,
                                        Cursor<Ring>& loading) {
  using Loader = StageLoader<kKind, Ring, kPer32>;
  constexpr int kBarrier = Ring::kConsumers + 1;
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
  auto* sources = reinterpret_cast<int32_t*>(shared + Ring::kSources);
  MeetAt(kBarrier, kGroupThreads);  // the job before is done with the sources
  if (thread < Ring::kRows) {
    const int index = job.rows.first + thread;
    const bool is_live = thread < job.rows.count;
    sources[thread] = !is_live ? -1 : (args.x_rows == nullptr ? index : args.x_rows[index]);
  }
  MeetAt(kBarrier, kGroupThreads);
  Loader loader(args, job, shared);
  const int blocks = job.end_block - job.first_block;
  Cursor<Ring> arrived = loading;
  for (int i = 0; i < blocks + Loader::kDepth; ++i) {
    if (i < blocks) {
      if (loading.round > 0) {
        BarrierWait(Ring::Empty(base, loading.stage), (loading.round - 1) & 1);
      }
      loader.Load(job.first_block + i, static_cast<int>(loading.stage));
      loading.Advance();
    }
    CopyAsyncCommit();
    const int ready = i - Loader::kDepth;
    if (ready < 0) continue;
    CopyAsyncWait<Loader::kDepth>();
    if constexpr (IsConverted(kKind)) {
      const uint32_t number = arrived.round * Ring::kStages + arrived.stage;
      if (number >= kConvertedTiles) {
        const uint32_t reader = number - kConvertedTiles;
        BarrierWait(Ring::Empty(base, reader % Ring::kStages), reader / Ring::kStages & 1);
      }
      loader.Convert(job.first_block + ready, static_cast<int>(arrived.stage),
                     static_cast<int>(number % kConvertedTiles));
    }
    FenceAsyncProxy();
    WarpArrive(Ring::Full(base, arrived.stage));
    arrived.Advance();
  }
}

// Products and outputs of one job.
template <LinearKind kKind, typename Ring, bool kPer32>
__device__ __forceinline__ void MultiplyJob(const LinearArgs& args, const TileJob& job,
                                            uint8_t* shared, Cursor<Ring>& cursor) {
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  float* out = reinterpret_cast<float*>(shared + Ring::kOut + group * Ring::kOutBytes);
  const int blocks = job.weight.cols / 128;
  const int per_segment = (blocks + args.k_segments - 1) / args.k_segments;
  TileSums<kKind, Ring, kPer32> sums(job, shared);
  sums.Run(cursor, per_segment * (128 / BlockK(kKind)));
  MeetAt(group + 1, kGroupThreads);  // the outputs of the job before are read
  sums.Write(out);
  MeetAt(group + 1, kGroupThreads);
}

// Outputs as they lie in the warpgroup's part of shared memory.
template <typename Ring>
__device__ __forceinline__ void StoreOwn(const LinearArgs& args, const TileJob& job,
                                         uint8_t* shared) {
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const auto* out = reinterpret_cast<const float*>(shared + Ring::kOut + group * Ring::kOutBytes);
  StoreOutputs(args, job, 0, 1,
               [out](int row, int column) { return out[row * Ring::kOutStride + column]; });
}

// Outputs as sums over the blocks of a cluster, which hold one segment of K
// each, ascending.
template <typename Ring>
__device__ __forceinline__ void StoreSum(const LinearArgs& args, const TileJob& job,
                                         uint8_t* shared) {
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  const uint32_t out = SharedAddress(shared) + Ring::kOut + group * Ring::kOutBytes;
  const int ranks = args.k_segments, rank = static_cast<int>(blockIdx.x) % ranks;
  StoreOutputs(args, job, rank, ranks, [out, ranks](int row, int column) {
    const uint32_t address = out + (row * Ring::kOutStride + column) * 4;
    float total = 0.0f;
    for (int r = 0; r < ranks; ++r) {
      total = total + LoadFromRank(address, static_cast<uint32_t>(r));
    }
    return total;
  });
}

// Barriers and the table of FP4 codes.
template <typename Ring>
__device__ __forceinline__ void PrepareRing(uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 15) {
    reinterpret_cast<uint2*>(shared + Ring::kTable)[thread] =
        make_uint2(kFp4Table.low[thread], kFp4Table.high[thread]);
  }
  if (thread == 0) {
    for (uint32_t stage = 0; stage < Ring::kStages; ++stage) {
      BarrierInit(Ring::Full(base, stage), kGroupThreads / 32);
      BarrierInit(Ring::Empty(base, stage), Ring::kConsumers * kGroupThreads / 32);
    }
  }
  __syncthreads();
}

// Runs what `jobs` lists for this block of threads: jobs.ForEach(visit) calls
// visit(kind, args, job) for each, in the same order on both sides.
// kIsClustered: one job at most, its outputs behind all of the cluster's.
template <typename Ring, bool kPer32, bool kIsClustered, typename Jobs>
__device__ __forceinline__ void RunJobs(const Jobs& jobs) {
  extern __shared__ uint8_t raw_shared[];
  uint8_t* shared = raw_shared + (1024 - (SharedAddress(raw_shared) & 1023u)) % 1024;
  PrepareRing<Ring>(shared);
  Cursor<Ring> cursor;
  if (static_cast<int>(threadIdx.x) / kGroupThreads == Ring::kConsumers) {
    if constexpr (Ring::kConsumers == 2) ShrinkRegisters<72>();
    jobs.ForEach([&](auto kind, const LinearArgs& args, const TileJob& job) {
      CopyJob<kind.value, Ring, kPer32>(args, job, shared, cursor);
    });
    if constexpr (kIsClustered) {
      ClusterSync();
      ClusterSync();
    }
  } else {
    if constexpr (Ring::kConsumers == 2) GrowRegisters<216>();
    jobs.ForEach([&](auto kind, const LinearArgs& args, const TileJob& job) {
      MultiplyJob<kind.value, Ring, kPer32>(args, job, shared, cursor);
      if constexpr (!kIsClustered) StoreOwn<Ring>(args, job, shared);
    });
    if constexpr (kIsClustered) {
      ClusterSync();
      jobs.ForEach([&](auto, const LinearArgs& args, const TileJob& job) {
        if (args.k_segments > 1) {
          StoreSum<Ring>(args, job, shared);
        } else {
          StoreOwn<Ring>(args, job, shared);
        }
      });
      ClusterSync();  // the others may still read this block's
    }
  }
}

// The kind of a linear by the formats of its weight and input.
template <bool kIsConverted, typename Visit>
__device__ __forceinline__ void VisitKind(const LinearArgs& args, const MatrixView& weight,
                                          const Visit& visit) {
  const bool is_fp8_input = args.x_scales != nullptr;
  if constexpr (kIsConverted) {
    if (is_fp8_input) {
      visit(std::integral_constant<LinearKind, LinearKind::kFp4>{});
    } else {
      visit(std::integral_constant<LinearKind, LinearKind::kWidened>{});
    }
  } else {
    if (is_fp8_input) {
      visit(std::integral_constant<LinearKind, LinearKind::kFp8>{});
    } else {
      visit(std::integral_constant<LinearKind, LinearKind::kBf16>{});
    }
  }
}

}  // namespace baton::kernels::cuda
