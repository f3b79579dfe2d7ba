#pragma once

#include "kernels/cuda/mix.h"
#include "kernels/cuda/row_math.cuh"

// What the kernels of mHC borders do to a row (model.md 2).
namespace baton::kernels::cuda {

constexpr int kLanes = 16;      // of a product's sum (R11)
constexpr int kFewStreams = 4;  // the usual number, unrolled

// Eight columns of all streams, at most kMost, as bf16 to store(stream, values).
template <int kMost, typename Store>
__device__ __forceinline__ void LeaveEight(const LeaveSiteArgs& args, int row, int column,
                                           const Store& store) {
  const int hidden = args.shape.hidden, num_streams = args.shape.streams;
  const float* post = args.post + row * num_streams;
  const float* comb = args.comb + row * num_streams * num_streams;
  const Bf16* streams = args.streams + static_cast<int64_t>(row) * num_streams * hidden + column;
  float branch[8], old[kMost][8];
  LoadEight(args.branch + static_cast<int64_t>(row) * hidden + column, branch);
#pragma unroll
  for (int j = 0; j < kMost; ++j) {
    if (j < num_streams) LoadEight(streams + j * hidden, old[j]);
  }
#pragma unroll
  for (int k = 0; k < kMost; ++k) {
    if (k >= num_streams) break;
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = post[k] * branch[i];
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= num_streams) break;
      const float share = comb[j * num_streams + k];
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += share * old[j][i];
    }
    __align__(16) Bf16 values[8];
    StoreEight(sum, values);
    store(k, *reinterpret_cast<const uint4*>(values));
  }
}

// Eight bf16 values of 16 bytes to fp32, and back, rounded.
__device__ __forceinline__ void WidenEight(const uint4& words, float (&x)[8]) {
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = FloatOf(pairs[i] << 16);
    x[2 * i + 1] = FloatOf(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 NarrowEight(const float (&x)[8]) {
  return make_uint4(PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]),
                    PackBf16(x[6], x[7]));
}

// Two neighbouring values.
__device__ __forceinline__ float2 LoadTwo(const Bf16* x) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(x);
  return make_float2(FloatOf(pair << 16), FloatOf(pair & 0xffff0000u));
}
// R11's tree over the lanes 2 t and 2 t + 1 that each of eight threads has.
__device__ __forceinline__ float SumOfLanes(float2 lanes) {
  for (int d = kLanes / 4; d > 0; d /= 2) {
    lanes.x += __shfl_down_sync(kFullWarp, lanes.x, d, kLanes / 2);
    lanes.y += __shfl_down_sync(kFullWarp, lanes.y, d, kLanes / 2);
  }
  return lanes.x + lanes.y;
}
__device__ __forceinline__ int NumOutputs(const EnterSiteArgs& args) {
  const int n = args.shape.streams;
  return args.is_head ? n : (2 + n) * n;
}

// comb is square; line `line` of it, a row or a column, is divided by its sum + epsilon.
__device__ __forceinline__ void NormaliseLine(float* comb, int size, bool is_row, float epsilon) {
  const int line = LaneIndex();
  if (line < size) {
    float sum = 0.0f;
    float* first = comb + (is_row ? line * size : line);
    const int step = is_row ? 1 : size;
    for (int i = 0; i < size; ++i) sum += first[i * step];
    const float divisor = sum + epsilon;
    for (int i = 0; i < size; ++i) first[i * step] /= divisor;
  }
  __syncwarp();
}

// comb [S, S] from its logits: row softmax + epsilon, then Sinkhorn rounds (model.md 2.3).
__device__ __forceinline__ void Sinkhorn(float* comb, const ModelShape& shape) {
  const int n = shape.streams;
  if (LaneIndex() < n) {
    float* row = comb + LaneIndex() * n;
    float largest = row[0], sum = 0.0f;
    for (int i = 1; i < n; ++i) largest = Larger(row[i], largest);
    for (int i = 0; i < n; ++i) {
      row[i] = ExpNeg(row[i] - largest);
      sum += row[i];
    }
    for (int i = 0; i < n; ++i) row[i] = row[i] / sum + shape.mix_epsilon;
  }
  __syncwarp();
  NormaliseLine(comb, n, false, shape.mix_epsilon);
  for (int i = 1; i < shape.sinkhorn_iterations; ++i) {
    NormaliseLine(comb, n, true, shape.mix_epsilon);
    NormaliseLine(comb, n, false, shape.mix_epsilon);
  }
}

