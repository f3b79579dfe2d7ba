#include "kernels/cuda/compressor.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/slots.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCsaRatio = 4;
constexpr int kHcaRatio = 128;
constexpr int kCsaHistory = 8;  // raw rows a later step may need
constexpr int kMaxHeadDim = 512;
constexpr int kMaxIndexDim = 128;
constexpr int kMaxQueryLow = 8192;

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }

// Grid: (sequences, window - 1). Rows from before a run, taken out of the ring before its own rows
// go in.
__global__ void OldWindowKernel(RowsArgs args) {
  const int run_index = static_cast<int>(blockIdx.x), dim = args.shape.head_dim;
  const RunInfo run = args.step.runs[run_index];
  const int reach = args.shape.window - 1;
  const int64_t position = run.first - reach + blockIdx.y;
  if (run.num_rows == 0 || position < 0) return;
  const RowPlace place = WindowRow(args.slots, run.slot, args.layer, position);
  Bf16* to = args.old_window + (static_cast<int64_t>(run_index) * reach + blockIdx.y) * dim;
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += static_cast<int>(blockDim.x)) {
    to[i] = EncodeBf16(CachedValue(place.data, place.scales, i, dim - args.shape.rope_dim));
  }
}

__device__ void StoreQuery(const RowsArgs& args, int row, float* x) {
  const int low = args.shape.q_lora;
  Bf16* query = args.query_low + static_cast<int64_t>(row) * low;
  LoadRow(query, low, x);
  NormRow(x, low, args.q_norm, args.shape.norm_epsilon);
  for (int i = static_cast<int>(threadIdx.x); i < low; i += kThreads) query[i] = EncodeBf16(x[i]);
  QuantiseRow(x, low, args.query_low_codes + static_cast<int64_t>(row) * low,
              args.query_low_scales + static_cast<int64_t>(row) * (low / kFp8Group));
}

__device__ void StoreWindowRow(const RowsArgs& args, const RunInfo& run, int row, float* x) {
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  const int64_t position = run.first + row - run.first_row;
  Bf16* kv = args.kv + static_cast<int64_t>(row) * dim;
  LoadRow(kv, dim, x);
  NormRow(x, dim, args.kv_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, rope / 2, args.frequencies, position);
  RowPlace place = {nullptr, nullptr};
  if (position >= run.first + run.num_rows - args.slots.window_ring) {
    place = WindowRow(args.slots, run.slot, args.layer, position);
  }
  EncodeCacheRow(x, dim, rope, place.data, place.scales);
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) kv[i] = EncodeBf16(x[i]);
  __syncthreads();
}

// The score's position bias, by absolute position (model.md 4).
__device__ void AddBias(const RowsArgs& args, int row) {
  const int phase = args.step.position[row] % args.ratio;
  const int width = (args.ratio == kCsaRatio ? 2 : 1) * args.shape.head_dim;
  float* score = args.compressor_score + static_cast<int64_t>(row) * 2 * args.shape.head_dim;
  const float* ape = args.ape + static_cast<int64_t>(phase) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) score[i] += ape[i];
  if (args.ratio != kCsaRatio) return;
  const int index_width = 2 * args.shape.index_dim;
  float* index_score = args.index_score + static_cast<int64_t>(row) * index_width;
  const float* index_ape = args.index_ape + phase * index_width;
  for (int i = static_cast<int>(threadIdx.x); i < index_width; i += kThreads) {
    index_score[i] += index_ape[i];
  }
}

__global__ void RowKernel(RowsArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x);
  if (row >= *args.step.num_rows) return;
  const RunInfo run = args.step.runs[args.step.sequence[row]];
  StoreQuery(args, row, x);
  StoreWindowRow(args, run, row, x);
  if (args.ratio != 0) AddBias(args, row);
}

// From a pooled entry to its row in the page (model.md 4.3).
__device__ void FinishEntry(const RowsArgs& args, int run, int64_t entry, float* x) {
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += static_cast<int>(blockDim.x)) {
    x[i] = RoundBf16(x[i]);
  }
  __syncthreads();
  NormRow(x, dim, args.entry_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, rope / 2, args.entry_frequencies, entry * args.ratio);
  const RowPlace place = EntryPlace(args.step, args.pages, run, entry);
  EncodeCacheRow(x, dim, rope, place.data, place.scales);
}

