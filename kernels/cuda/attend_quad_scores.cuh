#pragma once

#include "kernels/cuda/attend_quad_shared.cuh"
#include "kernels/cuda/attend_sums.cuh"

// The side of attention by four blocks that makes weights of keys.
namespace baton::kernels::cuda {

// The warpgroup that multiplies scores: of all heads and half of a tile's keys the sums over half
// of the channels. Each half of the heads goes to the block that makes their weights.
class QuadScores {
 public:
  __device__ QuadScores(const AttendArgs& args, QuadShared& shared)
      : args_(args),
        s_(shared),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        rank_(static_cast<int>(ClusterRank())),
        channels_(rank_ / 2),
        keys_(rank_ % 2),
        pair_(LaneIndex() % 4),
        head_(thread_ / kWarp * 16 + LaneIndex() / 4) {}

  __device__ void Run() {
    QuadItems items(args_);
    Item item = items.Next();
    if (item.blocks > 0) LoadQuery(item);
    ClusterWait();
    while (item.blocks > 0) {
      const Item next = items.Next();
#pragma unroll 1
      for (int b = 0; b < item.blocks; ++b) {
        Multiply();
        Send();
      }
      item = next;
      if (item.blocks > 0) LoadQuery(item);
    }
  }

 private:
  static constexpr int kValues = QuadShared::kScores;
  static constexpr int kSteps = kMaxSlabs / 2 * kSlab / 16;

  // Fragments of all heads, this block's half of the channels.
  __device__ void LoadQuery(const Item& item) {
    const int dim = args_.shape.head_dim, heads = args_.shape.heads - item.first_head;
    const int64_t first = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
    const int first_channel = kSlab * kMaxSlabs / 2 * channels_ + 8 * pair_;
    uint4 loaded[kSteps / 2][2];
#pragma unroll
    for (int m = 0; m < kSteps / 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int head = head_ + 8 * half, channel = first_channel + 32 * m;
        loaded[m][half] = make_uint4(0, 0, 0, 0);
        if (head < heads && channel < dim) {
          loaded[m][half] =
              *reinterpret_cast<const uint4*>(args_.query + (first + head) * dim + channel);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kSteps / 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4& v = loaded[m][half];
        uint32_t words[4] = {v.x, v.y, v.z, v.w};
        TransposeFour(words);
#pragma unroll
        for (int j = 0; j < 4; ++j) query_[2 * m + j / 2][half + 2 * (j % 2)] = words[j];
      }
    }
  }

  __device__ void Multiply() {
    BarrierWait(SharedAddress(&s_.full[tile_.stage]), tile_.parity);
    FenceAsyncProxy();  // see ArriveBehindCopies
    const uint32_t tile = SharedAddress(s_.keys[tile_.stage]);
    WgmmaFence();
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const bool is_main = q == keys_;
      const uint32_t first = tile + (is_main ? keys_ * (kSlabBytes / 2) : kSlabBytes);
#pragma unroll
      for (int slab = 0; slab < 2; ++slab) {
        const Tile keys(first + static_cast<uint32_t>(slab * QuadShared::kPlaneBytes), kByRows);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int step = 8 * q + 4 * slab + i;
          Wgmma<32>(scores_, query_[step], keys.At(32 * i), step > 0);
        }
      }
    }
    WgmmaCommit();
  }

  __device__ void Send() {
    const uint32_t barrier = SharedAddress(&s_.has_scores[round_.stage]);
    const uint32_t place = SharedAddress(&s_.scores[round_.stage][channels_][0][thread_]);
    BarrierWait(SharedAddress(&s_.taken_scores[round_.stage]), round_.parity ^ 1);
    WgmmaWait<0>();
    HoldResults(scores_);
    s_.Release(tile_.stage);
    tile_.Advance();
    const uint32_t there = AddressAtRank(place, static_cast<uint32_t>(rank_ ^ 2));
    const uint32_t signal = AddressAtRank(barrier, static_cast<uint32_t>(rank_ ^ 2));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* v = scores_ + 8 * i;
      const bool is_low = channels_ == 0;
      const auto step = static_cast<uint32_t>(i * kGroup * 16);
      const uint32_t own[4] = {BitsOf(is_low ? v[0] : v[2]), BitsOf(is_low ? v[1] : v[3]),
                               BitsOf(is_low ? v[4] : v[6]), BitsOf(is_low ? v[5] : v[7])};
      StoreAsync16(there + step, is_low ? v[2] : v[0], is_low ? v[3] : v[1], is_low ? v[6] : v[4],
                   is_low ? v[7] : v[5], signal);
      StoreShared16(place + step, own);
    }
    BarrierArrive(barrier);
    round_.Advance();
  }

  const AttendArgs& args_;
  QuadShared& s_;
  const int thread_, rank_, channels_, keys_;  // which half of the channels and of the keys
  const int pair_, head_;
  Cursor<QuadShared::kStages> tile_;
  Cursor<QuadShared::kRounds> round_;
  uint32_t query_[kSteps][4];
  float scores_[2 * kValues];
};

