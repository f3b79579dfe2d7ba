#include "kernels/cuda/row_values.cuh"
#include "kernels/cuda/store_rows.cuh"

// StoreRows where some run is long: half a warp a row. The window before a run is read first, then
// all rows are stored side by side, then what later steps need takes its place in the rings.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / kHalf;  // of a block of threads
constexpr int kMaxLow = 1024;            // of a query's low form, that half a warp holds
constexpr int kMaxPairs = kMaxIndexDim / 2;
enum Role { kQuery, kWindowRow, kEntries };

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }

__device__ int Thread() { return static_cast<int>(threadIdx.x); }
__device__ int HalfIndex() { return Thread() / kHalf; }
__device__ int FirstRow(int block) { return block * kRows; }

// A row in half a warp; kIsFull: the usual dimensions.
template <bool kIsFull>
using LowValues = RowValues<kMaxLow / kHalf, kIsFull>;
template <bool kIsFull>
using HeadValues = RowValues<kMaxHeadDim / kHalf, kIsFull>;
template <bool kIsFull>
using IndexValues = RowValues<kMaxIndexDim / kHalf, kIsFull>;

// A cached row on its way out: what RowValues::Cache makes, 4 bytes a thread.
struct CachedRow {
  alignas(16) uint8_t bytes[kMaxHeadDim * 2];
  uint8_t scales[kMaxRowScales];

  __device__ void Store(int dim, int rope, const RowPlace& place) const {
    const int nope = dim - rope, lane = LaneIndex() % kHalf;
    for (int i = lane; i < (nope + 2 * rope) / 4; i += kHalf) {
      reinterpret_cast<uint32_t*>(place.data)[i] = reinterpret_cast<const uint32_t*>(bytes)[i];
    }
    if (lane < (nope / kKvGroup + 7) / 8 * 8) place.scales[lane] = scales[lane];
  }
};

// What a half warp needs of shared memory for one row.
union RowShared {
  alignas(16) Bf16 row[LowValues<true>::kRow];
  CachedRow cached;
};

__device__ void SetAngles(SinCos* angles, const RowsArgs& args, const float* frequencies,
                          int64_t position) {
  for (int i = LaneIndex() % kHalf; i < args.shape.rope_dim / 2; i += kHalf) {
    angles[i] = RopeSinCos(RopeAngle(position, frequencies[i]));
  }
  __syncwarp();
}

// The row of this half warp, and whether it is one of the step's.
struct OwnRow {
  int row;
  bool is_live;
};
__device__ OwnRow OwnRowOf(const RowsArgs& args, int block) {
  const int row = FirstRow(block) + HalfIndex(), last = *args.step.num_rows - 1;
  return {min(row, last), row <= last};
}

template <bool kIsFull>
__device__ void StoreLow(const RowsArgs& args, RowShared* rows) {
  const OwnRow own = OwnRowOf(args, static_cast<int>(blockIdx.x));
  const int64_t at = static_cast<int64_t>(own.row) * args.shape.q_lora;
  Bf16* row = rows[HalfIndex()].row;
  LowValues<kIsFull> values;
  values.own = args.shape.q_lora / kHalf;
  values.Load(args.query_low + at, row);
  values.Norm(args.shape.norm_epsilon, args.q_norm);
  values.Store(args.query_low + at, row, own.is_live);
  values.Quantise();
  values.Store(args.query_low8 + at, row, own.is_live);
}

template <bool kIsFull>
__device__ void StoreWindow(const RowsArgs& args, RowShared& shared, SinCos* angles) {
  const OwnRow own = OwnRowOf(args, static_cast<int>(blockIdx.x));
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  const RunInfo run = args.step.runs[args.step.sequence[own.row]];
  const int64_t position = run.first + own.row - run.first_row;
  Bf16* kv = args.kv + static_cast<int64_t>(own.row) * dim;
  SetAngles(angles, args, args.frequencies, position);
  HeadValues<kIsFull> values;
  values.own = dim / kHalf;
  values.Load(kv, shared.row);
  values.Norm(args.shape.norm_epsilon, args.kv_norm);
  values.Rope(angles, rope);
  __syncwarp();
  values.Cache(rope, shared.cached.bytes, shared.cached.scales);
  if (own.is_live && position >= run.first + run.num_rows - args.slots.window_ring) {
    shared.cached.Store(dim, rope, WindowRow(args.slots, run.slot, args.layer, position));
  }
  values.Store(kv, shared.row, own.is_live);
}

