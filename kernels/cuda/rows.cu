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

// Row `index` of the window before a run, by some neighbouring threads of which this is one.
__device__ void TakeOldRow(const RowsArgs& args, int run_index, int index, int thread,
                           int threads) {
  const RunInfo run = args.step.runs[run_index];
  const int reach = args.shape.window - 1, dim = args.shape.head_dim;
  const int64_t position = run.first - reach + index;
  if (run.num_rows == 0 || index >= reach || position < 0) return;
  const RowPlace place = WindowRow(args.slots, run.slot, args.layer, position);
  Bf16* to = args.old_window + (static_cast<int64_t>(run_index) * reach + index) * dim;
  for (int i = thread; i < dim; i += threads) {
    to[i] = EncodeBf16(CachedValue(place.data, place.scales, i, dim - args.shape.rope_dim));
  }
}

// Grid: (sequences, window - 1). Rows from before a run, taken out of the ring before its own rows
// go in.
__global__ void OldWindowKernel(RowsArgs args) {
  TakeOldRow(args, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y),
             static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
}

__device__ void StoreQuery(const RowsArgs& args, int row, float* x) {
  const int low = args.shape.q_lora;
  Bf16* query = args.query_low + static_cast<int64_t>(row) * low;
  LoadRow(query, low, x);
  NormRow(x, low, args.q_norm, args.shape.norm_epsilon);
  for (int i = static_cast<int>(threadIdx.x); i < low; i += kThreads) query[i] = EncodeBf16(x[i]);
  QuantiseRow(x, low, args.query_low8 + static_cast<int64_t>(row) * low);
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

// A score's position bias, by absolute position (model.md 4); whoever reads a score adds it.
__device__ const float* BiasAt(const RowsArgs& args, int64_t position, bool is_index) {
  const int halves = args.ratio == kCsaRatio ? 2 : 1;
  const int width = halves * (is_index ? args.shape.index_dim : args.shape.head_dim);
  return (is_index ? args.index_ape : args.ape) + position % args.ratio * width;
}

// Grid: (rows, roles): the query's low form, the window row.
__global__ void __launch_bounds__(kThreads) RowKernel(RowsArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x);
  if (row >= *args.step.num_rows) return;
  if (blockIdx.y == 0) {
    StoreQuery(args, row, x);
  } else {
    StoreWindowRow(args, args.step.runs[args.step.sequence[row]], row, x);
  }
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

// Up to eight contributions to one entry, in token order: A halves of the window before, B halves
// of its own; rows of this step from the activations, older ones from the slot. In shared memory.
struct Contributions {
  const float* kv[2 * kCsaRatio];
  const float* score[2 * kCsaRatio];
  const float* bias[2 * kCsaRatio];  // null: the score has it
  int first;                         // the entries before it are absent

  // By one thread each; t of the entry whose window before begins at `start`.
  __device__ void Set(const RowsArgs& args, const RunInfo& run, int64_t start, int t,
                      bool is_index) {
    const int dim = is_index ? args.shape.index_dim : args.shape.head_dim;
    const int64_t p = start + t;
    const int half = t / kCsaRatio * dim;
    if (t == 0) first = start < 0 ? kCsaRatio : 0;
    if (p < 0) return;
    if (p < run.first) {
      const float* raw = CsaRaw(args.slots, run.slot, args.rank, p);
      raw += is_index ? 4 * args.shape.head_dim : 0;
      kv[t] = raw + half;
      score[t] = raw + 2 * dim + half;
      bias[t] = nullptr;
    } else {
      const int64_t at = (run.first_row + (p - run.first)) * 2 * dim + half;
      kv[t] = (is_index ? args.index_kv : args.compressor_kv) + at;
      score[t] = (is_index ? args.index_score : args.compressor_score) + at;
      bias[t] = BiasAt(args, p, is_index) + half;
    }
  }

  __device__ float Pooled(int channel) const {
    float s[2 * kCsaRatio], v[2 * kCsaRatio];
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first) continue;
      s[t] = score[t][channel];
      if (bias[t] != nullptr) s[t] += bias[t][channel];
      v[t] = kv[t][channel];
    }
    float max = kMinusInfinity, sum = 0.0f, weighted = 0.0f;
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t >= first) max = t == first ? s[t] : Larger(s[t], max);
    }
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first) continue;
      const float b = ExpNeg(s[t] - max);
      sum = sum + b;
      weighted = Fma(b, v[t], weighted);
    }
    return weighted / sum;
  }
};

