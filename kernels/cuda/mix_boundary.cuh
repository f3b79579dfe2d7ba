#pragma once

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mix_site.cuh"

// What the kernels of boundaries in one launch have in common: clusters of eight blocks, each with
// three lines of fn; 16 warps with eight columns a thread, some that multiply, and a last one that
// fetches for them, then splits the products and finishes comb.
namespace baton::kernels::cuda {

constexpr int kRanks = 8;
constexpr int kLines = 24;  // of fn
constexpr int kLinesOfRank = kLines / kRanks;
constexpr int kMaxHidden = 4096;
constexpr int kColumnThreads = kMaxHidden / 8;
constexpr int kPiece = 1024;  // columns that come at a time
constexpr uint32_t kProductBytes = (kLines + 1) * sizeof(float);
// Barriers of threads.
constexpr int kPreIsThere = 1;     // to those who have columns
constexpr int kMixedIsThere = 2;   // among these
constexpr int kStreamIsThere = 3;  // one row: and the next ones, to those who multiply

// What a thread needs to leave a site for eight columns.
struct LeaveInput {
  uint4 branch, old[kFewStreams];
  float4 post, comb[kFewStreams];
};
// Here and now, whatever depends on it, and from where all blocks write.
__device__ __forceinline__ uint4 LoadNow(const void* from) {
  uint4 x;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}
__device__ __forceinline__ float4 LoadFourNow(const void* from) {
  const uint4 x = LoadNow(from);
  return make_float4(FloatOf(x.x), FloatOf(x.y), FloatOf(x.z), FloatOf(x.w));
}
__device__ __forceinline__ LeaveInput LoadLeave(const LeaveSiteArgs& args, int row, int column) {
  const int hidden = args.shape.hidden;
  const int64_t first = static_cast<int64_t>(row) * hidden;
  LeaveInput in;
  in.branch = LoadNow(args.branch + first + column);
#pragma unroll
  for (int j = 0; j < kFewStreams; ++j) {
    in.old[j] = LoadNow(args.streams + kFewStreams * first + j * hidden + column);
  }
  in.post = LoadFourNow(args.post + row * kFewStreams);
#pragma unroll
  for (int j = 0; j < kFewStreams; ++j) {
    in.comb[j] = LoadFourNow(args.comb + (row * kFewStreams + j) * kFewStreams);
  }
  return in;
}
__device__ __forceinline__ float Nth(const float4& x, int i) {
  return i < 2 ? (i == 0 ? x.x : x.y) : (i == 2 ? x.z : x.w);
}
// As LeaveEight: store(stream, values).
template <typename Store>
__device__ __forceinline__ void LeaveFour(const LeaveInput& in, const Store& store) {
  float branch[8], old[kFewStreams][8];
  WidenEight(in.branch, branch);
#pragma unroll
  for (int j = 0; j < kFewStreams; ++j) WidenEight(in.old[j], old[j]);
#pragma unroll
  for (int k = 0; k < kFewStreams; ++k) {
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = Nth(in.post, k) * branch[i];
#pragma unroll
    for (int j = 0; j < kFewStreams; ++j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += Nth(in.comb[j], k) * old[j][i];
    }
    store(k, NarrowEight(sum));
  }
}
// As MixEight.
__device__ __forceinline__ void MixFour(const uint4 (&own)[kFewStreams], const float* pre,
                                        float (&sum)[8]) {
#pragma unroll
  for (int s = 0; s < kFewStreams; ++s) {
    float x[8];
    WidenEight(own[s], x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = s == 0 ? pre[s] * x[i] : sum[i] + pre[s] * x[i];
  }
  WidenEight(NarrowEight(sum), sum);
}

__device__ __forceinline__ void LoadNorm(const EnterSiteArgs& args, int column, float (&norm)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) norm[i] = args.norm == nullptr ? 1.0f : args.norm[column + i];
}

// The mixed row: a lane's values (R11) lie together; the pad keeps lanes on banks of their own.
struct MixedRow {
  static constexpr int kSteps = kMaxHidden / kLanes;
  float lanes[kLanes][kSteps + 4];