// From a pooled entry to its row in the page (model.md 4.3).
template <bool kIsFull>
__device__ void FinishMain(const RowsArgs& args, int row, bool is_wanted, const float* pooled,
                           CachedRow& cached, SinCos* angles) {
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  const int64_t entry = args.step.position[row] / args.ratio;
  SetAngles(angles, args, args.entry_frequencies, entry * args.ratio);
  HeadValues<kIsFull> values;
  values.own = dim / kHalf;
  values.Take(pooled);
  values.Norm(args.shape.norm_epsilon, args.entry_norm);
  values.Rope(angles, rope);
  values.Cache(rope, cached.bytes, cached.scales);
  if (!is_wanted) return;
  cached.Store(dim, rope, EntryPlace(args.step, args.pages, args.step.sequence[row], entry));
}

template <bool kIsFull>
__device__ void FinishIndex(const RowsArgs& args, int row, bool is_wanted, const float* pooled,
                            SinCos* angles) {
  const int64_t entry = args.step.position[row] / args.ratio;
  SetAngles(angles, args, args.entry_frequencies, entry * args.ratio);
  IndexValues<kIsFull> values;
  values.own = args.shape.index_dim / kHalf;
  values.Take(pooled);
  values.Norm(args.shape.norm_epsilon, args.index_entry_norm);
  values.Rope(angles, args.shape.rope_dim);
  values.Hadamard(args.shape.index_norm);
  const RowPlace place = IndexPlace(args.step, args.pages, args.step.sequence[row], entry);
  if (args.pages.has_fp4_index) {
    values.StoreIndexFp4(place.data, place.scales, is_wanted);
  } else {
    values.StoreIndexFp8(place.data, place.scales, is_wanted);
  }
}

// Bit r: row FirstRow(block) + r closes an entry. For all lanes of a warp.
__device__ unsigned ClosingRows(const RowsArgs& args, int block) {
  const int row = FirstRow(block) + LaneIndex();
  const bool closes = LaneIndex() < kRows && row < *args.step.num_rows &&
                      (args.step.position[row] + 1) % args.ratio == 0;
  return __ballot_sync(kFullWarp, closes);
}

// CSA entries that a block's rows close: pooled by all threads, then half a warp each.
struct EntriesShared {
  Contributions parts[2][kRows];  // main, index
  alignas(16) float main[kRows][kMaxHeadDim];
  alignas(16) float index[kRows][kMaxIndexDim];
  CachedRow cached[kRows];
  SinCos angles[kRows][kMaxPairs];
};
template <bool kIsFull>
__device__ void CloseEntries(const RowsArgs& args, EntriesShared& s) {
  const int first = FirstRow(static_cast<int>(blockIdx.x));
  const unsigned closing = ClosingRows(args, static_cast<int>(blockIdx.x));
  const int count = __popc(closing);
  if (count == 0) return;
  constexpr int kParts = 2 * kCsaRatio;
  static_assert(kThreads == kRows * 2 * kParts);
  const int number = Thread() / (2 * kParts), part = Thread() % kParts;
  const bool is_index = Thread() / kParts % 2 == 1;
  if (number < count) {
    const int row = first + static_cast<int>(__fns(closing, 0, number + 1));
    const int64_t entry = args.step.position[row] / kCsaRatio;
    s.parts[is_index ? 1 : 0][number].Set(args, args.step.runs[args.step.sequence[row]],
                                          (entry - 1) * kCsaRatio, part, is_index);
  }
  __syncthreads();
  const int dim = args.shape.head_dim, index_dim = args.shape.index_dim;
  const int fours = (dim + index_dim) / 4;
  for (int i = Thread(); i < count * fours; i += kThreads) {
    const int n = i / fours, channel = i % fours * 4;
    const bool is_main = channel < dim;
    float* to = is_main ? &s.main[n][channel] : &s.index[n][channel - dim];
    float pooled[4];
    s.parts[is_main ? 0 : 1][n].PoolChannels(is_main ? channel : channel - dim, pooled);
    *reinterpret_cast<float4*>(to) = make_float4(pooled[0], pooled[1], pooled[2], pooled[3]);
  }
  __syncthreads();
  // From the other end, so that other warps have them where they are few.
  const int half = HalfIndex(), other = kRows - 1 - half;
  const auto row_of = [&](int n) {
    return first + static_cast<int>(__fns(closing, 0, min(n, count - 1) + 1));
  };
  if (WarpIndex() * 2 < count) {
    FinishMain<kIsFull>(args, row_of(half), half < count, s.main[min(half, count - 1)],
                        s.cached[half], s.angles[half]);
  }
  if (kRows - 2 - WarpIndex() * 2 < count) {
    FinishIndex<kIsFull>(args, row_of(other), other < count, s.index[min(other, count - 1)],
                         s.angles[half]);
  }
}

