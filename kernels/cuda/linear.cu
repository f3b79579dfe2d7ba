#include <algorithm>
#include <cuda.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_kernel.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kBandRows = 8;  // row tiles that run beside one another, to share weights in L2
constexpr int kMultiprocessors = 132;  // of the GPUs that tiles are chosen for,
constexpr int kClusteredBlocks = 120;  // which run so many blocks in clusters at once, one each
constexpr int kOneTileRows = 128;      // up to so many rows are one tile

// Linears of one launch. A unit is a tile of outputs of one of them.
struct LinearGroup {
  LinearArgs linears[kMaxLinears];
  int first_unit[kMaxLinears + 1];
  int count;
  int rows;  // to launch for
};

struct TensorGroup {
  CUtensorMap x[kMaxLinears];
  LinearGroup group;
};

int TilesOf(int n, int tile) { return (n + tile - 1) / tile; }

__device__ int LiveRows(const LinearArgs& args) {
  return args.num_rows == nullptr ? args.rows : *args.num_rows * args.row_factor;
}

// Job of a tile of outputs of a group and a segment of its sums, of which there are `segments` in
// different blocks.
template <typename Ring>
__device__ TileJob MakeJob(const LinearArgs& args, int output_group, int tile, int2 segment) {
  const int per_group = args.weight.rows / args.groups, end = (output_group + 1) * per_group;
  TileJob job{.weight = args.weight};
  job.first_output = min(end, output_group * per_group + tile * Ring::kM);
  job.end_output = min(end, job.first_output + Ring::kM);
  const int blocks = args.weight.cols / 128;
  const int per_segment = (blocks + segment.y - 1) / segment.y;
  job.first_block = min(segment.x * per_segment, blocks);
  job.end_block = min((segment.x + 1) * per_segment, blocks);
  job.x_column = output_group * args.weight.cols;
  job.x = reinterpret_cast<const uint8_t*>(args.x) + int64_t{job.x_column} * 2;
  job.y = args.y;
  return job;
}

// The jobs of one block of threads of a group's launch: grid (units, row tiles) where segments are
// clustered, else any number of blocks, which take jobs in turn.
template <typename Ring, bool kIsClustered>
struct GroupJobs {
  const LinearGroup& group;
  const CUtensorMap* x_maps;  // null without tensor copies

  template <typename Visit>
  __device__ void First(const Visit& visit) const {
    const auto unit = static_cast<int>(blockIdx.x) / UnitBlocks();
    if (group.rows > Ring::kRows || unit >= group.first_unit[group.count]) return;
    Find(unit, [&](const LinearArgs& args, const TileJob& job) {
      VisitKind<Ring>(args.weight.format, [&](auto kind) { visit(kind, args, job); });
    });
  }

  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    const int first = static_cast<int>(blockIdx.x) / UnitBlocks();
    if constexpr (kIsClustered) {
      Run(first, static_cast<int>(blockIdx.y), visit);
      return;
    }
    const int units = group.first_unit[group.count];
    const int row_tiles = (group.rows + Ring::kRows - 1) / Ring::kRows;
    for (int i = first; i < units * row_tiles; i += static_cast<int>(gridDim.x) / UnitBlocks()) {
      const int band = i / (kBandRows * units), in_band = i % (kBandRows * units);
      const int rows = min(kBandRows, row_tiles - band * kBandRows);
      Run(in_band / rows, band * kBandRows + in_band % rows, visit);
    }
  }

 private:
  // Blocks that have one unit.
  __device__ int UnitBlocks() const { return kIsClustered ? group.linears[0].k_segments : 1; }

  // Calls visit(args, job) for this block's part of a unit; the job has no rows yet.
  template <typename Visit>
  __device__ void Find(int unit, const Visit& visit) const {
    int l = 0;
    while (unit >= group.first_unit[l + 1]) ++l;
    const LinearArgs& args = group.linears[l];
    const int group_tiles = (args.weight.rows / args.groups + Ring::kM - 1) / Ring::kM;
    const int tile = unit - group.first_unit[l];
    const int2 segment = kIsClustered ? make_int2(static_cast<int>(ClusterRank()), args.k_segments)
                                      : make_int2(0, 1);
    TileJob job = MakeJob<Ring>(args, tile / group_tiles, tile % group_tiles, segment);
    job.x_map = x_maps + l;
    visit(args, job);
  }

  template <typename Visit>
  __device__ void Run(int unit, int row_tile, const Visit& visit) const {
    Find(unit, [&](const LinearArgs& args, TileJob job) {
      const int live = LiveRows(args), first = row_tile * Ring::kRows;
      if (first >= live) return;
      job.rows = {0, first, min(Ring::kRows, live - first)};
      VisitKind<Ring>(args.weight.format, [&](auto kind) { visit(kind, args, job); });
    });
  }
};

