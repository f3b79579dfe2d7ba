#include "kernels/cuda/compressor.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_values.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/slots.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHcaRatio = 128;
constexpr int kMaxHeadDim = 512;
constexpr int kMaxIndexDim = 128;
constexpr int kHeadsOfBlock = kThreads / kHalf;

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }

struct QueryShared {
  alignas(16) Bf16 rows[kHeadsOfBlock][kMaxHeadDim + kHalf];
  SinCos angles[kMaxHeadDim / 2];
};
static_assert(RowValues<kMaxHeadDim / kHalf, true>::kRow == kMaxHeadDim + kHalf);

// A group of heads of a row. kIsIndex: of the index's queries, else of the main ones; kIsFull:
// their dimension is the largest.
template <bool kIsIndex, bool kIsFull>
__device__ void ShapeHeads(const QueryArgs& args, int row, int group, QueryShared& s) {
  using Values = RowValues<(kIsIndex ? kMaxIndexDim : kMaxHeadDim) / kHalf, kIsFull>;
  const ModelShape& shape = args.shape;
  const int heads = kIsIndex ? shape.index_heads : shape.heads;
  const int dim = kIsIndex ? shape.index_dim : shape.head_dim;
  const int half = static_cast<int>(threadIdx.x) / kHalf;
  const int wanted = group * kHeadsOfBlock + half;
  const int head = min(wanted, heads - 1);  // whole warps take part in the shuffles
  Bf16* query = kIsIndex ? args.index_query : args.query;
  query += (static_cast<int64_t>(row) * heads + head) * dim;
  Values values;
  values.own = dim / kHalf;
  values.Load(query, s.rows[half]);
  if constexpr (!kIsIndex) values.Norm(shape.norm_epsilon);
  values.Rope(s.angles, shape.rope_dim);
  if constexpr (kIsIndex) {
    values.Hadamard(shape.index_norm);
    values.SimulateFp4();
  }
  values.Store(query, s.rows[half], wanted < heads);
}

// Grid: (rows, groups of main heads, then of index heads).
template <bool kIsFull>
__global__ void __launch_bounds__(kThreads) QueryKernel(QueryArgs args, int main_groups) {
  __shared__ QueryShared s;
  StartAfterEarlier();
  const int row = static_cast<int>(blockIdx.x), group = static_cast<int>(blockIdx.y);
  if (row >= *args.step.num_rows) return;
  for (int i = static_cast<int>(threadIdx.x); i < args.shape.rope_dim / 2; i += kThreads) {
    s.angles[i] = RopeSinCos(RopeAngle(args.step.position[row], args.frequencies[i]));
  }
  __syncthreads();
  if (group < main_groups) {
    ShapeHeads<false, kIsFull>(args, row, group, s);
  } else {
    ShapeHeads<true, kIsFull>(args, row, group - main_groups, s);
  }
}

// Grid: (rows, pieces of the width).
__global__ void __launch_bounds__(kThreads) QuantiseKernel(QuantiseArgs args) {
  StartAfterEarlier();
  const int64_t row = blockIdx.x;
  if (row >= *args.step.num_rows) return;
  const int column = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const bool has_values = column < args.width;
  const int64_t at = row * args.width + column;
  float x[8] = {};
  if (has_values) LoadEight(args.x + at, x);
  QuantiseEight(x, has_values, args.quantised + at);
}

// Grid: (jobs, HCA layers).
__global__ void FoldKernel(FoldArgs args) {
  const FoldJob job = args.jobs[blockIdx.x];
  const int rank = static_cast<int>(blockIdx.y), dim = args.slots.head_dim;
  for (int channel = static_cast<int>(threadIdx.x); channel < dim; channel += kThreads) {
    float* state = HcaState(args.slots, job.slot, rank) + channel;
    Pool pool = {state[0], state[dim], state[2 * dim]};
    for (int64_t p = job.from; p < job.to; ++p) {
      if (p % kHcaRatio == 0) pool = Pool{};
      const float* raw = HcaUnverified(args.slots, job.slot, rank, p) + channel;
      pool.Add(raw[0], raw[dim]);
    }
    state[0] = pool.max;
    state[dim] = pool.sum;
    state[2 * dim] = pool.weighted;
  }
}

}  // namespace

cudaError_t RunShapeQueries(const QueryArgs& args, cudaStream_t stream) {
  const ModelShape& shape = args.shape;
  const auto groups_of = [](int heads) { return (heads + kHeadsOfBlock - 1) / kHeadsOfBlock; };
  const int main_groups = groups_of(shape.heads);
  const int index_groups = args.index_query == nullptr ? 0 : groups_of(shape.index_heads);
  const dim3 grid(Unsigned(args.step.rows), Unsigned(main_groups + index_groups));
  const bool is_full = shape.head_dim == kMaxHeadDim && shape.index_dim == kMaxIndexDim;
  const auto kernel = is_full ? QueryKernel<true> : QueryKernel<false>;
  return EarlyLaunch(grid, kThreads, 0, stream).Run(kernel, args, main_groups);
}

cudaError_t RunQuantiseRows(const QuantiseArgs& args, cudaStream_t stream) {
  const dim3 grid(Unsigned(args.step.rows), Unsigned((args.width / 8 + kThreads - 1) / kThreads));
  return EarlyLaunch(grid, kThreads, 0, stream).Run(QuantiseKernel, args);
}

cudaError_t RunFold(const FoldArgs& args, cudaStream_t stream) {
  if (args.num_jobs == 0 || args.num_layers == 0) return cudaSuccess;
  const dim3 grid(Unsigned(args.num_jobs), Unsigned(args.num_layers));
  FoldKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
