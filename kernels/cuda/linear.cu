#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_kernel.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kBandRows = 8;       // row tiles that run beside one another, to share weights in L2
constexpr int kMaxCluster = 8;     // blocks that hold the segments of one sum
constexpr int kClusterRows = 128;  // up to so many rows segments run beside one another

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
template <typename Ring, bool kIsConverted, bool kIsClustered>
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
    const bool is_fp8 = args.x_scales != nullptr;
    const int blocks = args.weight.cols / 128, per_segment = (blocks + segments - 1) / segments;
    const int factor = is_fp8 ? 1 : 2;
    job.first_block = min(segment * per_segment, blocks) * factor;
    job.end_block = min((segment + 1) * per_segment, blocks) * factor;
    job.x = static_cast<const uint8_t*>(args.x) +
            static_cast<int64_t>(output_group) * args.weight.cols * (is_fp8 ? 1 : 2);
    job.y = args.y;
    VisitKind<kIsConverted>(args, args.weight, [&](auto kind) { visit(kind, args, job); });
  }
};

template <int kN, bool kIsConverted>
using GroupRing = RingShape<kN, !kIsConverted, kIsConverted>;

template <int kN, bool kIsConverted, bool kIsClustered>
__global__ void __launch_bounds__(GroupRing<kN, kIsConverted>::kThreads,
                                  GroupRing<kN, kIsConverted>::kBlocks)
    LinearKernel(const __grid_constant__ LinearGroup group) {
  using Ring = GroupRing<kN, kIsConverted>;
  RunJobs<Ring, false, kIsClustered>(GroupJobs<Ring, kIsConverted, kIsClustered>{group});
}

// Which formats of weights a launch takes; tiles of others are another
// launch's.
enum class Formats { kFp8, kFp4, kBoth };

template <typename Ring, bool kPer32, Formats kFormats>
struct ExpertJobs {
  const ExpertLinearArgs& args;
  bool only_shared;

  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    const int parts = args.second_matrices == nullptr ? 1 : 2;
    const int output_tiles = (args.linear.weight.rows + Ring::kM - 1) / Ring::kM;
    const int units = output_tiles * parts;
    const int jobs = units * (only_shared ? *args.num_shared_tiles : *args.num_tiles);
    for (int i = static_cast<int>(blockIdx.x); i < jobs; i += static_cast<int>(gridDim.x)) {
      const RowTile rows = args.tiles[i / units];
      if ((args.is_promoted[rows.expert] != 0) != kPer32) continue;
      const bool is_second = i % units >= output_tiles;
      TileJob job{.weight = (is_second ? args.second_matrices : args.matrices)[rows.expert]};
      job.rows = rows;
      job.first_output = i % output_tiles * Ring::kM;
      job.end_output = min(job.weight.rows, job.first_output + Ring::kM);
      job.first_block = 0;
      job.end_block = job.weight.cols / 128;
      job.x = static_cast<const uint8_t*>(args.linear.x);
      job.y = is_second ? args.second_y : args.linear.y;
      if constexpr (kFormats != Formats::kFp8) {
        if (job.weight.format == ValueFormat::kFp4) {
          visit(std::integral_constant<LinearKind, LinearKind::kFp4>{}, args.linear, job);
        }
      }
      if constexpr (kFormats != Formats::kFp4) {
        if (job.weight.format == ValueFormat::kFp8) {
          visit(std::integral_constant<LinearKind, LinearKind::kFp8>{}, args.linear, job);
        }
      }
    }
  }
};

template <int kN, Formats kFormats>
using ExpertRing = RingShape<kN, kFormats != Formats::kFp4, kFormats != Formats::kFp8>;

