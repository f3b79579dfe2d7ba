#pragma once

#include "kernels/cuda/attend_load.cuh"
#include "kernels/cuda/attend_sums.cuh"

// Attention for a few rows: two blocks of threads, a cluster, compute 64 heads of one, each with
// half of the channels, so that a tile of keys takes each half the time. A warpgroup multiplies its
// block's half of the scores of 32 of the keys; the other block of threads gets them, and both make
// the same weights. The same sums in the same order as one block's: bits do not tell which it was.
namespace baton::kernels::cuda {

constexpr int kPair = 2;
constexpr int kPairMathRegisters = 192, kPairLoadRegisters = 64;

struct PairShared : Tiles<kPair, 4, 1> {
  static constexpr bool kKeepsTotals = true, kTurnsInPlace = false;
  static constexpr int kScores = kHeads * kKeys / kMathThreads;  // a thread's
  static constexpr int kScoreBytes = kGroup * kScores * 4;       // a warpgroup's

  // Of every other block of keys, a warpgroup's: the other half of each sum.
  float4 scores[2][2][kScores / 4][kGroup];
  uint64_t has_scores[2][2];  // likewise
};
static_assert(kSharedBytes<PairShared> <= 227 * 1024);

// A multiplying warpgroup.
template <bool kIsBounded>
class PairAttention : HeadSums<kIsBounded, PairShared> {
  using Base = HeadSums<kIsBounded, PairShared>;
  using Base::args_, Base::denominator_, Base::group_, Base::max_, Base::pair_, Base::s_,
      Base::sums_, Base::thread_;
  using Place = Cursor<PairShared::kStages>;
  static constexpr int kScores = PairShared::kScores, kScoreBytes = PairShared::kScoreBytes;
  static constexpr int kTileBytes = PairShared::kTileBytes;
  static constexpr int kChannels = PairShared::kChannels;
  static constexpr int kSteps = kChannels / 16;

 public:
  __device__ PairAttention(const AttendArgs& args, PairShared& shared)
      : Base(args, shared, static_cast<int>(ClusterRank()) * PairShared::kSlabs),
        rank_(ClusterRank()) {}

  // A cluster has one item at most.
  __device__ void Run() {
    const int index = FirstItem<kPair>();
    if (index >= NumItems(args_)) return;
    const Item item = ItemAt(args_, index);
    if (item.blocks == 0) return;
    if (args_.shape.head_dim < kPair * kChannels) ClearQuery();
    CopyQuery(item);
    MultiplyScores();
    WgmmaWait<0>();
    SendScores();
    AddBlocks(item);
    if (args_.segments > 1) {
      Base::StorePartial(item);
    } else {
      Base::Finish(item, s_.angles[0]);
    }
  }

 private:
  __device__ void ClearQuery() const {
    for (int at = 16 * static_cast<int>(threadIdx.x); at < kTileBytes; at += 16 * kMathThreads) {
      *reinterpret_cast<uint4*>(s_.query[0] + at) = make_uint4(0, 0, 0, 0);
    }
    MeetAt(kMath, kMathThreads);
  }

  // This block's channels.
  __device__ void CopyQuery(const Item& item) const {
    constexpr int kChunks = kChannels / 8, kAtOnce = kMathThreads / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int channel = FirstChannel() + 8 * chunk;
    const int dim = args_.shape.head_dim, heads = args_.shape.heads - item.first_head;
    if (channel < dim) {
      const int64_t first = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
      const Bf16* query = args_.query + first * dim + channel;
      const uint32_t to = SharedAddress(s_.query[0] + chunk / 8 * kSlabBytes);
#pragma unroll
      for (int i = 0; i < kHeads / kAtOnce; ++i) {
        const int head = static_cast<int>(threadIdx.x) / kChunks + kAtOnce * i;
        CopyAsync16(to + Swizzled(head, chunk % 8), query + min(head, heads - 1) * dim,
                    head < heads);
      }
    }
    CopyAsyncWaitAll();
    FenceAsyncProxy();
    MeetAt(kMath, kMathThreads);
  }

  // While a block's scores become weights, the next one's are multiplied; while its values are
  // added, the other block of threads gets them.
  __device__ void AddBlocks(const Item& item) {
    int b = 0, segment = 0;
    bool is_last = false;
    do {
      bool starts = true, ends = false;
      do {
        is_last = ++b == item.blocks;
        ends = is_last || item.StartsSegment(b);
        if (is_last) {
          AddBlock<false>(item, b - 1, starts);
        } else {
          AddBlock<true>(item, b - 1, starts);
        }
        starts = false;
      } while (!ends);
      WgmmaWait<0>();
      Release();
      HoldResults(sums_[0]);
      if (args_.segments == 1) Base::EndSegment(segment++, is_last);
    } while (!is_last);
  }

  template <bool kHasNext>
  __device__ __forceinline__ void AddBlock(const Item& item, int block, bool starts_segment) {
    if constexpr (kHasNext) MultiplyScores();
    Exponentiate<kHasNext>(item.FirstKey(block), item.EndKey(block), starts_segment);
    MultiplyValues(starts_segment);
    if constexpr (kHasNext) {
      WgmmaWait<1>();
      SendScores();
    }
  }

