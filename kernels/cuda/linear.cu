#include <algorithm>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_kernel.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kBandRows = 8;    // row tiles that run beside one another, to share weights in L2
constexpr int kMaxCluster = 8;  // blocks that hold the segments of one sum
constexpr int kFewestLargeUnits = 64;  // tiles of 128 rows are for so many blocks at least,
constexpr int kManyLargeUnits = 132;   // where no weight is bf16
constexpr int kClusterRows = 128;      // up to so many rows segments run beside one another

// Linears of one launch. A unit is a tile of outputs of one of them, in a
// clustered launch one segment of it.
struct LinearGroup {
  LinearArgs linears[kMaxLinears];
  int first_unit[kMaxLinears + 1];
  int count;
  int rows;  // to launch for
};

int TilesOf(int n, int tile) { return (n + tile - 1) / tile; }

__device__ int LiveRows(const LinearArgs& args) {
  return args.num_rows == nullptr ? args.rows : *args.num_rows * args.row_factor;
}

// The jobs of one block of threads of a group's launch: grid (units, row tiles)
// where it is clustered, else any number of blocks, which take jobs in turn.
template <typename Ring, bool kIsClustered>
struct GroupJobs {
  const LinearGroup& group;

  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    if constexpr (kIsClustered) {
      Run(static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), visit);
      return;
    }
    const int units = group.first_unit[group.count];
    const int row_tiles = (group.rows + Ring::kRows - 1) / Ring::kRows;
    for (int i = static_cast<int>(blockIdx.x); i < units * row_tiles;
         i += static_cast<int>(gridDim.x)) {
      const int band = i / (kBandRows * units), in_band = i % (kBandRows * units);
      const int rows = min(kBandRows, row_tiles - band * kBandRows);
      Run(in_band / rows, band * kBandRows + in_band % rows, visit);
    }
  }

  template <typename Visit>
  __device__ void Run(int unit, int row_tile, const Visit& visit) const {
    int l = 0;
    while (unit >= group.first_unit[l + 1]) ++l;
    const LinearArgs& args = group.linears[l];
    const int live = LiveRows(args), first = row_tile * Ring::kRows;
    if (first >= live) return;
    const int segments = kIsClustered ? args.k_segments : 1;
    const int in_linear = unit - group.first_unit[l];
    const int tile = in_linear / segments, segment = in_linear % segments;
    const int per_group = args.weight.rows / args.groups;
    const int group_tiles = (per_group + Ring::kM - 1) / Ring::kM;
    const int output_group = tile / group_tiles;
    if (output_group >= args.groups) return;  // makes the cluster full
    TileJob job{.weight = args.weight};
    job.rows = {0, first, min(Ring::kRows, live - first)};
    job.first_output = output_group * per_group + tile % group_tiles * Ring::kM;
    job.end_output = min((output_group + 1) * per_group, job.first_output + Ring::kM);
    const int blocks = args.weight.cols / 128, per_segment = (blocks + segments - 1) / segments;
    job.first_block = min(segment * per_segment, blocks);
    job.end_block = min((segment + 1) * per_segment, blocks);
    job.x = reinterpret_cast<const uint8_t*>(args.x) +
            static_cast<int64_t>(output_group) * args.weight.cols * 2;
    job.y = args.y;
    VisitKind<Ring::kTakesCodes, Ring::kTakesBf16>(args.weight.format,
                                                   [&](auto kind) { visit(kind, args, job); });
  }
};

template <typename Ring, bool kIsClustered>
__global__ void __launch_bounds__(Ring::kThreads, Ring::kBlocks)
    LinearKernel(const __grid_constant__ LinearGroup group) {
  RunJobs<Ring, kIsClustered>(GroupJobs<Ring, kIsClustered>{group});
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
      TileJob job{.weight = (is_second ? args.second_matrices : args.matrices)[rows.expert]};
      job.rows = rows;
      job.first_output = i % output_tiles * Ring::kM;
      job.end_output = min(job.weight.rows, job.first_output + Ring::kM);
      job.first_block = 0;
      job.end_block = job.weight.cols / 128;
      job.x = reinterpret_cast<const uint8_t*>(args.linear.x);
      job.y = is_second ? args.second_y : args.linear.y;
      VisitKind<true, false>(job.weight.format, [&](auto kind) { visit(kind, args.linear, job); });
    }
  }
};

template <typename Ring>
__global__ void __launch_bounds__(Ring::kThreads, Ring::kBlocks)
    ExpertLinearKernel(const __grid_constant__ ExpertLinearArgs args) {
  RunJobs<Ring, false>(ExpertJobs<Ring>{args});
}

// Rings of tiles of few rows take any weight and segments.
template <int kN>
using SmallRing = RingShape<kN, 1, true, true>;
template <int kN>
using ExpertRing = RingShape<kN, kN == 128 ? 2 : 1, false, false>;
using WholeRing = RingShape<128, 2, false, false>;
using CutRing = RingShape<128, 1, false, true>;
using Bf16Ring = RingShape<128, 1, true, true>;
using MixedRing = RingShape<128, 1, true, false>;  // segments in a cluster

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