template <int kN, bool kPer32, Formats kFormats>
__global__ void __launch_bounds__(ExpertRing<kN, kFormats>::kThreads,
                                  ExpertRing<kN, kFormats>::kBlocks)
    ExpertLinearKernel(const __grid_constant__ ExpertLinearArgs args, bool only_shared) {
  using Ring = ExpertRing<kN, kFormats>;
  RunJobs<Ring, kPer32, false>(ExpertJobs<Ring, kPer32, kFormats>{args, only_shared});
}

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Large tiles: one block a multiprocessor, which takes jobs in turn. Small
// ones: a block a job.
cudaError_t BlocksFor(int jobs, int tile_rows, unsigned& blocks) {
  blocks = static_cast<unsigned>(jobs);
  if (tile_rows < 128) return cudaSuccess;
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (jobs > multiprocessors) blocks = static_cast<unsigned>(multiprocessors);
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

template <int kN, bool kIsConverted>
cudaError_t Launch(LinearGroup& group, cudaStream_t stream) {
  using Ring = GroupRing<kN, kIsConverted>;
  const int cluster = ClusterOf(group);
  CountUnits<Ring>(group, cluster);
  const int units = group.first_unit[group.count], row_tiles = TilesOf(group.rows, kN);
  const auto kernel =
      cluster > 1 ? LinearKernel<kN, kIsConverted, true> : LinearKernel<kN, kIsConverted, false>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(Ring::kThreads);
  config.dynamicSmemBytes = Ring::kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  if (cluster > 1) {
    config.gridDim = dim3(static_cast<unsigned>(units), static_cast<unsigned>(row_tiles));
    config.attrs = &attribute;
    config.numAttrs = 1;
  } else {
    unsigned blocks = 0;
    if (const cudaError_t error = BlocksFor(units * row_tiles, kN, blocks)) return error;
    config.gridDim = dim3(blocks);
  }
  return cudaLaunchKernelEx(&config, kernel, group);
}

template <bool kIsConverted>
cudaError_t LaunchGroup(LinearGroup& group, cudaStream_t stream) {
  if (group.count == 0) return cudaSuccess;
  switch (TileRows(group.rows)) {
    case 8:
      return Launch<8, kIsConverted>(group, stream);
    case 32:
      return Launch<32, kIsConverted>(group, stream);
    default:
      return Launch<128, kIsConverted>(group, stream);
  }
}

template <int kN, bool kPer32, Formats kFormats>
cudaError_t LaunchExperts(const ExpertLinearArgs& args, bool only_shared, cudaStream_t stream) {
  using Ring = ExpertRing<kN, kFormats>;
  const auto kernel = ExpertLinearKernel<kN, kPer32, kFormats>;
  if (const cudaError_t error = AllowShared(kernel, Ring::kSharedBytes)) return error;
  const int parts = args.second_matrices == nullptr ? 1 : 2;
  const int jobs = TilesOf(args.linear.weight.rows, Ring::kM) * parts * args.max_tiles;
  unsigned blocks = 0;
  if (const cudaError_t error = BlocksFor(jobs, kN, blocks)) return error;
  kernel<<<blocks, Ring::kThreads, Ring::kSharedBytes, stream>>>(args, only_shared);
  return cudaPeekAtLastError();
}

template <bool kPer32>
cudaError_t LaunchExpertTiles(const ExpertLinearArgs& args, cudaStream_t stream) {
  if (args.tile_rows == 8) return LaunchExperts<8, kPer32, Formats::kBoth>(args, false, stream);
  if (args.tile_rows == 32) return LaunchExperts<32, kPer32, Formats::kBoth>(args, false, stream);
  const bool is_fp4 = args.linear.weight.format == ValueFormat::kFp4;
  if (is_fp4 || args.shared_format == ValueFormat::kFp4) {
    const cudaError_t error = LaunchExperts<128, kPer32, Formats::kFp4>(args, false, stream);
    if (error != cudaSuccess) return error;
  }
  if (is_fp4 && args.shared_format == ValueFormat::kFp4) return cudaSuccess;
  return LaunchExperts<128, kPer32, Formats::kFp8>(args, is_fp4, stream);
}

bool IsSupported(const LinearArgs& args) {
  const bool is_fp8 = args.x_scales != nullptr;
  switch (args.weight.format) {
    case ValueFormat::kFp8:
      return true;
    case ValueFormat::kFp4:
      return is_fp8;
    case ValueFormat::kBf16:
      return !is_fp8;
    case ValueFormat::kF32:
      return false;
  }
  return false;
}

// Not used as stored.
bool NeedsConversion(const LinearArgs& args) {
  return args.weight.format == ValueFormat::kFp4 ||
         (args.weight.format == ValueFormat::kFp8 && args.x_scales == nullptr);
}

}  // namespace

int TileRows(int rows) { return rows <= 8 ? 8 : (rows <= 32 ? 32 : 128); }

cudaError_t RunLinear(const LinearArgs& args, cudaStream_t stream) {
  return RunLinears(&args, 1, stream);
}

cudaError_t RunLinears(const LinearArgs* linears, int count, cudaStream_t stream) {
  if (count == 0 || linears[0].rows == 0) return cudaSuccess;
  if (count > kMaxLinears) return cudaErrorInvalidValue;
  LinearGroup plain = {}, converted = {};
  plain.rows = converted.rows = linears[0].rows;
  for (int i = 0; i < count; ++i) {
    if (!IsSupported(linears[i])) return cudaErrorNotSupported;
    if (linears[i].rows != linears[0].rows) return cudaErrorInvalidValue;
    LinearGroup& group = NeedsConversion(linears[i]) ? converted : plain;
    group.linears[group.count++] = linears[i];
  }
  if (const cudaError_t error = LaunchGroup<false>(plain, stream)) return error;
  return LaunchGroup<true>(converted, stream);
}

cudaError_t RunExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream) {
  if (args.max_tiles == 0) return cudaSuccess;
  return args.promotes_per_32 ? LaunchExpertTiles<true>(args, stream)
                              : LaunchExpertTiles<false>(args, stream);
}

}  // namespace baton::kernels::cuda
