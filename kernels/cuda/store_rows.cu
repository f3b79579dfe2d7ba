#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/store_rows.cuh"

// StoreRows of short runs, in one launch; of long ones: store_long_rows.cu.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxQueryLow = 8192;

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }

// What a block has in shared memory beside its row.
struct RowShared {
  SinCos angles[kMaxIndexDim / 2];
  Contributions parts;
};

__device__ void StoreWindowRow(const RowsArgs& args, const RunInfo& run, int row, float* x,
                               SinCos* angles) {
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  const int64_t position = run.first + row - run.first_row;
  Bf16* kv = args.kv + static_cast<int64_t>(row) * dim;
  SetAngles(angles, rope / 2, args.frequencies, position);
  LoadRow(kv, dim, x);
  NormRow(x, dim, args.kv_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, rope / 2, angles);
  RowPlace place = {nullptr, nullptr};
  if (position >= run.first + run.num_rows - args.slots.window_ring) {
    place = WindowRow(args.slots, run.slot, args.layer, position);
  }
  EncodeCacheRow(x, dim, rope, place.data, place.scales);
  for (int i = static_cast<int>(threadIdx.x); i < dim; i += kThreads) kv[i] = EncodeBf16(x[i]);
  __syncthreads();
}

// From a pooled entry, rounded, to its row in the page (model.md 4.3).
__device__ void FinishEntry(const RowsArgs& args, int run, int64_t entry, float* x,
                            const SinCos* angles) {
  const int dim = args.shape.head_dim, rope = args.shape.rope_dim;
  const RowPlace place = EntryPlace(args.step, args.pages, run, entry);
  NormRow(x, dim, args.entry_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, rope / 2, angles);
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

__device__ void FinishIndexEntry(const RowsArgs& args, int run, int64_t entry, float* x,
                                 const SinCos* angles) {
  const int dim = args.shape.index_dim;
  const RowPlace place = IndexPlace(args.step, args.pages, run, entry);
  NormRow(x, dim, args.index_entry_norm, args.shape.norm_epsilon);
  RopeRow(x, dim, args.shape.rope_dim / 2, angles);
  HadamardRow(x, dim, args.shape.index_norm);
  if (args.pages.has_fp4_index) {
    EncodeIndexFp4(x, dim, place);
  } else {
    EncodeIndexFp8(x, dim, place);
  }
}

// A row that closes an entry pools it.
__device__ void CloseEntry(const RowsArgs& args, int row, bool is_index, float* x, RowShared& s) {
  const int64_t position = args.step.position[row], entry = position / kCsaRatio;
  if ((position + 1) % kCsaRatio != 0) return;
  const int run_index = args.step.sequence[row], thread = static_cast<int>(threadIdx.x);
  if (thread < 2 * kCsaRatio) {
    s.parts.Set(args, args.step.runs[run_index], (entry - 1) * kCsaRatio, thread, is_index);
  }
  SetAngles(s.angles, args.shape.rope_dim / 2, args.entry_frequencies, entry * kCsaRatio);
  __syncthreads();
  const int dim = is_index ? args.shape.index_dim : args.shape.head_dim;
  for (int i = 2 * thread; i < dim; i += 2 * kThreads) {
    float pooled[2];
    s.parts.PoolChannels(i, pooled);
    x[i] = RoundBf16(pooled[0]);
    x[i + 1] = RoundBf16(pooled[1]);
  }
  __syncthreads();
  if (is_index) {
    FinishIndexEntry(args, run_index, entry, x, s.angles);
  } else {
    FinishEntry(args, run_index, entry, x, s.angles);
  }
}

// A short run's HCA rows, by one block: folded in order, entries finished where they close.
__device__ void FoldShortRun(const RowsArgs& args, int run_index, float* x, SinCos* angles) {
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
    if (phase == kHcaRatio - 1) {
      const int64_t start = position / kHcaRatio * kHcaRatio;
      SetAngles(angles, args.shape.rope_dim / 2, args.entry_frequencies, start);
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int channel = thread + c * kThreads;
      if (channel >= dim) continue;
      if (phase == 0) pools[c] = Pool{};
      const int64_t at = static_cast<int64_t>(run.first_row + i) * 2 * dim + channel;
      pools[c].Add(args.compressor_kv[at], args.compressor_score[at] + bias[channel]);
      if (phase == kHcaRatio - 1) x[channel] = RoundBf16(pools[c].weighted / pools[c].sum);
    }
    if (phase != kHcaRatio - 1) continue;
    __syncthreads();
    FinishEntry(args, run_index, position / kHcaRatio, x, angles);
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
// reads. Grid: (rows, roles); the roles behind kOldWindow take the window before a run, whose
// number is the block's.
enum Role { kQuery, kWindowRow, kRaw, kMainEntry, kIndexEntry, kOldWindow };
constexpr int kOldRows = 4;  // of a warp
__global__ void __launch_bounds__(kThreads, 4) StoreShortRunsKernel(RowsArgs args) {
  extern __shared__ float x[];
  __shared__ RowShared shared;
  StartAfterEarlier();
  const int row = static_cast<int>(blockIdx.x), role = static_cast<int>(blockIdx.y);
  if (role >= kOldWindow) {
    const int warp = (role - kOldWindow) * NumWarps() + WarpIndex();
    if (row < args.step.sequences) {
      TakeOldRows<kOldRows>(args, row, warp * kOldRows, LaneIndex(), kWarp);
    }
    return;
  }
  if (row >= *args.step.num_rows) return;
  const int run_index = args.step.sequence[row];
  const RunInfo run = args.step.runs[run_index];
  switch (role) {
    case kQuery:
      return StoreQuery(args, row, x);
    case kWindowRow:
      return StoreWindowRow(args, run, row, x, shared.angles);
    case kRaw:
      if (args.ratio != 0) KeepRawRow(args, row);
      return;
    case kMainEntry:
      if (args.ratio == kCsaRatio) CloseEntry(args, row, false, x, shared);
      if (args.ratio == kHcaRatio && row == run.first_row)
        FoldShortRun(args, run_index, x, shared.angles);
      return;
    case kIndexEntry:
      if (args.ratio == kCsaRatio) CloseEntry(args, row, true, x, shared);
      return;
    default:
      return;
  }
}

}  // namespace

cudaError_t RunStoreRows(const RowsArgs& args, cudaStream_t stream) {
  if (!args.has_short_runs) return RunStoreLongRows(args, stream);
  const ModelShape& shape = args.shape;
  const int longest = shape.q_lora > shape.head_dim ? shape.q_lora : shape.head_dim;
  static_assert(kMaxQueryLow * sizeof(float) <= 48 * 1024);
  const unsigned row_bytes = Unsigned(longest) * static_cast<unsigned>(sizeof(float));
  constexpr int kOldOfBlock = kOldRows * kThreads / kWarp;
  const dim3 grid(Unsigned(std::max(args.step.rows, args.step.sequences)),
                  Unsigned(kOldWindow + (shape.window - 1 + kOldOfBlock - 1) / kOldOfBlock));
  return EarlyLaunch(grid, kThreads, row_bytes, stream).Run(StoreShortRunsKernel, args);
}

}  // namespace baton::kernels::cuda