// HCA: from a row that begins a window, or its run, up to the window's or the run's end; windows
// are independent. A verify run leaves the state as it is: its rows are folded when accepted.
__device__ void FoldFrom(const RowsArgs& args, int row, int channel) {
  const int dim = args.shape.head_dim, run_index = args.step.sequence[row];
  const RunInfo run = args.step.runs[run_index];
  const int64_t position = args.step.position[row];
  float* state = HcaState(args.slots, run.slot, args.rank) + channel;
  Pool pool;
  if (position % kHcaRatio != 0) pool = {state[0], state[dim], state[2 * dim]};
  const int64_t run_end = run.first + run.num_rows;
  const int64_t window_end = (position / kHcaRatio + 1) * kHcaRatio;
  const int64_t end = window_end < run_end ? window_end : run_end;
  const auto count = static_cast<int>(end - position);
  const int64_t at = static_cast<int64_t>(row) * 2 * dim + channel;
  const float* kv = args.compressor_kv + at;
  const float* score = args.compressor_score + at;
  const float* bias = BiasAt(args, position, false) + channel;
#pragma unroll 8
  for (int i = 0; i < count; ++i) pool.Add(kv[2 * dim * i], score[2 * dim * i] + bias[dim * i]);
  if (end == window_end) {
    const int64_t closing = run.first_row + (end - 1 - run.first);
    args.pooled[closing * dim + channel] = pool.weighted / pool.sum;
  }
  if (run.is_verify || end != run_end) return;
  // Not into the slot yet: another block may still have to read the state before the run.
  float* next = args.hca_state + static_cast<int64_t>(run_index) * 3 * dim + channel;
  next[0] = pool.max;
  next[dim] = pool.sum;
  next[2 * dim] = pool.weighted;
}

__device__ void FoldRows(const RowsArgs& args, int piece) {
  const int first = FirstRow(static_cast<int>(blockIdx.x)), row = first + LaneIndex();
  bool starts = LaneIndex() < kRows && row < *args.step.num_rows;
  if (starts) {
    starts = args.step.position[row] % kHcaRatio == 0 ||
             args.step.runs[args.step.sequence[row]].first_row == row;
  }
  unsigned rows = __ballot_sync(kFullWarp, starts);
  const int channel = piece * kThreads + Thread();
  if (channel >= args.shape.head_dim) return;
  for (; rows != 0; rows &= rows - 1)
    FoldFrom(args, first + __ffs(static_cast<int>(rows)) - 1, channel);
}

// Grid: (groups of rows, roles); roles from kEntries on: CSA entries, or pieces of HCA's channels.
template <bool kIsFull>
__global__ void __launch_bounds__(kThreads) StoreLongKernel(RowsArgs args, int first_role) {
  __shared__ union Memory {
    struct {
      RowShared rows[kRows];
      SinCos angles[kRows][kMaxPairs];
    };
    EntriesShared entries;
    __device__ Memory() {}
  } s;
  if (FirstRow(static_cast<int>(blockIdx.x)) >= *args.step.num_rows) return;
  // Those that take longest begin first.
  const int role = first_role + static_cast<int>(gridDim.y - 1 - blockIdx.y), half = HalfIndex();
  if (role == kQuery) return StoreLow<kIsFull>(args, s.rows);
  if (role == kWindowRow) return StoreWindow<kIsFull>(args, s.rows[half], s.angles[half]);
  if (args.ratio == kCsaRatio) return CloseEntries<kIsFull>(args, s.entries);
  FoldRows(args, role - kEntries);
}

