#pragma once

#include "kernels/cuda/attend_quad_load.cuh"
#include "kernels/cuda/attend_quad_scores.cuh"
#include "kernels/cuda/launch.cuh"

// The side of attention by four blocks that adds values, and all of it.
namespace baton::kernels::cuda {

// The warpgroup that adds values: all heads and keys, this block's channels.
template <bool kIsBounded>
class QuadSums {
 public:
  __device__ QuadSums(const AttendArgs& args, QuadShared& shared)
      : args_(args),
        s_(shared),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        rank_(static_cast<int>(ClusterRank())),
        pair_(LaneIndex() % 4),
        head_(thread_ / kWarp * 16 + LaneIndex() / 4),
        first_channel_(kSlab * kMaxSlabs / kQuad * rank_) {}

  __device__ void Run() {
    QuadItems items(args_);
    ClusterWait();
    int number = 0;
    for (Item item = items.Next(); item.blocks > 0; item = items.Next(), ++number) {
      AddItem(item);
      if (args_.segments > 1) {
        StorePartial(item);
      } else {
        Finish(item, s_.angles[number % QuadShared::kAngleSets]);
      }
    }
  }

 private:
  static constexpr int kSums = QuadShared::kSums;

  __device__ void AddItem(const Item& item) {
    bool has_total = false, is_last = false;
    int b = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sink_[half] = args_.sink[min(item.first_head + head_ + 8 * half, args_.shape.heads - 1)];
    }
    all_max_[0] = all_max_[1] = kNone;
    do {
      is_last = ++b == item.blocks;
      AwaitWeights(is_last);
      if constexpr (!kIsBounded) LoadReferences(max_);
      Multiply(/*starts_segment=*/true);
      while (!is_last && !item.StartsSegment(b)) {
        is_last = ++b == item.blocks;
        AwaitWeights(is_last);
        if constexpr (!kIsBounded) MoveSums();
        Multiply(/*starts_segment=*/false);
        if constexpr (kIsBounded) {
          WgmmaWait<1>();
          Release();
        }
      }
      WgmmaWait<0>();
      HoldResults(sums_[0]);
      HoldResults(sums_[1]);
      if (is_last) LoadDenominators();
      Release();
      EndSegment(has_total, is_last);
      has_total = true;
    } while (!is_last);
  }