  // This block's half of the sums over channels, of all heads and this warpgroup's keys of the next
  // tile.
  __device__ void MultiplyScores() {
    BarrierWait(SharedAddress(&s_.full[ahead_.stage]), ahead_.parity);
    FenceAsyncProxy();  // see ArriveBehindCopies
    const Tile query(SharedAddress(s_.query[0]), kByRows);
    const Tile keys(SharedAddress(s_.keys[ahead_.stage]) + group_ * (kSlabBytes / 2), kByRows);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const int offset = k / 4 * kSlabBytes + k % 4 * 32;
      WgmmaScores(scores_, query.At(offset), keys.At(offset), k > 0);
    }
    WgmmaCommit();
    ahead_.Advance();
  }

  // Scores are there: the other block of threads gets them too.
  __device__ void SendScores() {
    HoldResults(scores_);
    const int round = sent_++ % 2;
    const uint32_t to =
        AddressAtRank(SharedAddress(&s_.scores[round][group_][0][thread_]), rank_ ^ 1);
    const uint32_t barrier = AddressAtRank(SharedAddress(&s_.has_scores[round][group_]), rank_ ^ 1);
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      StoreAsync16(to + i / 4 * kGroup * 16, scores_[i], scores_[i + 1], scores_[i + 2],
                   scores_[i + 3], barrier);
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) p_[i] = scores_[i];
  }

  // Both halves' sum, scaled. What the other block sends two rounds on comes when it has what this
  // one sends a round on, hence when all threads here have read this.
  __device__ void ReceiveScores() {
    const int round = received_ % 2;
    const uint32_t barrier = SharedAddress(&s_.has_scores[round][group_]);
    BarrierWait(barrier, received_ / 2 % 2);
    if (thread_ == 0) BarrierExpect(barrier, kScoreBytes);
    ++received_;
    const float scale = args_.shape.score_scale;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      const float4 other = s_.scores[round][group_][i / 4][thread_];
      p_[i] = (p_[i] + other.x) * scale;
      p_[i + 1] = (p_[i + 1] + other.y) * scale;
      p_[i + 2] = (p_[i + 2] + other.z) * scale;
      p_[i + 3] = (p_[i + 3] + other.w) * scale;
    }
  }

  // Sums of this warpgroup's channels over a tile's keys.
  __device__ void MultiplyValues(bool starts_segment) {
    const Tile weights(SharedAddress(s_.weights[(received_ - 1) % 2]), kByRows);
    const Tile values(SharedAddress(s_.keys[here_.stage]) + group_ * (kTileBytes / 2), kByColumns);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      WgmmaValues(sums_[0], weights.At(32 * k), values.At(2048 * k), k > 0 || !starts_segment);
    }
    WgmmaCommit();
  }
  // The values are added: their tile is free.
  __device__ void Release() {
    for (uint64_t& half : s_.empty[here_.stage]) BarrierArrive(SharedAddress(&half));
    here_.Advance();
  }

  // Scores become weights, of keys first .. end - 1; the others' are zero. kHasNext: the next
  // block's scores are being multiplied.
  template <bool kHasNext>
  __device__ __forceinline__ void Exponentiate(int first, int end, bool starts_segment) {
    ReceiveScores();
    const int own = 32 * group_ + 2 * pair_;  // key of p_[0]
    if (starts_segment) {
      denominator_[0] = denominator_[1] = 0.0f;
      max_[0] = max_[1] = kNone;
    }
    float factor[2];
    if constexpr (!kIsBounded) Base::MoveReference(p_, first - own, end - own, factor);
    if (!starts_segment) {
      WgmmaWait<kHasNext && kIsBounded ? 1 : 0>();
      Release();
      if constexpr (!kIsBounded) {
        HoldResults(sums_[0]);
        Base::ScaleSums(factor);
      }
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      p_[i] = kIsBounded ? QuickExp(p_[i]) : QuickExpNeg(p_[i] - max_[i / 2 % 2]);
    }
    if (first > 0 || end < kKeys) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const int key = own + i / 4 * 8 + i % 2;
        if (key < first || key >= end) p_[i] = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) denominator_[i / 2 % 2] += p_[i];
    Base::StoreWeights(p_, s_.weights[(received_ - 1) % 2]);
    FenceAsyncProxy();
    MeetAt(kMath, kMathThreads);
  }

  __device__ int FirstChannel() const { return static_cast<int>(rank_) * kChannels; }

  const uint32_t rank_;
  Place ahead_, here_;  // the tiles whose scores and whose values come next
  uint32_t sent_ = 0, received_ = 0;
  float scores_[kScores], p_[kScores];
};

template <bool kIsBounded>
__global__ void __cluster_dims__(kPair, 1, 1) __launch_bounds__(kThreads, 1)
    AttendPairKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ uint8_t memory[];
  auto& shared = AlignedShared<PairShared>(memory);
  if (threadIdx.x == 0) {
    shared.InitBarriers();
    for (int i = 0; i < 4; ++i) {
      const uint32_t barrier = SharedAddress(&shared.has_scores[i / 2][i % 2]);
      BarrierInit(barrier, 1);
      BarrierExpect(barrier, PairShared::kScoreBytes);
    }
    FenceBarrierInit();
  }
  ClusterSync();
  if (threadIdx.x < kMathThreads) {
    GrowRegisters<kPairMathRegisters>();
    PairAttention<kIsBounded>(args, shared).Run();
  } else {
    ShrinkRegisters<kPairLoadRegisters>();
    Loader<PairShared>(args, shared).Run();
  }
  ClusterSync();  // no block leaves before what the other one sends it
}

}  // namespace baton::kernels::cuda