// A row that closes an entry pools it.
__device__ void CloseEntry(const RowsArgs& args, int row, bool is_index, float* x) {
  __shared__ Contributions parts;
  const int64_t position = args.step.position[row], entry = position / kCsaRatio;
  if ((position + 1) % kCsaRatio != 0) return;
  const int run_index = args.step.sequence[row], thread = static_cast<int>(threadIdx.x);
  if (thread < 2 * kCsaRatio) {
    parts.Set(args, args.step.runs[run_index], (entry - 1) * kCsaRatio, thread, is_index);
  }
  __syncthreads();
  const int dim = is_index ? args.shape.index_dim : args.shape.head_dim;
  for (int i = thread; i < dim; i += kThreads) x[i] = parts.Pooled(i);
  __syncthreads();
  if (is_index) {
    FinishIndexEntry(args, run_index, entry, x);
  } else {
    FinishEntry(args, run_index, entry, x);
  }
}

// Grid: (rows, main and index).
__global__ void __launch_bounds__(kThreads) CloseCsaKernel(RowsArgs args) {
  __shared__ float x[kMaxHeadDim];
  const int row = static_cast<int>(blockIdx.x);
  if (row < *args.step.num_rows) CloseEntry(args, row, blockIdx.y == 1, x);
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

// to = from + bias, n values; null bias: none.
__device__ void CopyWithBias(const float* from, const float* bias, int n, float* to) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    to[i] = bias == nullptr ? from[i] : from[i] + bias[i];
  }
}

// A raw compressor row that a later step may need: of a verify run all, else the last ones. HCA
// rows outside verify runs are folded instead.
__device__ void KeepRawRow(const RowsArgs& args, int row) {
  const RunInfo run = args.step.runs[args.step.sequence[row]];
  const int index = row - run.first_row, dim = args.shape.head_dim;
  const int64_t position = run.first + index, at = static_cast<int64_t>(row) * 2 * dim;
  const float* kv = args.compressor_kv + at;
  const float* score = args.compressor_score + at;
  const float* bias = BiasAt(args, position, false);
  if (args.ratio == kHcaRatio) {
    if (!run.is_verify) return;
    float* raw = HcaUnverified(args.slots, run.slot, args.rank, position);
    CopyWithBias(kv, nullptr, dim, raw);
    CopyWithBias(score, bias, dim, raw + dim);
    return;
  }
  if (!run.is_verify && index < run.num_rows - kCsaHistory) return;
  float* raw = CsaRaw(args.slots, run.slot, args.rank, position);
  const int index_width = 2 * args.shape.index_dim;
  const int64_t index_at = static_cast<int64_t>(row) * index_width;
  CopyWithBias(kv, nullptr, 2 * dim, raw);
  CopyWithBias(score, bias, 2 * dim, raw + 2 * dim);
  raw += 4 * dim;
  CopyWithBias(args.index_kv + index_at, nullptr, index_width, raw);
  CopyWithBias(args.index_score + index_at, BiasAt(args, position, true), index_width,
               raw + index_width);
}

__global__ void RawRowsKernel(RowsArgs args) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= *args.step.num_rows) return;
  const int run_index = args.step.sequence[row];
  const RunInfo run = args.step.runs[run_index];
  KeepRawRow(args, row);
  if (args.ratio == kHcaRatio && !run.is_verify && row == run.first_row + run.num_rows - 1) {
    KeepHcaState(args, run, run_index);
  }
}