// x / d, rounded as `/` does where neither is near the ends of fp32's range.
__device__ __forceinline__ float DivideInRange(float x, float d) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(d));
  const float near = x * inverse;
  const float nearer = Fma(inverse, Fma(-d, near, x), near);
  const float exact = Fma(inverse, Fma(-d, inverse, 1.0f), inverse);
  return Fma(exact, Fma(-d, nearer, x), nearer);
}

// The same for four streams of two rows, an element a lane. Sums have the same order.
__device__ __forceinline__ float SinkhornOfFour(float x, const ModelShape& shape) {
  const int row = LaneIndex() / 4 * 4, column = LaneIndex() / 16 * 16 + LaneIndex() % 4;
  float largest = __shfl_sync(kFullWarp, x, row);
#pragma unroll
  for (int i = 1; i < 4; ++i) largest = Larger(__shfl_sync(kFullWarp, x, row + i), largest);
  x = ExpNeg(x - largest);
  const auto sum_of = [&x](int first, int step) {
    float sum = __shfl_sync(kFullWarp, x, first);
#pragma unroll
    for (int i = 1; i < 4; ++i) sum += __shfl_sync(kFullWarp, x, first + i * step);
    return sum;
  };
  const float epsilon = shape.mix_epsilon;
  const auto normalise = [&](const auto& divide) {
    x = x / sum_of(row, 1) + epsilon;
    x = divide(x, sum_of(column, 4) + epsilon);
#pragma unroll 1
    for (int i = 1; i < shape.sinkhorn_iterations; ++i) {
      x = divide(x, sum_of(row, 1) + epsilon);
      x = divide(x, sum_of(column, 4) + epsilon);
    }
  };
  constexpr float kUsual = 1e-12f;  // from here on all values and sums lie within 1e-13 .. 5
  if (epsilon >= kUsual) {
    normalise(DivideInRange);
  } else {
    normalise([](float a, float b) { return a / b; });
  }
  return x;
}

// By one warp: pre into shared memory, post to the row's place, comb's logits into shared memory.
__device__ __forceinline__ void SplitMix(const EnterSiteArgs& args, int row, const float* products,
                                         float* pre, float* comb) {
  const int n = args.shape.streams, outputs = NumOutputs(args);
  const float inverse =
      InverseRms(products[outputs], n * args.shape.hidden, args.shape.norm_epsilon);
  for (int i = LaneIndex(); i < outputs; i += kWarp) {
    const float product = products[i] * inverse;
    if (i < n) {
      pre[i] = Sigmoid(product * args.scale[0] + args.base[i]) + args.shape.mix_epsilon;
    } else if (i < 2 * n) {
      args.post[row * n + i - n] = 2.0f * Sigmoid(product * args.scale[1] + args.base[i]);
    } else {
      comb[i - 2 * n] = product * args.scale[2] + args.base[i];
    }
  }
  __syncwarp();
}

__device__ __forceinline__ void FinishComb(const EnterSiteArgs& args, int row, float* comb) {
  const int n = args.shape.streams;
  if (n == kFewStreams) {
    const float x = SinkhornOfFour(comb[LaneIndex() % 16], args.shape);
    if (LaneIndex() < 16) args.comb[row * 16 + LaneIndex()] = x;
    return;
  }
  Sinkhorn(comb, args.shape);
  for (int i = LaneIndex(); i < n * n; i += kWarp) args.comb[row * n * n + i] = comb[i];
}

// u of eight columns: sum of pre[s] * streams[s], rounded.
template <int kMost>
__device__ __forceinline__ void MixEight(const Bf16* streams, const ModelShape& shape,
                                         const float* pre, float (&sum)[8]) {
  float x[kMost][8];
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s < shape.streams) LoadEight(streams + s * shape.hidden, x[s]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = pre[0] * x[0][i];
#pragma unroll
  for (int s = 1; s < kMost; ++s) {
    if (s >= shape.streams) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += pre[s] * x[s][i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = RoundBf16(sum[i]);
}

// Eight columns of the row x, normed, and rounded to fp8 too. By whole warps.
__device__ __forceinline__ void StoreNormed(const EnterSiteArgs& args, int row, int column,
                                            bool has_values, const float* x, float inverse) {
  const int64_t at = static_cast<int64_t>(row) * args.shape.hidden + column;
  float y[8] = {};
  if (has_values) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float scaled = x[column + i] * inverse;
      y[i] = RoundBf16(args.norm == nullptr ? scaled : args.norm[column + i] * scaled);
    }
    StoreEight(y, args.normed + at);
  }
  if (args.normed8 == nullptr) return;
  QuantiseEight(y, has_values, args.normed8 + at);
}

}  // namespace baton::kernels::cuda