  __device__ void EndSegment(bool has_total, bool is_last) {
    float scales[2][2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};  // [total, segment][half]
#pragma unroll
    for (int half = 0; half < 2 && !kIsBounded; ++half) {
      const float reference = Larger(max_[half], all_max_[half]);
      scales[0][half] = ExpNeg(all_max_[half] - reference);
      scales[1][half] = ExpNeg(max_[half] - reference);
      all_max_[half] = reference;
    }
    if (has_total) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        Sum(i) = total_[i] * scales[0][i / 2 % 2] + Sum(i) * scales[1][i / 2 % 2];
      }
    }
    if (is_last) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) total_[i] = Sum(i);
  }

  __device__ void LoadReferences(float (&max)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      max[half] = s_.references[weights_.stage][head_ + 8 * half];
    }
  }

  // The tiles before are added; their sums are brought to the new reference.
  __device__ void MoveSums() {
    WgmmaWait<0>();
    HoldResults(sums_[0]);
    HoldResults(sums_[1]);
    Release();
    float reference[2], factor[2];
    LoadReferences(reference);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor[half] = ExpNeg(max_[half] - reference[half]);
      max_[half] = reference[half];
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) Sum(i) *= factor[i / 2 % 2];
  }

  __device__ void AwaitWeights(bool is_last) {
    BarrierWait(SharedAddress(&s_.full[tile_.stage]), tile_.parity);
    const uint32_t barrier = SharedAddress(&s_.has_weights[weights_.stage]);
    if (thread_ == 0) {
      BarrierExpect(barrier, kSlabBytes / 4 * 3 + (is_last ? sizeof(s_.denominators[0]) : 0) +
                                 (kIsBounded ? 0 : sizeof(s_.references[0])));
    }
    BarrierWait(barrier, weights_.parity);
    FenceAsyncProxy();  // see ArriveBehindCopies
  }

  __device__ void Multiply(bool starts_segment) {
    const Tile weights(SharedAddress(s_.weights[weights_.stage]), kByRows);
    const Tile values(SharedAddress(s_.keys[tile_.stage]), kByColumns);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const int adds = k > 0 || !starts_segment;
      WgmmaValues(sums_[0], weights.At(32 * k), values.At(2048 * k), adds);
      WgmmaValues(sums_[1], weights.At(32 * k), values.At(2048 * k + QuadShared::kPlaneBytes),
                  adds);
    }
    WgmmaCommit();
    tile_.Advance();
    weights_.Advance();
  }

  // The oldest tile's values are added.
  __device__ void Release() {
    __syncwarp();
    s_.Release(added_.stage);
    if (LaneIndex() < kQuad) {
      BarrierFreeAt(SharedAddress(&s_.taken_weights[used_.stage]), LaneIndex());
    }
    added_.Advance();
    used_.Advance();
  }

  __device__ void LoadDenominators() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int keys = 0; keys < 2; ++keys) {
        denominator_[half][keys] = s_.denominators[used_.stage][keys][head_ + 8 * half];
      }
    }
  }

  __device__ float& Sum(int i) { return sums_[i / (kSums / 2)][i % (kSums / 2)]; }
  __device__ float Sum(int i) const { return sums_[i / (kSums / 2)][i % (kSums / 2)]; }
  __device__ int ChannelOf(int sum) const { return first_channel_ + sum / 4 * 8 + 2 * pair_; }

  __device__ void StorePartial(const Item& item) const {
    const int dim = args_.shape.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = item.first_head + head_ + 8 * half;
      if (head >= args_.shape.heads) continue;
      float* partial = PartialOf(args_, item.row, item.segment, head);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        if (ChannelOf(i) >= dim) continue;
        *reinterpret_cast<float2*>(partial + ChannelOf(i)) =
            make_float2(Sum(i + 2 * half), Sum(i + 2 * half + 1));
      }
      if (pair_ != 0 || rank_ != 0) continue;
      partial[dim] = denominator_[half][0];
      partial[dim + 1] = denominator_[half][1];
      partial[dim + 2] = kIsBounded ? kNone : max_[half];
    }
  }

  __device__ void Finish(const Item& item, const SinCos* angles) const {
    const int dim = args_.shape.head_dim, rope = dim - args_.shape.rope_dim;
    const int64_t row = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
    Bf16* const out = args_.attended + row * dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = head_ + 8 * half;
      const bool is_live = item.first_head + head < args_.shape.heads;
      const float factor = FinalFactor<kIsBounded>(sink_[half], all_max_[half],
                                                   denominator_[half][0] + denominator_[half][1]);
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
        if (!is_live || first + 2 * i >= dim) continue;
        *reinterpret_cast<uint4*>(plain + 2 * i) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  const AttendArgs& args_;
  QuadShared& s_;
  const int thread_, rank_, pair_, head_;
  const int first_channel_;
  Cursor<QuadShared::kStages> tile_, added_;
  Cursor<QuadShared::kWeightStages> weights_, used_;
  float sums_[2][kSums / 2], total_[kSums];
  float denominator_[2][2];  // of a head, of each half of the keys
  float sink_[2], max_[2], all_max_[2];
};

constexpr int kQuadThreads = 6 * kGroup;
constexpr int kQuadSumRegisters = 160, kQuadScoreRegisters = 120, kQuadWeightRegisters = 56,
              kQuadLoadRegisters = 48;

template <bool kIsBounded>
__global__ void __launch_bounds__(kQuadThreads, 1)
    AttendQuadKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ uint8_t memory[];
  auto& shared = AlignedShared<QuadShared>(memory);
  LetNextStart();
  if (threadIdx.x == 0) {
    shared.InitBarriers();
    FenceBarrierInit();
  }
  __syncthreads();
  ClusterArriveRelaxed();
  WaitForEarlier();
  switch (threadIdx.x / kGroup) {
    case 0:
      GrowRegisters<kQuadSumRegisters>();
      QuadSums<kIsBounded>(args, shared).Run();
      break;
    case 1:
      GrowRegisters<kQuadScoreRegisters>();
      QuadScores(args, shared).Run();
      break;
    case 2:
      ShrinkRegisters<kQuadWeightRegisters>();
      QuadWeights<kIsBounded>(args, shared).Run();
      break;
    default:
      ShrinkRegisters<kQuadLoadRegisters>();
      QuadLoader(args, shared, 3 * kGroup).Run();
      break;
  }
  ClusterSync();  // no block leaves before what others send it
}

}  // namespace baton::kernels::cuda