// The warpgroup that makes weights of half of a tile's keys and half of the heads, for all blocks.
template <bool kIsBounded>
class QuadWeights {
 public:
  __device__ QuadWeights(const AttendArgs& args, QuadShared& shared)
      : args_(args),
        s_(shared),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        rank_(static_cast<int>(ClusterRank())),
        keys_(rank_ % 2),
        pair_(LaneIndex() % 4),
        head_(thread_ / kWarp * 16 + LaneIndex() / 4 + 8 * (rank_ / 2)) {
    const uint32_t own = SharedAddress(&shared);
#pragma unroll
    for (int i = 0; i < kQuad - 1; ++i) {
      const auto to = static_cast<uint32_t>((rank_ + 1 + i) % kQuad);
      ranks_[i] = AddressAtRank(own, to) - own;
    }
  }

  __device__ void Run() {
    const bool has_angle = args_.segments == 1 && thread_ < args_.shape.rope_dim / 2;
    const float frequency = has_angle ? args_.frequencies[thread_] : 0.0f;
    QuadItems items(args_);
    ClusterWait();
    int number = 0;
    for (Item item = items.Next(); item.blocks > 0; item = items.Next(), ++number) {
      if (has_angle) {
        s_.angles[number % QuadShared::kAngleSets][thread_] =
            RopeSinCos(RopeAngle(item.position, frequency));
      }
      denominator_ = all_denominator_ = 0.0f;
      max_ = all_max_ = kNone;
#pragma unroll 1
      for (int b = 0; b < item.blocks; ++b) AddBlock(item, b);
    }
  }

 private:
  static constexpr int kValues = QuadShared::kScores;

  __device__ void AddBlock(const Item& item, int block) {
    float p[kValues];
    Receive(p);
    const int own = 32 * keys_ + 2 * pair_;  // key of p[0]
    Exponentiate(p, item.FirstKey(block) - own, item.EndKey(block) - own);
    const bool is_last = block + 1 == item.blocks;
    const bool ends = is_last || item.StartsSegment(block + 1);
    if (ends) EndSegment();
    SendWeights(p, is_last);
    round_.Advance();
    if (ends) max_ = kNone;
  }

