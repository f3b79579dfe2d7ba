#pragma once

#include "kernels/cuda/attend_items.cuh"

// What multiplying warpgroups do with sums and weights in registers.
namespace baton::kernels::cuda {

// A segment of a row's head: sums [D], denominators of both warpgroups' keys, reference.
__device__ inline float* PartialOf(const AttendArgs& args, int row, int segment, int head) {
  const int64_t index =
      (static_cast<int64_t>(row) * args.segments + segment) * args.shape.heads + head;
  return args.partials + index * (args.shape.head_dim + kPartialTail);
}

// What sums are multiplied by in the end: the sink enters the denominator once.
template <bool kIsBounded>
__device__ float FinalFactor(float sink, float max, float denominator) {
  if constexpr (kIsBounded) return 1.0f / (denominator + Exp(sink));
  const float reference = Larger(sink, max);
  const float factor = ExpNeg(max - reference);
  return factor / (denominator * factor + ExpNeg(sink - reference));
}

// Two neighbouring output channels, rotated back.
__device__ __forceinline__ uint32_t RotatedBack(uint32_t pair, const SinCos& angle) {
  const Pair v = RotateBack({FloatOf(pair << 16), FloatOf(pair & 0xffff0000u)}, angle);
  return PackBf16(v.a, v.b);
}

// Word j of lane l of four neighbours goes to word l of lane j.
__device__ __forceinline__ void TransposeFour(uint32_t (&words)[4]) {
  const int lane = LaneIndex() % 4;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & step) != 0) continue;
      const bool is_upper = (lane & step) != 0;
      const uint32_t got = __shfl_xor_sync(kFullWarp, is_upper ? words[i] : words[i + step], step);
      words[i] = is_upper ? got : words[i];
      words[i + step] = is_upper ? words[i + step] : got;
    }
  }
}

// A warpgroup's share of a row's heads: sums of half of a block's channels. Thread: heads lane / 4
// and + 8 of its warp's 16; of a tile's columns 8 j + 2 (lane % 4) and + 1.
template <bool kIsBounded, typename Shared>
class HeadSums {
 protected:
  static constexpr int kSums = Shared::kSums;

  __device__ HeadSums(const AttendArgs& args, Shared& shared)
      : args_(args),
        s_(shared),
        group_(static_cast<int>(threadIdx.x) / kGroup),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        head_(thread_ / kWarp * 16 + LaneIndex() / 4),
        pair_(LaneIndex() % 4),
        first_channel_(group_ * (Shared::kChannels / 2)) {}

  // This warpgroup's 32 keys' weights, rounded, for the product with the values.
  __device__ void StoreWeights(const float (&p)[16], uint8_t* weights) const {
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      const int chunk = 4 * group_ + i / 4, head = head_ + 8 * (i / 2 % 2);
      *reinterpret_cast<uint32_t*>(weights + Swizzled(head, chunk) + 4 * pair_) =
          PackBf16(p[i], p[i + 1]);
    }
  }

  __device__ void ScaleSums(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) Sum(i) *= factor[i / 2 % 2];
  }

  // The running maximum (R3): a new reference for each head, and what its sums are brought to it
  // by.
  __device__ void MoveReference(const float (&p)[16], int first, int end, float (&factor)[2]) {
    float max[2] = {kNone, kNone};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int key = i / 4 * 8 + i % 2, half = i / 2 % 2;
      if (key >= first && key < end) max[half] = Larger(p[i], max[half]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      max[half] = GroupMax(max[half], 4);
      if (pair_ == 0) s_.maxima[group_][head_ + 8 * half] = max[half];
    }
    MeetAt(kMaxima, kMathThreads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other = s_.maxima[1 - group_][head_ + 8 * half];
      const float reference = Larger(Larger(max[half], other), max_[half]);
      factor[half] = ExpNeg(max_[half] - reference);
      max_[half] = reference;
      denominator_[half] *= factor[half];
    }
  }

  // A head's denominator over this warpgroup's keys.
  __device__ static float SumOfFour(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
  }

  __device__ float& Sum(int i) { return sums_[i / kTogether][i % kTogether]; }
  __device__ float Sum(int i) const { return sums_[i / kTogether][i % kTogether]; }

  // total = total + segment, both brought to the larger reference first; behind the last one it is
  // in sums_. Between segments it lies in global memory, where registers do not suffice.
  __device__ void EndSegment(int number, bool is_last) {
    float scales[2][2];  // [total, segment][half]
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float own = SumOfFour(denominator_[half]);
      scales[0][half] = scales[1][half] = 1.0f;
      if (number == 0) {
        all_denominator_[half] = own;
        all_max_[half] = max_[half];
        continue;
      }
      if constexpr (!kIsBounded) {
        const float reference = Larger(max_[half], all_max_[half]);
        scales[0][half] = ExpNeg(all_max_[half] - reference);
        scales[1][half] = ExpNeg(max_[half] - reference);
        all_max_[half] = reference;
      }
      all_denominator_[half] = all_denominator_[half] * scales[0][half] + own * scales[1][half];
    }
    if (number == 0 && is_last) return;
    auto* total = reinterpret_cast<float4*>(args_.partials) +
                  static_cast<int64_t>(blockIdx.x) * kMathThreads * (kSums / 4) + threadIdx.x;
    constexpr int kAtOnce = 8;