  __device__ void Store(int column, const float (&u)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) lanes[column % kLanes + i][column / kLanes] = u[i];
  }
  // By a warp. As SquareSum.
  __device__ float SumSquares(int hidden) const {
    const auto* own = reinterpret_cast<const float4*>(lanes[LaneIndex() % kLanes]);
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < hidden / kLanes / 4; ++i) {
      const float4 x = own[i];
      sum = Fma(x.x, x.x, sum);
      sum = Fma(x.y, x.y, sum);
      sum = Fma(x.z, x.z, sum);
      sum = Fma(x.w, x.w, sum);
    }
    for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFullWarp, sum, d, kLanes);
    return __shfl_sync(kFullWarp, sum, 0);
  }
};

// By the threads with columns, once pre is there: mixes and normalises a row, of which this block
// stores some columns. `own`: the row's streams at the thread's columns.
__device__ __forceinline__ void EnterRow(const EnterSiteArgs& args, int row, int column,
                                         bool is_mine, const uint4 (&own)[kFewStreams],
                                         const float (&norm)[8], const float* pre, MixedRow& mixed,
                                         float* inverse) {
  const int hidden = args.shape.hidden;
  float u[8] = {};
  MeetAt(kPreIsThere, kColumnThreads + kWarp);
  if (column < hidden) {
    MixFour(own, pre, u);
    mixed.Store(column, u);
  }
  MeetAt(kMixedIsThere, kColumnThreads);
  if (WarpIndex() == 0) {
    const float value = InverseRms(mixed.SumSquares(hidden), hidden, args.shape.norm_epsilon);
    if (LaneIndex() == 0) *inverse = value;
  }
  MeetAt(kMixedIsThere, kColumnThreads);
  const float scale = *inverse;
  if (!__any_sync(kFullWarp, is_mine)) return;
  float y[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float scaled = u[i] * scale;
    y[i] = args.norm == nullptr ? scaled : norm[i] * scaled;
  }
  const int64_t at = static_cast<int64_t>(row) * hidden + column;
  const uint4 rounded = NarrowEight(y);
  if (is_mine) *reinterpret_cast<uint4*>(args.normed + at) = rounded;
  WidenEight(rounded, y);
  QuantiseEight(y, is_mine, args.normed8 + at);
}

// What a lane of the last warp needs of an output besides its product.
struct OutputScale {
  int kind;  // 0: pre, 1: post, 2: comb
  float base, scale;

  __device__ explicit OutputScale(const EnterSiteArgs& args) {
    const int output = min(LaneIndex(), kLines - 1);
    kind = output < kFewStreams ? 0 : (output < 2 * kFewStreams ? 1 : 2);
    base = args.base[output];
    scale = args.scale[kind];
  }
};
// As SplitMix, an output a lane: pre is there. Returns the lane's logit.
__device__ __forceinline__ float SplitRow(const EnterSiteArgs& args, const OutputScale& output,
                                          const float* products, float* pre) {
  const float inverse =
      InverseRms(products[kLines], kFewStreams * args.shape.hidden, args.shape.norm_epsilon);
  const float logit = products[min(LaneIndex(), kLines - 1)] * inverse * output.scale + output.base;
  if (LaneIndex() < kFewStreams) pre[LaneIndex()] = Sigmoid(logit) + args.shape.mix_epsilon;
  __syncwarp();
  MeetAt(kPreIsThere, kColumnThreads + kWarp);
  return logit;
}
// Stores post and, as FinishComb, comb, whose logits lanes 8 to 23 have.
__device__ __forceinline__ void FinishRow(const EnterSiteArgs& args, int row,
                                          const OutputScale& output, float logit) {
  if (output.kind == 1) {
    args.post[row * kFewStreams + LaneIndex() - kFewStreams] = 2.0f * Sigmoid(logit);
  }
  const float comb = __shfl_sync(kFullWarp, logit, LaneIndex() % 16 + 2 * kFewStreams);
  const float x = SinkhornOfFour(comb, args.shape);
  if (LaneIndex() < 16) args.comb[row * 16 + LaneIndex()] = x;
}

cudaError_t RunBoundaryOfOne(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, cudaStream_t stream);

}  // namespace baton::kernels::cuda
