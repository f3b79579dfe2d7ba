#pragma once

#include "kernels/cuda/attend_items.cuh"

// Attention for a few rows: four blocks of threads, a cluster, compute 64 heads of one, and
// warpgroups of each hand tiles of 64 keys on, so that several are under way: keys are brought,
// scores multiplied, weights made of them, values added. The same sums in the same order as one
// block's: bits do not tell which it was.
namespace baton::kernels::cuda {

constexpr int kQuad = 4;

// Block r of a cluster adds the values of all keys in quarter r of the channels, and multiplies
// scores of half r % 2 of a tile's keys in half r / 2 of the channels, which that quarter is of.
struct QuadShared {
  static constexpr int kStages = 5, kWeightStages = 3, kRounds = 2, kDepth = 3;
  static constexpr int kSlabs = kMaxSlabs / kQuad;
  // A slab of all keys in this block's quarter, then of its keys in the half's other quarter.
  static constexpr int kPlaneBytes = kSlabBytes + kSlabBytes / 2;
  static constexpr int kTileBytes = kSlabs * kPlaneBytes;
  static constexpr int kSums = kHeads * kSlabs * kSlab / kGroup;
  static constexpr int kScores = kHeads / 2 * (kKeys / 2) / kGroup;  // a thread's
  static constexpr int kAngleSets = kWeightStages + 2;  // rows in which warpgroups are at once

  uint8_t keys[kStages][kTileBytes];
  uint8_t weights[kWeightStages][kSlabBytes];  // r(p), [heads, keys]
  struct Stored {
    uint4 values[3][kGroup];
    uint32_t scales[kGroup];
  } stored[kDepth][3];                             // entries on their way, each thread's
  float4 scores[kRounds][2][kScores / 4][kGroup];  // sums of both halves of the channels
  float denominators[kWeightStages][2][kHeads];
  // Where scores are not bounded: of each tile, and of all heads so far.
  float maxima[kRounds][kHeads / 2], references[kWeightStages][kHeads];
  SinCos angles[kAngleSets][kMaxPairs];
  uint64_t full[kStages], empty[kStages];
  uint64_t has_weights[kWeightStages], taken_weights[kWeightStages];
  uint64_t has_scores[kRounds], taken_scores[kRounds], has_maxima[kRounds];

  __device__ void InitBarriers() {
    constexpr int kWarps = kGroup / kWarp;
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(SharedAddress(&full[i]), 3 * kGroup);
      BarrierInit(SharedAddress(&empty[i]), 2 * kWarps);
    }
    for (int i = 0; i < kWeightStages; ++i) {
      BarrierInit(SharedAddress(&has_weights[i]), 1 + kGroup);
      BarrierInit(SharedAddress(&taken_weights[i]), kQuad * kWarps);
    }
    for (int i = 0; i < kRounds; ++i) {
      BarrierInit(SharedAddress(&has_scores[i]), 1 + kGroup);
      BarrierInit(SharedAddress(&taken_scores[i]), 2 * kWarps);
      BarrierInit(SharedAddress(&has_maxima[i]), 1);
    }
  }

  // A warp has used a tile.
  __device__ void Release(int stage) {
    if (LaneIndex() == 0) BarrierArrive(SharedAddress(&empty[stage]));
  }
};
static_assert(kSharedBytes<QuadShared> <= 227 * 1024);

__device__ __forceinline__ void StoreShared16(uint32_t to, const uint32_t* words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

// The items of a cluster, in turn.
class QuadItems {
 public:
  __device__ explicit QuadItems(const AttendArgs& args)
      : args_(args),
        items_(NumItems(args)),
        most_(args.step.rows * ((args.shape.heads + kHeads - 1) / kHeads) * args.segments),
        next_(FirstItem<kQuad>()) {}
  // No blocks: there is none.
  __device__ Item Next() {
    Item item;
    do {
      // Whether there is such a row shows while its numbers are read.
      item = ItemAt(args_, min(next_, most_ - 1));
      if (next_ >= items_) item.blocks = 0;
      next_ += ItemStride<kQuad>();
    } while (item.blocks == 0 && next_ < items_);
    return item;
  }

 private:
  const AttendArgs& args_;
  const int items_, most_;
  int next_;
};

}  // namespace baton::kernels::cuda