// Grid: (sequences, window - 1). Rows from before a run, taken out of the ring before its own rows
// go in.
__global__ void OldWindowKernel(RowsArgs args) {
  TakeOldRows<1>(args, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), Thread(),
                 static_cast<int>(blockDim.x));
}

// Grid: rows. Low forms that are too long for half a warp.
__global__ void StoreLowKernel(RowsArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x);
  if (row < *args.step.num_rows) StoreQuery(args, row, x);
}

// What later steps need, and HCA's entries. Grid: kCsaHistory blocks a sequence, which have every
// kCsaHistory-th row that is kept, then groups of rows.
template <bool kIsFull>
__global__ void __launch_bounds__(kThreads) KeepKernel(RowsArgs args) {
  __shared__ CachedRow cached[kRows];
  __shared__ SinCos angles[kRows][kMaxPairs];
  const int block = static_cast<int>(blockIdx.x), keepers = args.step.sequences * kCsaHistory;
  if (block < keepers) {
    const int run_index = block / kCsaHistory, number = block % kCsaHistory;
    const RunInfo run = args.step.runs[run_index];
    const int first = run.is_verify ? 0 : max(run.num_rows - kCsaHistory, 0);
    for (int i = first + number; i < run.num_rows; i += kCsaHistory) {
      KeepRawRow(args, run.first_row + i);
    }
    if (args.ratio == kHcaRatio && !run.is_verify && number == 0 && run.num_rows > 0) {
      KeepHcaState(args, run, run_index);
    }
    return;
  }
  const int group = block - keepers, first = FirstRow(group), half = HalfIndex();
  const unsigned closing = ClosingRows(args, group), own = 3u << (2 * WarpIndex());
  if ((closing & own) == 0) return;
  const bool closes = (closing >> half & 1u) != 0;
  const int row = closes ? first + half : first + __ffs(static_cast<int>(closing & own)) - 1;
  const float* pooled = args.pooled + static_cast<int64_t>(row) * args.shape.head_dim;
  FinishMain<kIsFull>(args, row, closes, pooled, cached[half], angles[half]);
}

template <bool kIsFull>
cudaError_t Launch(const RowsArgs& args, cudaStream_t stream) {
  const ModelShape& shape = args.shape;
  if (shape.window > 1) {
    const dim3 old(Unsigned(args.step.sequences), Unsigned(shape.window - 1));
    OldWindowKernel<<<old, kThreads, 0, stream>>>(args);
  }
  const bool has_long_low = shape.q_lora > kMaxLow;
  if (has_long_low) {
    const auto bytes = Unsigned(shape.q_lora) * static_cast<unsigned>(sizeof(float));
    StoreLowKernel<<<Unsigned(args.step.rows), kThreads, bytes, stream>>>(args);
  }
  int roles = kEntries;
  if (args.ratio == kCsaRatio) ++roles;
  if (args.ratio == kHcaRatio) roles += (shape.head_dim + kThreads - 1) / kThreads;
  const int first_role = has_long_low ? kWindowRow : kQuery;
  const int groups = (args.step.rows + kRows - 1) / kRows;
  const dim3 grid(Unsigned(groups), Unsigned(roles - first_role));
  StoreLongKernel<kIsFull><<<grid, kThreads, 0, stream>>>(args, first_role);
  if (args.ratio == 0) return cudaPeekAtLastError();
  const int keepers = args.step.sequences * kCsaHistory;
  const int finishers = args.ratio == kHcaRatio ? groups : 0;
  KeepKernel<kIsFull><<<Unsigned(keepers + finishers), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace

cudaError_t RunStoreLongRows(const RowsArgs& args, cudaStream_t stream) {
  const ModelShape& shape = args.shape;
  const bool is_full =
      shape.q_lora == kMaxLow && shape.head_dim == kMaxHeadDim && shape.index_dim == kMaxIndexDim;
  return is_full ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace baton::kernels::cuda
