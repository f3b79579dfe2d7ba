#pragma once

#include "kernels/cuda/compressor.cuh"
#include "kernels/cuda/mma.cuh"
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

// kCount rows from `first` on of the window before a run, by some neighbouring threads of which
// this is one: eight values at a time, of all the rows together, so that their loads are under way.
template <int kCount>
__device__ void TakeOldRows(const RowsArgs& args, int run_index, int first, int thread,
                            int threads) {
  const RunInfo run = args.step.runs[run_index];
  const int reach = args.shape.window - 1, dim = args.shape.head_dim;
  const int of_codes = (dim - args.shape.rope_dim) / 8;
  if (run.num_rows == 0) return;
  const uint8_t *data[kCount], *scales[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const int64_t position = run.first - reach + first + r;
    const bool is_there = first + r < reach && position >= 0;
    const RowPlace place = WindowRow(args.slots, run.slot, args.layer, is_there ? position : 0);
    data[r] = is_there ? place.data : nullptr;
    scales[r] = place.scales;
  }
  Bf16* to = args.old_window + (static_cast<int64_t>(run_index) * reach + first) * dim;
  for (int part = thread; part < dim / 8; part += threads) {
    const bool is_code = part < of_codes;
    uint4 stored[kCount];
    float scale[kCount];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      if (data[r] == nullptr) continue;
      const auto* from = reinterpret_cast<const uint2*>(data[r]);
      const uint2 low = from[is_code ? part : 2 * part - of_codes];
      const uint2 high = is_code ? uint2{} : from[2 * part - of_codes + 1];
      stored[r] = make_uint4(low.x, low.y, high.x, high.y);
      scale[r] = is_code ? DecodeE8m0(scales[r][part / (kKvGroup / 8)]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      if (data[r] == nullptr) continue;
      if (is_code) stored[r] = WidenEight(make_uint2(stored[r].x, stored[r].y), scale[r]);
      reinterpret_cast<uint4*>(to + r * dim)[part] = stored[r];
    }
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

  // kWide channels from an even one on, or one divisible by four: all loads are under way together.
  template <int kWide>
  __device__ void PoolChannels(int channel, float (&pooled)[kWide]) const {
    float s[kWide][2 * kCsaRatio], v[kWide][2 * kCsaRatio];
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first) continue;
      const auto scores = LoadWide<kWide>(score[t] + channel);
      const auto values = LoadWide<kWide>(kv[t] + channel);
#pragma unroll
      for (int c = 0; c < kWide; ++c) {
        s[c][t] = scores.x[c];
        v[c][t] = values.x[c];
      }
    }
#pragma unroll
    for (int t = 0; t < 2 * kCsaRatio; ++t) {
      if (t < first || bias[t] == nullptr) continue;
      const auto biases = LoadWide<kWide>(bias[t] + channel);
#pragma unroll
      for (int c = 0; c < kWide; ++c) s[c][t] += biases.x[c];
    }
#pragma unroll
    for (int c = 0; c < kWide; ++c) pooled[c] = Softmax(s[c], v[c]);
  }

 private:
  template <int kWide>
  struct alignas(4 * kWide) Wide {
    float x[kWide];
  };
  template <int kWide>
  __device__ static Wide<kWide> LoadWide(const float* from) {
    return *reinterpret_cast<const Wide<kWide>*>(from);
  }
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

// to = from + bias, n values, a multiple of four; null bias: none.
__device__ inline void CopyWithBias(const float* from, const float* bias, int n, float* to) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < n / 4; i += threads) {
    float4 x = reinterpret_cast<const float4*>(from)[i];
    if (bias != nullptr) {
      const float4 b = reinterpret_cast<const float4*>(bias)[i];
      x = make_float4(x.x + b.x, x.y + b.y, x.z + b.z, x.w + b.w);
    }
    reinterpret_cast<float4*>(to)[i] = x;
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
