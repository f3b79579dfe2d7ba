#pragma once

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/code_order.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mix_site.cuh"

// What the kernels of boundaries in one launch have in common: clusters of eight blocks, each of
// which multiplies two of R11's lanes with all lines of fn, fetched a piece at a time. What bounds
// them is the order of a product's sum, 1,024 additions a lane: a lane's steps lie together, so
// that a thread gets some at once, and a thread has several lines and rows where there are many.
namespace baton::kernels::cuda {

constexpr int kRanks = 8;
constexpr int kLanesOfRank = kLanes / kRanks;
constexpr int kLines = 24;  // of fn
constexpr int kMaxHidden = 4096;
constexpr int kMaxRowSteps = kMaxHidden / kLanes;  // of a lane of a stream, or of the mixed row,
constexpr int kMaxSteps = kFewStreams * kMaxRowSteps;  // of all streams
constexpr int kPieceSteps = 128;
constexpr int kPieceValues = kPieceSteps * kLines;  // of fn, of a lane
constexpr int kPreOutputs = kFewStreams + 1;        // that all blocks need: pre, and x . x

// What a thread needs to leave a site for eight columns.
struct LeaveInput {
  uint4 branch, old[kFewStreams];
  float4 post, comb[kFewStreams];
};
// Here and now, whatever depends on it.
__device__ __forceinline__ uint4 LoadNow(const void* from) {
  uint4 x;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
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
__device__ __forceinline__ uint4 MixFour(const uint4 (&streams)[kFewStreams], const float4& pre) {
  float sum[8];
#pragma unroll
  for (int s = 0; s < kFewStreams; ++s) {
    float x[8];
    WidenEight(streams[s], x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = s == 0 ? pre.x * x[i] : sum[i] + Nth(pre, s) * x[i];
  }
  return NarrowEight(sum);
}

__device__ __forceinline__ void LoadNorm(const EnterSiteArgs& args, int column, float (&norm)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) norm[i] = args.norm == nullptr ? 1.0f : args.norm[column + i];
}

// Eight columns of the mixed row, normed, and rounded to fp8 too. By whole warps.
__device__ __forceinline__ void StoreNormed(const EnterSiteArgs& args, int row, int column,
                                            bool is_mine, const float (&u)[8],
                                            const float (&norm)[8], float inverse) {
  float y[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float scaled = u[i] * inverse;
    y[i] = args.norm == nullptr ? scaled : norm[i] * scaled;
  }
  const int64_t at = static_cast<int64_t>(row) * args.shape.hidden + column;
  const uint4 rounded = NarrowEight(y);
  if (is_mine) *reinterpret_cast<uint4*>(args.normed + at) = rounded;
  WidenEight(rounded, y);
  QuantiseEight(y, is_mine, args.normed8 + at);
}

// Value i of eight bf16 ones.
__device__ __forceinline__ float Nth(const uint4& eight, int i) {
  const uint32_t pair = i < 4 ? (i < 2 ? eight.x : eight.y) : (i < 6 ? eight.z : eight.w);
  return FloatOf(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}
// R11's tree over a value of every lane, by one thread.
__device__ __forceinline__ float AddLanes(float (&v)[kLanes]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] += v[i + 8];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] += v[i + 4];
  return (v[0] + v[2]) + (v[1] + v[3]);
}
__device__ __forceinline__ float TreeOfLanes(const float* lanes) {
  float v[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(lanes + i);
    v[i] = x.x;
    v[i + 1] = x.y;
    v[i + 2] = x.z;
    v[i + 3] = x.w;
  }
  return AddLanes(v);
}
// Of values that lie in pairs.
__device__ __forceinline__ float TreeOfLanes(const float2* lanes, bool is_second) {
  float v[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; i += 2) {
    const float4 x = *reinterpret_cast<const float4*>(lanes + i);
    v[i] = is_second ? x.y : x.x;
    v[i + 1] = is_second ? x.w : x.z;
  }
  return AddLanes(v);
}
// sum += x * x of `steps` bf16 steps, a multiple of 32, in order. By whole warps.
__device__ __forceinline__ float SquareSteps(const Bf16* x, int steps, float sum) {
  struct Sixteen {
    uint4 x[2];
  };
  const auto load = [x](int step) {
    const auto* from = reinterpret_cast<const uint4*>(x + step);
    return Sixteen{{from[0], from[1]}};
  };
  const auto add = [&sum](const Sixteen& in) {
#pragma unroll
    for (int i = 0; i < 16; ++i) sum = Fma(Nth(in.x[i / 8], i % 8), Nth(in.x[i / 8], i % 8), sum);
  };
  Sixteen even = load(0);
#pragma unroll 1
  for (int step = 0; step < steps; step += 32) {
    const Sixteen odd = load(step + 16);
    __syncwarp();  // keeps loads ahead of what they are for
    add(even);
    even = load(min(step + 32, steps - 32));
    __syncwarp();
    add(odd);
  }
  return sum;
}

// Two lanes' pieces of fn, to come for a barrier.
__device__ __forceinline__ void FetchPiece(const float* fn, int rank, int steps, int piece,
                                           const float* first, const float* second,
                                           uint32_t barrier) {
  BarrierExpect(barrier, kLanesOfRank * kPieceValues * sizeof(float));
  const float* from = fn + (int64_t{rank} * kLanesOfRank * steps + piece * kPieceSteps) * kLines;
  CopyBulk(SharedAddress(first), from, kPieceValues * sizeof(float), barrier);
  CopyBulk(SharedAddress(second), from + int64_t{steps} * kLines, kPieceValues * sizeof(float),
           barrier);
}

// What makes a logit of an output's product.
struct OutputScale {
  float base, scale;

  __device__ OutputScale(const EnterSiteArgs& args, int output) {
    base = args.base[output];
    scale = args.scale[min(output / kFewStreams, 2)];
  }
  __device__ float Logit(float product, float inverse) const {
    return product * inverse * scale + base;
  }
};

cudaError_t RunBoundaryOfOne(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, cudaStream_t stream);

}  // namespace baton::kernels::cuda