__device__ void EncodeIndexFp4(const float* x, int n, const RowPlace& place) {
  for (int group = WarpIndex(); group < n / kFp4Group; group += NumWarps()) {
    const float value = x[group * kFp4Group + LaneIndex()];
    const float scale = Fp4ScaleOf(GroupMax(Abs(value), kWarp));
    const uint32_t code = EncodeE2m1(value / scale);
    const uint32_t next = __shfl_down_sync(kFullWarp, code, 1);
    if (LaneIndex() % 2 == 0) {
      place.data[(group * kFp4Group + LaneIndex()) / 2] = static_cast<uint8_t>(code | next << 4);
    }
    if (LaneIndex() == 0) place.scales[group] = EncodeE8m0(scale);
  }
}

__device__ void EncodeIndexFp8(float* x, int n, const RowPlace& place) {
  SimulateFp4Row(x, n);
  if (WarpIndex() != 0) return;
  float amax = 0.0f;
  for (int i = LaneIndex(); i < n; i += kWarp) amax = Larger(amax, Abs(x[i]));
  const float scale = Fp8ScaleOf(GroupMax(amax, kWarp));
  for (int i = LaneIndex(); i < n; i += kWarp) place.data[i] = EncodeE4m3(x[i] / scale);
  if (LaneIndex() == 0) *reinterpret_cast<float*>(place.scales) = scale;
}

__device__ void FinishIndexEntry(const RowsArgs& args, int run, int64_t entry, float* x) {
  const int dim = args.shape.index_dim;
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += static_cast<int>(blockDim.x)) {
    x[i] = RoundBf16(x[i]);
  }
  __syncthreads();
  NormRow(x, dim, args.index_entry_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, args.shape.rope_dim / 2, args.entry_frequencies, entry * args.ratio);
  HadamardRow(x, dim, args.shape.index_norm);
  const RowPlace place = IndexPlace(args.step, args.pages, run, entry);
  if (args.pages.has_fp4_index) {
    EncodeIndexFp4(x, dim, place);
  } else {
    EncodeIndexFp8(x, dim, place);
  }
}

// Up to eight contributions to one entry, in token order.
struct Contributions {
  const float* kv[2 * kCsaRatio];
  const float* score[2 * kCsaRatio];
  int count = 0;

  __device__ float Pooled(int channel) const {
    float max = score[0][channel];
    for (int t = 1; t < count; ++t) max = Larger(score[t][channel], max);
    float sum = 0.0f, weighted = 0.0f;
    for (int t = 0; t < count; ++t) {
      const float b = ExpNeg(score[t][channel] - max);
      sum = sum + b;
      weighted = Fma(b, kv[t][channel], weighted);
    }
    return weighted / sum;
  }
};

// Grid: rows; those that close an entry pool it: A halves of the window before, B halves of its
// own; rows of this step from the activations, older ones from the slot.
__global__ void CloseCsaKernel(RowsArgs args) {
  __shared__ float x[kMaxHeadDim];
  const int row = static_cast<int>(blockIdx.x);
  if (row >= *args.step.num_rows) return;
  const int64_t position = args.step.position[row];
  if ((position + 1) % kCsaRatio != 0) return;
  const int run_index = args.step.sequence[row];
  const RunInfo run = args.step.runs[run_index];
  const int dim = args.shape.head_dim, index_dim = args.shape.index_dim;
  const int64_t entry = position / kCsaRatio, own = entry * kCsaRatio;
  Contributions main, index;
  for (int64_t p = own < kCsaRatio ? 0 : own - kCsaRatio; p < own + kCsaRatio; ++p) {
    const int half = p < own ? 0 : 1, i = main.count++;
    if (p < run.first) {
      const float* raw = CsaRaw(args.slots, run.slot, args.rank, p);
      main.kv[i] = raw + half * dim;
      main.score[i] = raw + 2 * dim + half * dim;
      index.kv[i] = raw + 4 * dim + half * index_dim;
      index.score[i] = raw + 4 * dim + 2 * index_dim + half * index_dim;
    } else {
      const int64_t r = run.first_row + (p - run.first);
      main.kv[i] = args.compressor_kv + r * 2 * dim + half * dim;
      main.score[i] = args.compressor_score + r * 2 * dim + half * dim;
      index.kv[i] = args.index_kv + r * 2 * index_dim + half * index_dim;
      index.score[i] = args.index_score + r * 2 * index_dim + half * index_dim;
    }
  }
  index.count = main.count;
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) x[i] = main.Pooled(i);
  __syncthreads();
  FinishEntry(args, run_index, entry, x);
  for (int i = static_cast<int>(threadIdx.x); i < index_dim; i += kThreads) x[i] = index.Pooled(i);
  __syncthreads();
  FinishIndexEntry(args, run_index, entry, x);
}

