#pragma once

#include "kernels/cuda/compressor.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/slots.cuh"

// What StoreRows does alike for short and for long runs.
namespace baton::kernels::cuda {

constexpr int kCsaRatio = 4;
constexpr int kHcaRatio = 128;
constexpr int kCsaHistory = 8;  // raw rows a later step may need
constexpr int kMaxHeadDim = 512;
constexpr int kMaxIndexDim = 128;

// Row `index` of the window before a run, by some neighbouring threads of which this is one.
__device__ inline void TakeOldRow(const RowsArgs& args, int run_index, int index, int thread,
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

// The low form of a row's query, by a whole block.
__device__ inline void StoreQuery(const RowsArgs& args, int row, float* x) {
  const int low = args.shape.q_lora;
  Bf16* query = args.query_low + static_cast<int64_t>(row) * low;
  LoadRow(query, low, x);
  NormRow(x, low, args.q_norm, args.shape.norm_epsilon);
  for (int i = static_cast<int>(threadIdx.x); i < low; i += static_cast<int>(blockDim.x))
    query[i] = EncodeBf16(x[i]);
  QuantiseRow(x, low, args.query_low8 + static_cast<int64_t>(row) * low);
}

// A score's position bias, by absolute position (model.md 4); whoever reads a score adds it.
__device__ inline const float* BiasAt(const RowsArgs& args, int64_t position, bool is_index) {
  const int halves = args.ratio == kCsaRatio ? 2 : 1;
  const int width = halves * (is_index ? args.shape.index_dim : args.shape.head_dim);
  return (is_index ? args.index_ape : args.ape) + position % args.ratio * width;
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

  // The same of four channels at a time, so that more loads are under way.
  __device__ float4 PooledFour(int channel) const {
    float4 s[2 * kCsaRatio], v[2 * kCsaRatio];
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first) continue;
      s[t] = *reinterpret_cast<const float4*>(score[t] + channel);
      v[t] = *reinterpret_cast<const float4*>(kv[t] + channel);
    }
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first || bias[t] == nullptr) continue;
      const float4 b = *reinterpret_cast<const float4*>(bias[t] + channel);
      s[t] = make_float4(s[t].x + b.x, s[t].y + b.y, s[t].z + b.z, s[t].w + b.w);
    }
    const auto pool = [&](const auto& part) {
      float scores[2 * kCsaRatio], values[2 * kCsaRatio];
#pragma unroll
      for (int t = 0; t < 2 * kCsaRatio; ++t) {
        scores[t] = part(s[t]);
        values[t] = part(v[t]);
      }
      return Softmax(scores, values);
    };
    return make_float4(
        pool([](const float4& x) { return x.x; }), pool([](const float4& x) { return x.y; }),
        pool([](const float4& x) { return x.z; }), pool([](const float4& x) { return x.w; }));
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
    return Softmax(s, v);
  }

 private:
  __device__ float Softmax(const float (&s)[2 * kCsaRatio], const float (&v)[2 * kCsaRatio]) const {
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

__device__ inline void KeepHcaState(const RowsArgs& args, const RunInfo& run, int run_index) {
  const int width = 3 * args.shape.head_dim;
  float* state = HcaState(args.slots, run.slot, args.rank);
  const float* next = args.hca_state + static_cast<int64_t>(run_index) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x))
    state[i] = next[i];
}

// to = from + bias, n values; null bias: none.
__device__ inline void CopyWithBias(const float* from, const float* bias, int n, float* to) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    to[i] = bias == nullptr ? from[i] : from[i] + bias[i];
  }
}

// A raw compressor row that a later step may need: of a verify run all, else the last ones. HCA
// rows outside verify runs are folded instead.
__device__ inline void KeepRawRow(const RowsArgs& args, int row) {
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

}  // namespace baton::kernels::cuda