// A short run's HCA rows, by one block: folded in order, entries finished where they close.
__device__ void FoldShortRun(const RowsArgs& args, int run_index, float* x) {
  constexpr int kChannels = kMaxHeadDim / kThreads;
  const RunInfo run = args.step.runs[run_index];
  const int dim = args.shape.head_dim, thread = static_cast<int>(threadIdx.x);
  float* state = HcaState(args.slots, run.slot, args.rank);
  Pool pools[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int channel = thread + c * kThreads;
    if (channel >= dim || run.first % kHcaRatio == 0) continue;
    pools[c] = {state[channel], state[dim + channel], state[2 * dim + channel]};
  }
  for (int i = 0; i < run.num_rows; ++i) {
    const int64_t position = run.first + i;
    const auto phase = static_cast<int>(position % kHcaRatio);
    const float* bias = BiasAt(args, position, false);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int channel = thread + c * kThreads;
      if (channel >= dim) continue;
      if (phase == 0) pools[c] = Pool{};
      const int64_t at = static_cast<int64_t>(run.first_row + i) * 2 * dim + channel;
      pools[c].Add(args.compressor_kv[at], args.compressor_score[at] + bias[channel]);
      x[channel] = pools[c].weighted / pools[c].sum;
    }
    if (phase != kHcaRatio - 1) continue;
    __syncthreads();
    FinishEntry(args, run_index, position / kHcaRatio, x);
  }
  if (run.is_verify) return;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int channel = thread + c * kThreads;
    if (channel >= dim) continue;
    state[channel] = pools[c].max;
    state[dim + channel] = pools[c].sum;
    state[2 * dim + channel] = pools[c].weighted;
  }
}

// All of a short run in one launch: its rows take no place in the rings that something here still
// reads. Grid: (rows, roles); the roles behind kOldWindow take the window before the run.
enum Role { kQuery, kWindowRow, kRaw, kMainEntry, kIndexEntry, kOldWindow };
__global__ void __launch_bounds__(kThreads) StoreShortRunsKernel(RowsArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x), role = static_cast<int>(blockIdx.y);
  if (row >= *args.step.num_rows) return;
  const int run_index = args.step.sequence[row];
  const RunInfo run = args.step.runs[run_index];
  switch (role) {
    case kQuery:
      return StoreQuery(args, row, x);
    case kWindowRow:
      return StoreWindowRow(args, run, row, x);
    case kRaw:
      if (args.ratio != 0) KeepRawRow(args, row);
      return;
    case kMainEntry:
      if (args.ratio == kCsaRatio) CloseEntry(args, row, false, x);
      if (args.ratio == kHcaRatio && row == run.first_row) FoldShortRun(args, run_index, x);
      return;
    case kIndexEntry:
      if (args.ratio == kCsaRatio) CloseEntry(args, row, true, x);
      return;
    default:
      if (row != run.first_row) return;
      TakeOldRow(args, run_index, (role - kOldWindow) * NumWarps() + WarpIndex(), LaneIndex(),
                 kWarp);
  }
}

// One head's values in half a warp: lane l of it holds values l, l + 16, .. (the lanes of R11), at
// most kMost of them. On its way in and out a head passes through shared memory.
constexpr int kHalf = 16;
constexpr int kHeadsOfBlock = kThreads / kHalf;
template <int kMost, bool kIsFull>
struct HeadValues {
  static constexpr int kRow = kMost * kHalf + kHalf;  // bf16 values: halves on banks of their own
  static constexpr int kUsualRope = 4;                // values of a lane
  float x[kMost];
  int own;  // values of a lane

  __device__ int Count() const { return kIsFull ? kMost : own; }

  __device__ static int Lane() { return LaneIndex() % kHalf; }

  __device__ void Load(const Bf16* head, Bf16* row) {
    const auto* from = reinterpret_cast<const uint4*>(head);
#pragma unroll
    for (int i = 0; i < kMost / 8; ++i) {
      const int chunk = i * kHalf + Lane();
      if (chunk < 2 * Count()) reinterpret_cast<uint4*>(row)[chunk] = from[chunk];
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = DecodeBf16(row[j * kHalf + Lane()]);
    }
  }
  // The values are bf16 already.
  __device__ void Store(Bf16* head, Bf16* row, bool is_wanted) const {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) row[j * kHalf + Lane()] = static_cast<Bf16>(BitsOf(x[j]) >> 16);
    }
    __syncwarp();
    auto* to = reinterpret_cast<uint4*>(head);