template <typename Ring>
__global__ void __launch_bounds__(Ring::kThreads, Ring::kRegisterBlocks)
    LinearKernel(const __grid_constant__ LinearGroup group) {
  RunJobs<Ring, false>(GroupJobs<Ring, false>{group, nullptr});
}

template <typename Ring, bool kIsClustered>
__global__ void __launch_bounds__(Ring::kThreads, Ring::kRegisterBlocks)
    TensorLinearKernel(const __grid_constant__ TensorGroup group) {
  RunJobs<Ring, kIsClustered>(GroupJobs<Ring, kIsClustered>{group.group, group.x});
}

template <typename Ring>
struct ExpertJobs {
  const ExpertLinearArgs& args;

  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    const int parts = args.second_matrices == nullptr ? 1 : 2;
    const int output_tiles = (args.linear.weight.rows + Ring::kM - 1) / Ring::kM;
    const int units = output_tiles * parts, jobs = units * *args.num_tiles;
    for (int i = static_cast<int>(blockIdx.x); i < jobs; i += static_cast<int>(gridDim.x)) {
      const RowTile rows = args.tiles[i / units];
      const bool is_second = i % units >= output_tiles;
      TileJob job{};
      job.weight = (is_second ? args.second_matrices : args.matrices)[rows.expert];
      job.rows = rows;
      job.first_output = i % output_tiles * Ring::kM;
      job.end_output = min(job.weight.rows, job.first_output + Ring::kM);
      job.first_block = 0;
      job.end_block = job.weight.cols / 128;
      job.x = reinterpret_cast<const uint8_t*>(args.linear.x);
      job.y = is_second ? args.second_y : args.linear.y;
      VisitKind<Ring>(job.weight.format, [&](auto kind) { visit(kind, args.linear, job); });
    }
  }
};

template <typename Ring>
__global__ void __launch_bounds__(Ring::kThreads, Ring::kRegisterBlocks)
    ExpertLinearKernel(const __grid_constant__ ExpertLinearArgs args) {
  RunJobs<Ring, false>(ExpertJobs<Ring>{args});
}

template <int kN>
using ExpertRing = RingShape<kN, Weights::kCodes, false, kN == 128 ? 2 : 1, kN == 128 ? 2 : 1>;
// Tiles of many rows.
using WholeRing = RingShape<128, Weights::kCodes, false, 2, 2>;
using CutRing = RingShape<128, Weights::kCodes, true, 2>;
using Bf16Ring = RingShape<128, Weights::kBf16, true, 2>;
// One tile of all rows.
template <int kN, Weights kTakes, int kConsumers, int kResident>
using TensorRing = RingShape<kN, kTakes, false, kConsumers, 1, true, kResident>;
// The same with the segments of a sum in the blocks of a cluster.
template <int kN, Weights kTakes, int kConsumers, int kOwnBlocks, int kResident>
using SegmentRing = RingShape<kN, kTakes, false, kConsumers, kOwnBlocks, true, kResident, true>;

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// As many blocks as the multiprocessors can have, which take jobs in turn.
cudaError_t BlocksFor(int jobs, int per_multiprocessor, unsigned& blocks) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  blocks = static_cast<unsigned>(std::min(jobs, multiprocessors * per_multiprocessor));
  return cudaSuccess;
}

