#pragma once

#include "kernels/cuda/sample_shared.cuh"

// A block's slice of a row's logits and scores, and the loops over it.
namespace baton::kernels::cuda {

template <int kRanks, bool kKeepsScores>
class SliceScores {
 public:
  // Scores of a block, in whole Philox blocks.
  __host__ __device__ static int SliceOf(int n) { return (n + 4 * kRanks - 1) / (4 * kRanks) * 4; }

 protected:
  static constexpr int kThreads = kSampleThreads;

  // `scores`: room for the slice's, where they are kept.
  __device__ SliceScores(const SampleRowArgs& row, const float* logits, int n, float* scores)
      : row_(row), is_wide_(n % 4 == 0), rank_(static_cast<int>(blockIdx.x) % kRanks), x_(scores) {
    const int per_rank = SliceOf(n);
    first_ = min(rank_ * per_rank, n);
    count_ = min(per_rank, n - first_);
    logits_ = logits + first_;
  }

  __device__ static int Thread() { return static_cast<int>(threadIdx.x); }

  // Raw logits of four tokens of the slice.
  __device__ float4 LogitsAt(int at) const {
    if (is_wide_) return __ldcg(reinterpret_cast<const float4*>(logits_ + at));
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = at + i < count_ ? logits_[at + i] : kForbidden;
    return make_float4(x[0], x[1], x[2], x[3]);
  }
  // The same without those that are not allowed.
  __device__ float4 AllowedAt(int at) const {
    float4 x = LogitsAt(at);
    if (row_.allowed == nullptr) return x;
    const uint32_t bits = row_.allowed[(first_ + at) / 32] >> ((first_ + at) % 32);
    if ((bits & 1u) == 0) x.x = kForbidden;
    if ((bits & 2u) == 0) x.y = kForbidden;
    if ((bits & 4u) == 0) x.z = kForbidden;
    if ((bits & 8u) == 0) x.w = kForbidden;
    return x;
  }
  __device__ float4 ScoresAt(int at) const {
    if constexpr (kKeepsScores) return *reinterpret_cast<const float4*>(x_ + at);
    return AllowedAt(at);
  }

  // visit(at, source(at)) for all fours of the slice, by whole warps, kAtOnce of a thread at a
  // time; behind its end they are forbidden.
  template <int kAtOnce, typename Source, typename Visit>
  __device__ void ForFours(const Source& source, const Visit& visit) const {
    for (int base = 4 * Thread(); base - 4 * LaneIndex() < count_; base += 4 * kAtOnce * kThreads) {
      float4 x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = base + 4 * j * kThreads;
        x[j] =
            at < count_ ? source(at) : make_float4(kForbidden, kForbidden, kForbidden, kForbidden);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) visit(base + 4 * j * kThreads, x[j]);
    }
  }
  template <int kAtOnce = 4, typename Visit>
  __device__ void ForScores(const Visit& visit) const {
    ForFours<kAtOnce>([this](int at) { return ScoresAt(at); }, visit);
  }
  template <typename Visit>
  __device__ void ForLogits(const Visit& visit) const {
    ForFours<4>([this](int at) { return LogitsAt(at); }, visit);
  }
  // visit(i, x), one token after the other.
  template <typename Visit>
  __device__ void ForTokens(const Visit& visit) const {
    ForScores<1>([&](int at, const float4& x) {
#pragma unroll 1
      for (int i = 0; i < 4; ++i) visit(at + i, Nth(x, i));
    });
  }
  __device__ static float Nth(const float4& x, int i) {
    return i < 2 ? (i == 0 ? x.x : x.y) : (i == 2 ? x.z : x.w);
  }

  __device__ static uint32_t Nth(const uint4& x, int i) {
    return i < 2 ? (i == 0 ? x.x : x.y) : (i == 2 ? x.z : x.w);
  }

  // NaN only if all are.
  __device__ static float LargestOf(const float4& x) {
    return ::fmaxf(::fmaxf(x.x, x.y), ::fmaxf(x.z, x.w));
  }

  __device__ void OfferFour(int at, const float4& x, Best& best) const {
    best.Offer(x.x, first_ + at);
    best.Offer(x.y, first_ + at + 1);
    best.Offer(x.z, first_ + at + 2);
    best.Offer(x.w, first_ + at + 3);
  }

  __device__ bool IsAllowed(int v) const {
    return row_.allowed == nullptr || (row_.allowed[v / 32] >> (v % 32) & 1u) != 0;
  }

  // Steps 1 to 4.
  __device__ void LoadScores() {
    ForFours<4>([this](int at) { return AllowedAt(at); },
                [this](int at, const float4& x) {
                  if (at < count_) *reinterpret_cast<float4*>(x_ + at) = x;
                });
    __syncthreads();
    for (int i = Thread(); i < row_.num_edits; i += kThreads) {
      const ScoreEdit edit = row_.edits[i];
      const int at = edit.token - first_;
      if (at < 0 || at >= count_ || !IsAllowed(edit.token)) continue;
      float x = x_[at];
      if (edit.repeats != 0) x = x > 0 ? x / row_.repetition : x * row_.repetition;
      if (edit.count > 0) {
        x = Fma(-row_.frequency, static_cast<float>(edit.count), x);
        x = x - row_.presence;
      }
      if (edit.has_bias != 0) x += edit.bias;
      x_[at] = x;
    }
    __syncthreads();
  }

  const SampleRowArgs row_;  // not shared: its values stay in registers
  const bool is_wide_;       // fours of logits are aligned
  const int rank_;
  const float* logits_;  // of the slice
  float* x_;             // its scores, where they are kept
  int first_, count_;
};

}  // namespace baton::kernels::cuda