#pragma unroll
    for (int i = 0; i < kMost / 8; ++i) {
      const int chunk = i * kHalf + Lane();
      if (is_wanted && chunk < 2 * Count()) to[chunk] = reinterpret_cast<const uint4*>(row)[chunk];
    }
  }

  // r(x * rsqrt(mean(x^2) + epsilon)).
  __device__ void Norm(float epsilon) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) sum = Fma(x[j], x[j], sum);
    }
    for (int d = kHalf / 2; d > 0; d /= 2) sum = sum + __shfl_down_sync(kFullWarp, sum, d, kHalf);
    sum = __shfl_sync(kFullWarp, sum, 0, kHalf);
    const float inverse = InverseRms(sum, Count() * kHalf, epsilon);
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = RoundBf16(x[j] * inverse);
    }
  }

  // Rotates the last values by the angles of their pairs.
  __device__ void Rope(const SinCos* angles, int rope) {
    if (kIsFull && rope == kUsualRope * kHalf) {
      RopeFrom(angles, kMost - kUsualRope);
    } else {
      RopeFrom(angles, Count() - rope / kHalf);
    }
  }
  __device__ __forceinline__ void RopeFrom(const SinCos* angles, int first) {
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < first || j >= Count()) continue;
      const float other = __shfl_xor_sync(kFullWarp, x[j], 1);
      const SinCos angle = angles[((j - first) * kHalf + Lane()) / 2];
      const bool is_first = Lane() % 2 == 0;
      const Pair r = Rotate(is_first ? Pair{x[j], other} : Pair{other, x[j]}, angle);
      x[j] = RoundBf16(is_first ? r.a : r.b);
    }
  }

  // As HadamardRow.
  __device__ void Hadamard(float norm) {
#pragma unroll
    for (int distance = 1; distance < kHalf; distance *= 2) {
#pragma unroll
      for (int j = 0; j < kMost; ++j) {
        if (j >= Count()) continue;
        const float other = __shfl_xor_sync(kFullWarp, x[j], distance);
        x[j] = (Lane() & distance) == 0 ? x[j] + other : other - x[j];
      }
    }
#pragma unroll
    for (int distance = 1; distance < kMost; distance *= 2) {
      if (distance >= Count()) break;
#pragma unroll
      for (int j = 0; j < kMost; ++j) {
        if ((j & distance) != 0 || j >= Count()) continue;
        const float a = x[j], b = x[j | distance];
        x[j] = a + b;
        x[j | distance] = a - b;
      }
    }
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = RoundBf16(x[j] * norm);
    }
  }

  // As SimulateFp4Row: a group of 32 is two values of every lane.
  __device__ void SimulateFp4() {
#pragma unroll
    for (int j = 0; j < kMost; j += 2) {
      if (j >= Count()) continue;
      const float amax = Larger(Abs(x[j]), Abs(x[j + 1]));
      const float scale = Fp4ScaleOf(GroupMax(amax, kHalf));
      const float inverse = 1.0f / scale;
      x[j] = RoundE2m1InRange(Clamp(x[j] * inverse, kFp4Max)) * scale;
      x[j + 1] = RoundE2m1InRange(Clamp(x[j + 1] * inverse, kFp4Max)) * scale;
    }
  }
};