// Grid: (rows, channel pieces). A row that begins a window, or its run, folds up to the window's or
// the run's end; windows are independent. A verify run leaves the state as it is: its rows are
// folded when they are accepted.
__global__ void FoldHcaKernel(RowsArgs args) {
  const int row = static_cast<int>(blockIdx.x), dim = args.shape.head_dim;
  const int channel = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (row >= *args.step.num_rows || channel >= dim) return;
  const int64_t position = args.step.position[row];
  const RunInfo run = args.step.runs[args.step.sequence[row]];
  const bool starts_window = position % kHcaRatio == 0;
  if (!starts_window && row != run.first_row) return;
  float* state = HcaState(args.slots, run.slot, args.rank) + channel;
  Pool pool;
  if (!starts_window) pool = {state[0], state[dim], state[2 * dim]};
  const int64_t run_end = run.first + run.num_rows;
  const int64_t window_end = (position / kHcaRatio + 1) * kHcaRatio;
  const int64_t end = window_end < run_end ? window_end : run_end;
  for (int64_t p = position; p < end; ++p) {
    const int64_t at = (run.first_row + (p - run.first)) * 2 * dim + channel;
    pool.Add(args.compressor_kv[at], args.compressor_score[at]);
  }
  if (end == window_end) {
    const int64_t closing = run.first_row + (end - 1 - run.first);
    args.pooled[closing * dim + channel] = pool.weighted / pool.sum;
  }
  if (run.is_verify || end != run_end) return;
  // Not into the slot yet: another block may still have to read the state before the run.
  float* next = args.hca_state + static_cast<int64_t>(args.step.sequence[row]) * 3 * dim + channel;
  next[0] = pool.max;
  next[dim] = pool.sum;
  next[2 * dim] = pool.weighted;
}

__global__ void FinishHcaKernel(RowsArgs args) {
  __shared__ float x[kMaxHeadDim];
  const int row = static_cast<int>(blockIdx.x), dim = args.shape.head_dim;
  if (row >= *args.step.num_rows) return;
  const int64_t position = args.step.position[row];
  if ((position + 1) % kHcaRatio != 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) {
    x[i] = args.pooled[static_cast<int64_t>(row) * dim + i];
  }
  __syncthreads();
  FinishEntry(args, args.step.sequence[row], position / kHcaRatio, x);
}

__device__ void KeepHcaState(const RowsArgs& args, const RunInfo& run, int run_index) {
  const int width = 3 * args.shape.head_dim;
  float* state = HcaState(args.slots, run.slot, args.rank);
  const float* next = args.hca_state + static_cast<int64_t>(run_index) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) state[i] = next[i];
}

// Raw compressor rows that a later step may need: of a verify run all, else the last ones. HCA rows
// outside verify runs are folded: their state is kept instead.
__global__ void RawRowsKernel(RowsArgs args) {
  const int row = static_cast<int>(blockIdx.x), dim = args.shape.head_dim;
  if (row >= *args.step.num_rows) return;
  const RunInfo run = args.step.runs[args.step.sequence[row]];
  const int index = row - run.first_row;
  if (args.ratio == kHcaRatio && !run.is_verify) {
    if (index == run.num_rows - 1) KeepHcaState(args, run, args.step.sequence[row]);
    return;
  }
  if (!run.is_verify && index < run.num_rows - kCsaHistory) return;
  const float* kv = args.compressor_kv + static_cast<int64_t>(row) * 2 * dim;
  const float* score = args.compressor_score + static_cast<int64_t>(row) * 2 * dim;
  const int thread = static_cast<int>(threadIdx.x);
  if (args.ratio == kHcaRatio) {
    float* raw = HcaUnverified(args.slots, run.slot, args.rank, run.first + index);
    for (int i = thread; i < dim; i += kThreads) {
      raw[i] = kv[i];
      raw[dim + i] = score[i];
    }
    return;
  }
  const int index_width = 2 * args.shape.index_dim;
  float* raw = CsaRaw(args.slots, run.slot, args.rank, run.first + index);
  for (int i = thread; i < 2 * dim; i += kThreads) {
    raw[i] = kv[i];
    raw[2 * dim + i] = score[i];
  }
  for (int i = thread; i < index_width; i += kThreads) {
    raw[4 * dim + i] = args.index_kv[static_cast<int64_t>(row) * index_width + i];
    raw[4 * dim + index_width + i] = args.index_score[static_cast<int64_t>(row) * index_width + i];
  }
}