// How many blocks make a cluster: the segments of those linears that have
// several.
int ClusterOf(const LinearGroup& group) {
  int cluster = 1;
  for (int i = 0; i < group.count; ++i) {
    const int segments = group.linears[i].k_segments;
    if (segments == 1) continue;
    if (segments > kMaxCluster || (cluster != 1 && cluster != segments)) return 1;
    cluster = segments;
  }
  return group.rows <= kClusterRows ? cluster : 1;
}

template <typename Ring>
void CountUnits(LinearGroup& group, int cluster) {
  group.first_unit[0] = 0;
  for (int i = 0; i < group.count; ++i) {
    const LinearArgs& args = group.linears[i];
    int units = TilesOf(args.weight.rows / args.groups, Ring::kM) * args.groups;
    if (cluster > 1) units = TilesOf(units * args.k_segments, cluster) * cluster;
    group.first_unit[i + 1] = group.first_unit[i] + units;
  }
}

template <typename Ring, bool kIsClustered>
cudaError_t Launch(LinearGroup& group, int cluster, cudaStream_t stream) {
  CountUnits<Ring>(group, cluster);
  const int units = group.first_unit[group.count], row_tiles = TilesOf(group.rows, Ring::kRows);
  const auto kernel = LinearKernel<Ring, kIsClustered>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(Ring::kThreads);
  config.dynamicSmemBytes = Ring::kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  if (kIsClustered) {
    config.gridDim = dim3(static_cast<unsigned>(units), static_cast<unsigned>(row_tiles));
    config.attrs = &attribute;
    config.numAttrs = 1;
  } else {
    unsigned blocks = 0;
    if (const cudaError_t error = BlocksFor(units * row_tiles, Ring::kBlocks, blocks)) return error;
    config.gridDim = dim3(blocks);
  }
  return cudaLaunchKernelEx(&config, kernel, group);
}

template <typename Ring>
cudaError_t LaunchSmall(LinearGroup& group, cudaStream_t stream) {
  const int cluster = ClusterOf(group);
  return cluster > 1 ? Launch<Ring, true>(group, cluster, stream)
                     : Launch<Ring, false>(group, 1, stream);
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

template <typename Ring>
cudaError_t LaunchLarge(LinearGroup group, cudaStream_t stream) {
  return group.count == 0 ? cudaSuccess : Launch<Ring, false>(group, 1, stream);
}

template <typename Ring>
cudaError_t LaunchExperts(const ExpertLinearArgs& args, cudaStream_t stream) {
  const auto kernel = ExpertLinearKernel<Ring>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  const int parts = args.second_matrices == nullptr ? 1 : 2;
  const int jobs = TilesOf(args.linear.weight.rows, Ring::kM) * parts * args.max_tiles;
  unsigned blocks = 0;
  if (const cudaError_t error = BlocksFor(jobs, Ring::kBlocks, blocks)) return error;
  kernel<<<blocks, Ring::kThreads, Ring::kSharedBytes, stream>>>(args);
  return cudaPeekAtLastError();
}

bool IsBf16(const LinearArgs& args) { return args.weight.format == ValueFormat::kBf16; }

// How many tiles of 128 rows by 128 outputs and segments there are.
int LargeUnits(const LinearGroup& group) {
  int units = 0;
  for (int i = 0; i < group.count; ++i) {
    const LinearArgs& args = group.linears[i];
    units += TilesOf(args.weight.rows / args.groups, CutRing::kM) * args.groups * args.k_segments;
  }
  return units;
}

// Between kClusterRows / 2 and kClusterRows rows: one tile has them all where its blocks about fill
// the GPU at once, else two tiles of 64 rows are faster (measured on an H200).
cudaError_t LaunchMedium(LinearGroup& group, cudaStream_t stream) {
  constexpr int kMostClustered = 128;  // blocks in clusters of 4 that run at once
  const int cluster = ClusterOf(group);
  const LinearArgs* first = group.linears;
  const auto num_bf16 = std::count_if(first, first + group.count, IsBf16);
  const int units = LargeUnits(group);
  if (cluster > 1 && num_bf16 > 0 && units >= kFewestLargeUnits && units <= kMostClustered) {
    return Launch<MixedRing, true>(group, cluster, stream);
  }
  if (cluster == 1 && num_bf16 == 0 && units >= kManyLargeUnits) {
    return Launch<CutRing, false>(group, 1, stream);
  }
  if (cluster == 1 && num_bf16 == group.count && units >= kFewestLargeUnits) {
    return Launch<Bf16Ring, false>(group, 1, stream);
  }
  return LaunchSmall<SmallRing<64>>(group, stream);
}

}  // namespace

int TileRows(int rows) {
  if (rows <= 8) return 8;
  return rows <= 32 ? 32 : (rows <= kClusterRows ? 64 : 128);
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
  switch (TileRows(group.rows)) {
    case 8:
      return LaunchSmall<SmallRing<8>>(group, stream);
    case 32:
      return LaunchSmall<SmallRing<32>>(group, stream);
    case 64:
      return group.rows > kClusterRows / 2 ? LaunchMedium(group, stream)
                                           : LaunchSmall<SmallRing<64>>(group, stream);
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