// x [rows, x_stride] in boxes of 64 columns and `box_rows` rows, swizzled. Rows behind are zeros.
cudaError_t DescribeX(const LinearArgs& args, int box_rows, CUtensorMap& map) {
  static_assert(kRowBytes == 128);  // the swizzle's
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (const cudaError_t error = cudaGetDriverEntryPointByVersion(
          "cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found)) {
    return error;
  }
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(args.x_stride),
                               static_cast<cuuint64_t>(args.rows)};
  const cuuint64_t strides[1] = {sizes[0] * 2};
  const cuuint32_t box[2] = {kRowBytes / 2, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(args.x), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Whether one tile has all rows, which tensor copies can fetch, and sums are cut alike.
bool IsOneTile(const LinearGroup& group) {
  const int segments = group.linears[0].k_segments;
  return group.rows <= kOneTileRows && segments <= kMaxCluster &&
         std::all_of(group.linears, group.linears + group.count, [&](const LinearArgs& args) {
           return args.x_rows == nullptr && reinterpret_cast<uintptr_t>(args.x) % 16 == 0 &&
                  args.x_stride % 8 == 0 && args.k_segments == segments &&
                  args.weight.format != ValueFormat::kFp4;
         });
}

// Counts the tiles of outputs of a group's linears.
template <typename Ring>
int CountUnits(LinearGroup& group) {
  group.first_unit[0] = 0;
  for (int i = 0; i < group.count; ++i) {
    const LinearArgs& args = group.linears[i];
    const int tiles = TilesOf(args.weight.rows / args.groups, Ring::kM) * args.groups;
    group.first_unit[i + 1] = group.first_unit[i] + tiles;
  }
  return group.first_unit[group.count];
}

// kIsClustered: the segments of a sum are in different blocks.
template <typename Ring, bool kIsClustered>
cudaError_t LaunchTensor(const LinearGroup& group, cudaStream_t stream) {
  TensorGroup tensors = {};
  tensors.group = group;
  for (int i = 0; i < group.count; ++i) {
    if (const cudaError_t error = DescribeX(group.linears[i], Ring::kRows, tensors.x[i])) {
      return error;
    }
  }
  const int units = CountUnits<Ring>(tensors.group), row_tiles = TilesOf(group.rows, Ring::kRows);
  const int cluster = kIsClustered ? group.linears[0].k_segments : 1;
  const auto kernel = TensorLinearKernel<Ring, kIsClustered>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  dim3 grid(static_cast<unsigned>(units * cluster), static_cast<unsigned>(row_tiles));
  if (!kIsClustered) {
    grid = dim3();
    if (const cudaError_t error = BlocksFor(units * row_tiles, Ring::kBlocks, grid.x)) return error;
  }
  return EarlyLaunch(grid, Ring::kThreads, Ring::kSharedBytes, stream, cluster)
      .Run(kernel, tensors);
}

// The linears that `belongs` picks.
template <typename Belongs>
LinearGroup Pick(const LinearGroup& all, const Belongs& belongs) {
  LinearGroup group = {};
  group.rows = all.rows;
  for (int i = 0; i < all.count; ++i) {
    if (belongs(all.linears[i])) group.linears[group.count++] = all.linears[i];
  }
  return group;
}

// Blocks take tiles of many rows in turn.
template <typename Ring>
cudaError_t LaunchLarge(LinearGroup group, cudaStream_t stream) {
  if (group.count == 0) return cudaSuccess;
  const auto kernel = LinearKernel<Ring>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  const int tiles = CountUnits<Ring>(group) * TilesOf(group.rows, Ring::kRows);
  dim3 grid;
  if (const cudaError_t error = BlocksFor(tiles, Ring::kBlocks, grid.x)) return error;
  return EarlyLaunch(grid, Ring::kThreads, Ring::kSharedBytes, stream).Run(kernel, group);
}

template <typename Ring>
cudaError_t LaunchExperts(const ExpertLinearArgs& args, cudaStream_t stream) {
  const auto kernel = ExpertLinearKernel<Ring>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  const int parts = args.second_matrices == nullptr ? 1 : 2;
  const int jobs = TilesOf(args.linear.weight.rows, Ring::kM) * parts * args.max_tiles;
  dim3 grid;
  if (const cudaError_t error = BlocksFor(jobs, Ring::kBlocks, grid.x)) return error;
  return EarlyLaunch(grid, Ring::kThreads, Ring::kSharedBytes, stream).Run(kernel, args);
}

bool IsBf16(const LinearArgs& args) { return args.weight.format == ValueFormat::kBf16; }

bool HasCodes(const LinearGroup& group) {
  return std::none_of(group.linears, group.linears + group.count, IsBf16);
}

int OutputTiles(const LinearGroup& group, int outputs) {
  int tiles = 0;
  for (int i = 0; i < group.count; ++i) {
    const LinearArgs& args = group.linears[i];
    tiles += TilesOf(args.weight.rows / args.groups, outputs) * args.groups;
  }
  return tiles;
}

// Tiles of outputs so wide that all blocks run at once, but no wider.
template <int kN>
cudaError_t LaunchSegments(const LinearGroup& group, cudaStream_t stream) {
  constexpr Weights kAny = Weights::kAny;
  const int tiles_at_once = kClusteredBlocks / group.linears[0].k_segments;  // one a multiprocessor
  const int tiles = OutputTiles(group, 64), wide_tiles = OutputTiles(group, 128);
  if constexpr (kN < 64) {
    return LaunchTensor<SegmentRing<kN, kAny, 1, 1, 3>, true>(group, stream);
  } else if constexpr (kN == 64) {
    const bool is_wide = tiles > 2 * tiles_at_once && wide_tiles <= 2 * tiles_at_once;
    return is_wide ? LaunchTensor<SegmentRing<kN, kAny, 1, 2, 2>, true>(group, stream)
                   : LaunchTensor<SegmentRing<kN, kAny, 1, 1, 2>, true>(group, stream);
  } else if (tiles <= tiles_at_once) {
    return LaunchTensor<SegmentRing<kN, kAny, 1, 1, 1>, true>(group, stream);
  } else if (wide_tiles <= tiles_at_once) {
    return LaunchTensor<SegmentRing<kN, kAny, 2, 1, 1>, true>(group, stream);
  } else if (HasCodes(group)) {  // more stages
    return LaunchTensor<SegmentRing<kN, Weights::kCodes, 3, 1, 1>, true>(group, stream);
  } else {
    return LaunchTensor<SegmentRing<kN, kAny, 3, 1, 1>, true>(group, stream);
  }
}

// One tile of all rows.
template <int kN>
cudaError_t LaunchOneTile(const LinearGroup& group, cudaStream_t stream) {
  constexpr Weights kCodes = Weights::kCodes;
  if (group.linears[0].k_segments > 1) return LaunchSegments<kN>(group, stream);
  const bool is_narrow = HasCodes(group) && OutputTiles(group, 64) <= kMultiprocessors;
  if constexpr (kN == 8) {
    return LaunchTensor<TensorRing<kN, Weights::kAny, 1, 2>, false>(group, stream);
  } else if constexpr (kN < 128) {
    return is_narrow ? LaunchTensor<TensorRing<kN, kCodes, 1, 1>, false>(group, stream)
                     : LaunchTensor<TensorRing<kN, Weights::kAny, 1, 2>, false>(group, stream);
  } else {
    if (is_narrow) return LaunchTensor<TensorRing<kN, kCodes, 1, 1>, false>(group, stream);
    const LinearGroup of_bf16 = Pick(group, IsBf16);
    const LinearGroup of_codes = Pick(group, [](const LinearArgs& args) { return !IsBf16(args); });
    if (of_bf16.count > 0) {
      const cudaError_t error =
          LaunchTensor<TensorRing<kN, Weights::kBf16, 2, 1>, false>(of_bf16, stream);
      if (error != cudaSuccess || of_codes.count == 0) return error;
    }
    return LaunchTensor<TensorRing<kN, kCodes, 2, 1>, false>(of_codes, stream);
  }
}

}  // namespace

int TileRows(int rows) {
  if (rows <= 8) return 8;
  return rows <= 32 ? 32 : (rows <= kOneTileRows ? 64 : 128);
}

cudaError_t RunLinear(const LinearArgs& args, cudaStream_t stream) {
  return RunLinears(&args, 1, stream);
}

cudaError_t RunLinears(const LinearArgs* linears, int count, cudaStream_t stream) {
  if (count == 0 || linears[0].rows == 0) return cudaSuccess;
  if (count > kMaxLinears) return cudaErrorInvalidValue;
  LinearGroup group = {};
  group.rows = linears[0].rows;
  for (int i = 0; i < count; ++i) {
    if (linears[i].weight.format == ValueFormat::kF32) return cudaErrorNotSupported;
    if (linears[i].rows != group.rows) return cudaErrorInvalidValue;
    group.linears[group.count++] = linears[i];
  }
  if (IsOneTile(group)) {
    if (group.rows <= 8) return LaunchOneTile<8>(group, stream);
    if (group.rows <= 32) return LaunchOneTile<32>(group, stream);
    if (group.rows <= 64) return LaunchOneTile<64>(group, stream);
    return LaunchOneTile<128>(group, stream);
  }
  const auto is_cut = [](const LinearArgs& args) { return !IsBf16(args) && args.k_segments > 1; };
  const auto is_whole = [&](const LinearArgs& args) { return !IsBf16(args) && !is_cut(args); };
  if (const cudaError_t error = LaunchLarge<CutRing>(Pick(group, is_cut), stream)) return error;
  if (const cudaError_t error = LaunchLarge<WholeRing>(Pick(group, is_whole), stream)) return error;
  return LaunchLarge<Bf16Ring>(Pick(group, IsBf16), stream);
}

cudaError_t RunExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream) {
  if (args.max_tiles == 0) return cudaSuccess;
  switch (args.tile_rows) {
    case 8:
      return LaunchExperts<ExpertRing<8>>(args, stream);
    case 32:
      return LaunchExperts<ExpertRing<32>>(args, stream);
    case 64:
      return LaunchExperts<ExpertRing<64>>(args, stream);
    default:
      return LaunchExperts<ExpertRing<128>>(args, stream);
  }
}

}  // namespace baton::kernels::cuda