// kIsIndex: of the index's queries, else of the main ones; kIsFull: their dimension is the largest.
// Grid: (rows, groups of heads).
template <bool kIsIndex, bool kIsFull>
__global__ void __launch_bounds__(kThreads) QueryKernel(QueryArgs args) {
  constexpr int kMost = (kIsIndex ? kMaxIndexDim : kMaxHeadDim) / kHalf;
  using Values = HeadValues<kMost, kIsFull>;
  __shared__ __align__(16) Bf16 rows[kHeadsOfBlock][Values::kRow];
  __shared__ SinCos angles[kMaxHeadDim / 2];
  const int row = static_cast<int>(blockIdx.x);
  const ModelShape& shape = args.shape;
  if (row >= *args.step.num_rows) return;
  for (int i = static_cast<int>(threadIdx.x); i < shape.rope_dim / 2; i += kThreads) {
    angles[i] = RopeSinCos(RopeAngle(args.step.position[row], args.frequencies[i]));
  }
  __syncthreads();
  const int heads = kIsIndex ? shape.index_heads : shape.heads;
  const int dim = kIsIndex ? shape.index_dim : shape.head_dim;
  const int half = static_cast<int>(threadIdx.x) / kHalf;
  const int wanted = static_cast<int>(blockIdx.y) * kHeadsOfBlock + half;
  const int head = min(wanted, heads - 1);  // whole warps take part in the shuffles
  Bf16* query = kIsIndex ? args.index_query : args.query;
  query += (static_cast<int64_t>(row) * heads + head) * dim;
  Values values;
  values.own = dim / kHalf;
  values.Load(query, rows[half]);
  if constexpr (!kIsIndex) values.Norm(shape.norm_epsilon);
  values.Rope(angles, shape.rope_dim);
  if constexpr (kIsIndex) {
    values.Hadamard(shape.index_norm);
    values.SimulateFp4();
  }
  values.Store(query, rows[half], wanted < heads);
}

// Grid: (rows, pieces of the width).
__global__ void __launch_bounds__(kThreads) QuantiseKernel(QuantiseArgs args) {
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

cudaError_t RunStoreRows(const RowsArgs& args, cudaStream_t stream) {
  const unsigned rows = Unsigned(args.step.rows);
  const ModelShape& shape = args.shape;
  const int longest = shape.q_lora > shape.head_dim ? shape.q_lora : shape.head_dim;
  static_assert(kMaxQueryLow * sizeof(float) <= 48 * 1024);
  const unsigned row_bytes = Unsigned(longest) * static_cast<unsigned>(sizeof(float));
  if (args.has_short_runs) {
    constexpr int kWarps = kThreads / kWarp;
    const dim3 roles(rows, Unsigned(kOldWindow + (shape.window - 1 + kWarps - 1) / kWarps));
    StoreShortRunsKernel<<<roles, kThreads, row_bytes, stream>>>(args);
    return cudaPeekAtLastError();
  }
  if (shape.window > 1) {
    const dim3 old(Unsigned(args.step.sequences), Unsigned(shape.window - 1));
    OldWindowKernel<<<old, 128, 0, stream>>>(args);
  }
  RowKernel<<<dim3(rows, 2), kThreads, row_bytes, stream>>>(args);
  if (args.ratio == kCsaRatio) CloseCsaKernel<<<dim3(rows, 2), kThreads, 0, stream>>>(args);
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
  const auto grid = [&args](int heads) {
    return dim3(Unsigned(args.step.rows), Unsigned((heads + kHeadsOfBlock - 1) / kHeadsOfBlock));
  };
  const auto main =
      args.shape.head_dim == kMaxHeadDim ? QueryKernel<false, true> : QueryKernel<false, false>;
  main<<<grid(args.shape.heads), kThreads, 0, stream>>>(args);
  if (args.index_query == nullptr) return cudaPeekAtLastError();
  const auto index =
      args.shape.index_dim == kMaxIndexDim ? QueryKernel<true, true> : QueryKernel<true, false>;
  index<<<grid(args.shape.index_heads), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunQuantiseRows(const QuantiseArgs& args, cudaStream_t stream) {
  const dim3 grid(Unsigned(args.step.rows), Unsigned((args.width / 8 + kThreads - 1) / kThreads));
  QuantiseKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunFold(const FoldArgs& args, cudaStream_t stream) {
  if (args.num_jobs == 0 || args.num_layers == 0) return cudaSuccess;
  const dim3 grid(Unsigned(args.num_jobs), Unsigned(args.num_layers));
  FoldKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
