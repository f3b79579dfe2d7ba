#pragma once

#include "kernels/cuda/linear.cuh"

// How outputs leave the kernels behind linear.h.
namespace baton::kernels::cuda {

constexpr int kMaxCluster = 8;  // blocks that hold the segments of one sum

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

__device__ __forceinline__ void StoreFour(const LinearArgs& args, void* y, int64_t at,
                                          const float4& v) {
  if (args.output == OutputFormat::kBf16) {
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(y) + at) =
        make_uint2(PackBf16(v.x, v.y), PackBf16(v.z, v.w));
    return;
  }
  float4 out = v;
  if (args.output == OutputFormat::kScaledF32) {
    out.x = RoundBf16(v.x) * args.output_scale;
    out.y = RoundBf16(v.y) * args.output_scale;
    out.z = RoundBf16(v.z) * args.output_scale;
    out.w = RoundBf16(v.w) * args.output_scale;
  }
  *reinterpret_cast<float4*>(static_cast<float*>(y) + at) = out;
}

// Place of row `row`, output `column` of 64 in a block of fp32 outputs: four neighbours stay
// together, and neither TileSums::Write nor a reader of rows meets a bank twice.
__device__ __forceinline__ int FloatOffset(int row, int column) {
  return row * 64 + ((column / 4 ^ (row & 6)) * 4 | column % 4);
}

// Outputs `first` .. + 63 of the tile, of the rows that `part` (rank, ranks) names: rank, + ranks,
// .. below the tile's number; value(row, column) says what four neighbours are.
template <typename Value>
__device__ __forceinline__ void StoreOutputs(const LinearArgs& args, const TileJob& job, int first,
                                             int2 part, const Value& value) {
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
  const int width = min(64, job.end_output - job.first_output - first);
  const int column = thread % 16 * 4;
  if (column >= width) return;
  const bool is_whole = column + 3 < width && args.y_stride % 4 == 0 && job.first_output % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(job.y) % 16 == 0;
  for (int row = part.x + thread / 16 * part.y; row < job.rows.count; row += 8 * part.y) {
    const int64_t at = (job.rows.first + row) * args.y_stride + job.first_output + first + column;
    const float4 four = value(row, column);
    if (is_whole) {
      StoreFour(args, job.y, at, four);
      continue;
    }
    const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < width) StoreOutput(args, job.y, at + i, values[i]);
    }
  }
}

// A warpgroup's place for outputs of its block `block`; in a cluster each block has one.
template <typename Ring, bool kIsClustered>
__device__ __forceinline__ uint8_t* OwnOutputs(uint8_t* shared, int block) {
  const auto group = static_cast<int>(threadIdx.x / kGroupThreads);
  if constexpr (kIsClustered) {
    return shared + (group * Ring::kMBlocks + block) * Ring::kFloatOutBytes;
  } else {
    return shared + Ring::kOut + group * Ring::kOutBytes;
  }
}

// Whether outputs can be stored sixteen bytes at a time.
__device__ __forceinline__ bool HasWideOutputs(const LinearArgs& args, const TileJob& job) {
  return args.output == OutputFormat::kBf16 && args.y_stride % 8 == 0 &&
         job.first_output % 8 == 0 && job.end_output % 8 == 0;
}

// Outputs of WriteBf16.
template <typename Ring>
__device__ __forceinline__ void StoreWide(const LinearArgs& args, const TileJob& job,
                                          const uint8_t* out, int first) {
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads), chunk = thread % 8;
  const int column = job.first_output + first + chunk * 8;
  if (column >= job.end_output) return;
  Bf16* y = static_cast<Bf16*>(job.y) + job.rows.first * args.y_stride + column;
  for (int row = thread / 8; row < job.rows.count; row += kGroupThreads / 8) {
    *reinterpret_cast<uint4*>(y + row * args.y_stride) =
        *reinterpret_cast<const uint4*>(out + Swizzled(row, chunk));
  }
}

// Outputs of the warpgroup's block `block` as they lie in shared memory.
template <typename Ring>
__device__ __forceinline__ void StoreOwn(const LinearArgs& args, const TileJob& job,
                                         uint8_t* shared, int block) {
  const auto* out = reinterpret_cast<const float*>(OwnOutputs<Ring, false>(shared, block));
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  StoreOutputs(args, job, (group * Ring::kMBlocks + block) * 64, {0, 1},
               [out](int row, int column) {
                 return *reinterpret_cast<const float4*>(out + FloatOffset(row, column));
               });
}

// Sums of four outputs over the cluster's `segments`, ascending. All are on their way at once.
__device__ __forceinline__ float4 SumOverRanks(uint32_t address, int segments) {
  float4 parts[kMaxCluster], total = {};
#pragma unroll
  for (int s = 0; s < kMaxCluster; ++s) {
    if (s < segments) parts[s] = LoadFourFromRank(address, static_cast<uint32_t>(s));
  }
#pragma unroll
  for (int s = 0; s < kMaxCluster; ++s) {
    if (s >= segments) break;
    total.x = total.x + parts[s].x;
    total.y = total.y + parts[s].y;
    total.z = total.z + parts[s].z;
    total.w = total.w + parts[s].w;
  }
  return total;
}

// Outputs as sums over the blocks of a cluster, which hold one segment of K each, ascending.
template <typename Ring>
__device__ __forceinline__ void StoreSum(const LinearArgs& args, const TileJob& job,
                                         uint8_t* shared, int block) {
  const uint32_t out = SharedAddress(OwnOutputs<Ring, true>(shared, block));
  const int segments = args.k_segments;
  const int group = static_cast<int>(threadIdx.x / kGroupThreads);
  StoreOutputs(args, job, (group * Ring::kMBlocks + block) * 64,
               {static_cast<int>(ClusterRank()), segments}, [&](int row, int column) {
                 return SumOverRanks(out + static_cast<uint32_t>(FloatOffset(row, column)) * 4,
                                     segments);
               });
}

}  // namespace baton::kernels::cuda