  // Both halves' sum, scaled.
  __device__ void Receive(float (&p)[kValues]) {
    const uint32_t barrier = SharedAddress(&s_.has_scores[round_.stage]);
    if (thread_ == 0) BarrierExpect(barrier, sizeof(s_.scores[0][0]));  // the other block's
    BarrierWait(barrier, round_.parity);
    const float scale = args_.shape.score_scale;
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 a = s_.scores[round_.stage][0][i / 4][thread_];
      const float4 b = s_.scores[round_.stage][1][i / 4][thread_];
      p[i] = (a.x + b.x) * scale;
      p[i + 1] = (a.y + b.y) * scale;
      p[i + 2] = (a.z + b.z) * scale;
      p[i + 3] = (a.w + b.w) * scale;
    }
    __syncwarp();
    if (LaneIndex() < 2) {
      BarrierFreeAt(SharedAddress(&s_.taken_scores[round_.stage]), rank_ ^ (2 * LaneIndex()));
    }
  }

  // Keys first .. end - 1 are visible.
  __device__ void Exponentiate(float (&p)[kValues], int first, int end) {
    if constexpr (!kIsBounded) MoveReference(p, first, end);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      p[i] = kIsBounded ? QuickExp(p[i]) : QuickExpNeg(p[i] - max_);
    }
    if (first > 0 || end < kKeys / 2 - 6) {  // beyond p[0] lie 25
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int key = i / 2 * 8 + i % 2;
        if (key < first || key >= end) p[i] = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) denominator_ += p[i];
  }

  // The running maximum (R3) over the tile's keys, half of which another block has.
  __device__ void MoveReference(const float (&p)[kValues], int first, int end) {
    float max = kNone;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int key = i / 2 * 8 + i % 2;
      if (key >= first && key < end) max = Larger(p[i], max);
    }
    max = GroupMax(max, 4);
    const uint32_t barrier = SharedAddress(&s_.has_maxima[round_.stage]);
    float* place = &s_.maxima[round_.stage][thread_ / 4];
    if (pair_ == 0) SendTo(rank_ ^ 1, SharedAddress(place), max, barrier);
    if (thread_ == 0) BarrierExpect(barrier, sizeof(s_.maxima[0]));
    BarrierWait(barrier, round_.parity);
    const float reference = Larger(Larger(max, *place), max_);
    denominator_ *= ExpNeg(max_ - reference);
    max_ = reference;
  }

  __device__ void EndSegment() {
    float own = denominator_;
    own += __shfl_xor_sync(kFullWarp, own, 1);
    own += __shfl_xor_sync(kFullWarp, own, 2);
    if constexpr (kIsBounded) {
      all_denominator_ += own;
    } else {
      const float reference = Larger(max_, all_max_);
      all_denominator_ =
          all_denominator_ * ExpNeg(all_max_ - reference) + own * ExpNeg(max_ - reference);
      all_max_ = reference;
    }
    denominator_ = 0.0f;
  }

  // To all blocks; behind an item's last tile with the denominators.
  __device__ void SendWeights(const float (&p)[kValues], bool is_last) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = PackBf16(p[2 * j], p[2 * j + 1]);
    TransposeFour(words);
    BarrierWait(SharedAddress(&s_.taken_weights[weights_.stage]), weights_.parity ^ 1);
    const uint32_t place =
        SharedAddress(s_.weights[weights_.stage]) + Swizzled(head_, 4 * keys_ + pair_);
    const uint32_t barrier = SharedAddress(&s_.has_weights[weights_.stage]);
#pragma unroll
    for (int to = 0; to < kQuad - 1; ++to) {
      StoreAsync16(place + ranks_[to], FloatOf(words[0]), FloatOf(words[1]), FloatOf(words[2]),
                   FloatOf(words[3]), barrier + ranks_[to]);
    }
    StoreShared16(place, words);
    BarrierArrive(barrier);
    if (is_last) {
      SendTo(pair_, SharedAddress(&s_.denominators[weights_.stage][keys_][head_]), all_denominator_,
             barrier);
    }
    if (!kIsBounded && keys_ == 0) {
      SendTo(pair_, SharedAddress(&s_.references[weights_.stage][head_]), max_, barrier);
    }
    weights_.Advance();
  }

  const AttendArgs& args_;
  QuadShared& s_;
  const int thread_, rank_, keys_;  // which half of the keys
  const int pair_, head_;
  uint32_t ranks_[kQuad - 1];  // what leads from an address here to the other blocks'
  Cursor<QuadShared::kRounds> round_;
  Cursor<QuadShared::kWeightStages> weights_;
  float denominator_ = 0.0f, all_denominator_ = 0.0f, max_ = kNone, all_max_ = kNone;
};

}  // namespace baton::kernels::cuda