#pragma unroll
    for (int first = 0; first < kSums / 4; first += kAtOnce) {
      if (number > 0) AddTotal<kAtOnce>(total, first, scales);
      if (is_last) continue;
#pragma unroll
      for (int i = 4 * first; i < 4 * (first + kAtOnce); i += 4) {
        __stcg(total + i / 4 * kMathThreads,
               make_float4(Sum(i), Sum(i + 1), Sum(i + 2), Sum(i + 3)));
      }
    }
  }

  template <int kCount>
  __device__ void AddTotal(const float4* total, int first, const float (&scales)[2][2]) {
    float4 before[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) before[j] = __ldcg(total + (first + j) * kMathThreads);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int i = 4 * (first + j);
      Sum(i) = before[j].x * scales[0][0] + Sum(i) * scales[1][0];
      Sum(i + 1) = before[j].y * scales[0][0] + Sum(i + 1) * scales[1][0];
      Sum(i + 2) = before[j].z * scales[0][1] + Sum(i + 2) * scales[1][1];
      Sum(i + 3) = before[j].w * scales[0][1] + Sum(i + 3) * scales[1][1];
    }
  }

  __device__ int ChannelOf(int sum) const { return first_channel_ + sum / 4 * 8 + 2 * pair_; }

  __device__ void StorePartial(const Item& item) const {
    const int dim = args_.shape.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float denominator = SumOfFour(denominator_[half]);
      const int head = item.first_head + head_ + 8 * half;
      if (head >= args_.shape.heads) continue;
      float* partial = PartialOf(args_, item.row, item.segment, head);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        if (ChannelOf(i) >= dim) continue;
        *reinterpret_cast<float2*>(partial + ChannelOf(i)) =
            make_float2(Sum(i + 2 * half), Sum(i + 2 * half + 1));
      }
      if (pair_ != 0) continue;
      partial[dim + group_] = denominator;
      if (group_ == 0) partial[dim + 2] = max_[half];
    }
  }

  __device__ void Finish(const Item& item, const SinCos* angles) const {
    const int dim = args_.shape.head_dim, rope = dim - args_.shape.rope_dim;
    float sink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = head_ + 8 * half;
      if (pair_ == 0) s_.denominators[group_][head] = all_denominator_[half];
      sink[half] = args_.sink[min(item.first_head + head, args_.shape.heads - 1)];
    }
    MeetAt(kMath, kMathThreads);
    const int64_t row = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
    Bf16* const out = args_.attended + row * dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = head_ + 8 * half;
      const bool is_live = item.first_head + head < args_.shape.heads;
      const float factor = FinalFactor<kIsBounded>(
          sink[half], all_max_[half], s_.denominators[0][head] + s_.denominators[1][head]);
      const int first = first_channel_ + 8 * pair_;
      Bf16* const plain = out + static_cast<int64_t>(head) * dim + first;
#pragma unroll
      for (int i = 0; i < kSums; i += 16) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + 4 * j + 2 * half;
          words[j] = PackBf16(Sum(at) * factor, Sum(at + 1) * factor);
        }
        if (first_channel_ + 2 * i >= rope) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int tile = first_channel_ + 2 * i + 8 * j;
            if (tile < dim) words[j] = RotatedBack(words[j], angles[(tile - rope) / 2 + pair_]);
          }
        }
        TransposeFour(words);
        const int channel = first + 2 * i;
        if (!is_live || channel >= dim) continue;
        *reinterpret_cast<uint4*>(plain + 2 * i) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  static constexpr int kTogether = 64;  // sums of one wgmma

  const AttendArgs& args_;
  Shared& s_;
  const int group_, thread_, head_, pair_;
  const int first_channel_;  // this warpgroup's
  float sums_[kSums / kTogether][kTogether];
  float denominator_[2], max_[2], all_denominator_[2], all_max_[2];
};

}  // namespace baton::kernels::cuda