// Grid: (rows, heads + index heads); one warp-sized-group block a head.
__global__ void QueryKernel(QueryArgs args) {
  __shared__ float x[kMaxHeadDim];
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (row >= *args.step.num_rows) return;
  const ModelShape& shape = args.shape;
  const bool is_index = head >= shape.heads;
  const int dim = is_index ? shape.index_dim : shape.head_dim;
  Bf16* query =
      is_index ? args.index_query +
                     (static_cast<int64_t>(row) * shape.index_heads + (head - shape.heads)) * dim
               : args.query + (static_cast<int64_t>(row) * shape.heads + head) * dim;
  LoadRow(query, dim, x);
  if (!is_index) NormRow(x, dim, nullptr, shape.norm_epsilon);
  RopeRow(x, dim, shape.rope_dim / 2, args.frequencies, args.step.position[row]);
  if (is_index) {
    HadamardRow(x, dim, shape.index_norm);
    SimulateFp4Row(x, dim);
  }
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += static_cast<int>(blockDim.x)) {
    query[i] = EncodeBf16(x[i]);
  }
}

// Grid: (rows, groups of 128). One warp.
__global__ void QuantiseKernel(QuantiseArgs args) {
  __shared__ float x[kFp8Group];
  const int64_t row = blockIdx.x;
  if (row >= *args.step.num_rows) return;
  const int64_t at = row * args.width + blockIdx.y * kFp8Group;
  LoadRow(args.x + at, kFp8Group, x);
  QuantiseRow(x, kFp8Group, args.codes + at, args.scales + at / kFp8Group);
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

cudaError_t RunStoreRows(const RowsArgs& args, cudaStream_t stream) {
  const unsigned rows = Unsigned(args.step.rows);
  const ModelShape& shape = args.shape;
  if (shape.window > 1) {
    const dim3 old(Unsigned(args.step.sequences), Unsigned(shape.window - 1));
    OldWindowKernel<<<old, 128, 0, stream>>>(args);
  }
  const int longest = shape.q_lora > shape.head_dim ? shape.q_lora : shape.head_dim;
  static_assert(kMaxQueryLow * sizeof(float) <= 48 * 1024);
  RowKernel<<<rows, kThreads, Unsigned(longest) * sizeof(float), stream>>>(args);
  if (args.ratio == kCsaRatio) CloseCsaKernel<<<rows, kThreads, 0, stream>>>(args);
  if (args.ratio == kHcaRatio) {
    constexpr int kChannels = 64;
    const dim3 grid(rows, Unsigned((shape.head_dim + kChannels - 1) / kChannels));
    FoldHcaKernel<<<grid, kChannels, 0, stream>>>(args);
    FinishHcaKernel<<<rows, kThreads, 0, stream>>>(args);
  }
  if (args.ratio != 0) RawRowsKernel<<<rows, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunShapeQueries(const QueryArgs& args, cudaStream_t stream) {
  const int heads = args.shape.heads + (args.index_query == nullptr ? 0 : args.shape.index_heads);
  const dim3 grid(Unsigned(args.step.rows), Unsigned(heads));
  static_assert(kMaxIndexDim <= kMaxHeadDim);
  QueryKernel<<<grid, 128, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunQuantiseRows(const QuantiseArgs& args, cudaStream_t stream) {
  const dim3 grid(Unsigned(args.step.rows), Unsigned(args.width / kFp8Group));
  QuantiseKernel<<<grid, kWarp, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunFold(const FoldArgs& args, cudaStream_t stream) {
  if (args.num_jobs == 0 || args.num_layers == 0) return cudaSuccess;
  const dim3 grid(Unsigned(args.num_jobs), Unsigned(args.num_layers));
  FoldKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
