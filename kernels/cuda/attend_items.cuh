#pragma once

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_mma.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"

// What the two sides of attention's blocks of threads share: the shared memory, and which keys of
// which rows come when.
namespace baton::kernels::cuda {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kMathThreads = 2 * kGroup;
constexpr int kLoadThreads = 2 * kGroup;
constexpr int kThreads = kMathThreads + kLoadThreads;
constexpr int kHeads = 64;
constexpr int kKeys = 64;
constexpr int kSlab = 64;  // channels
constexpr int kSlabBytes = kKeys * 2 * kSlab;
constexpr int kMaxSlabs = 8;
constexpr int kSegmentEntries = 512;
constexpr int kSegmentBlocks = kSegmentEntries / kKeys;
constexpr int kMaxPairs = 32;
constexpr int kPartialTail = 4;  // behind a partial's sums: two denominators, the reference, a gap
constexpr float kNone = -__builtin_inff();
enum NamedBarrier { kAll, kMath, kMaxima, kLoader, kFirstGroup, kSecondGroup };

// What blocks of threads have in shared memory that compute a row's heads on their own.
struct Tiles {
  static constexpr int kSlabs = kMaxSlabs;
  static constexpr int kChannels = kSlabs * kSlab;
  static constexpr int kTileBytes = kSlabs * kSlabBytes;
  static constexpr int kStages = 2;
  static constexpr int kSums = kHeads * kChannels / kMathThreads;  // a thread's
  // A row is at its end, the next ones have keys here.
  static constexpr int kAngleSets = kStages + 1;

  uint8_t query[kTileBytes];
  uint8_t keys[kStages][kTileBytes];
  uint8_t weights[2][kSlabBytes];  // r(p), [heads, keys], of every other block
  SinCos angles[kAngleSets][kMaxPairs];
  float denominators[2][kHeads];  // of each warpgroup's keys
  float maxima[2][kHeads];
  uint64_t full[kStages];
  uint64_t empty[kStages][2];  // of each half of a tile's keys

  __device__ void InitBarriers() {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(SharedAddress(&full[i]), kLoadThreads);
      for (uint64_t& half : empty[i]) BarrierInit(SharedAddress(&half), kMathThreads);
    }
  }
};

// Where a warpgroup is in a ring.
template <int kStages>
struct Cursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Entries that a row attends to.
__device__ inline int NumEntries(const AttendArgs& args, int row) {
  if (args.ratio == 0) return 0;
  if (args.ratio == 4) return args.num_selected[row];
  return (args.step.position[row] + 1) / 128;
}

// What a block of threads computes in one go: 64 heads of a row, over `blocks` blocks of keys.
struct Item {
  int row = 0, run = 0, first_head = 0, segment = 0;
  int position = 0, oldest = 0, entries = 0;
  int first_window = 0, window_blocks = 0, first_entry = 0, blocks = 0;

  __device__ bool IsWindow(int block) const { return block < window_blocks; }
  // First key of a block: a position, or an entry's rank.
  __device__ int BaseOf(int block) const {
    return kKeys * (IsWindow(block) ? first_window + block : EntryBlock(block));
  }
  __device__ int EntryBlock(int block) const { return first_entry + block - window_blocks; }
  __device__ int FirstKey(int block) const {
    return IsWindow(block) ? max(oldest - BaseOf(block), 0) : 0;
  }
  __device__ int EndKey(int block) const {
    return min((IsWindow(block) ? position + 1 : entries) - BaseOf(block), kKeys);
  }
  __device__ bool StartsSegment(int block) const {
    return block == 0 || block == window_blocks ||
           (!IsWindow(block) && EntryBlock(block) % kSegmentBlocks == 0);
  }
};

__device__ inline int NumItems(const AttendArgs& args) {
  const int groups = (args.shape.heads + kHeads - 1) / kHeads;
  return *args.step.num_rows * groups * args.segments;
}

// Rows first, so that neighbouring blocks of threads share keys. No blocks: no such segment.
__device__ inline Item ItemAt(const AttendArgs& args, int index) {
  const int groups = (args.shape.heads + kHeads - 1) / kHeads;
  Item item;
  item.row = index;
  if (groups * args.segments > 1) {
    const int rows = *args.step.num_rows;
    item.row = index % rows;
    item.first_head = index / rows % groups * kHeads;
    item.segment = index / rows / groups;
  }
  item.position = args.step.position[item.row];
  item.run = args.step.sequence[item.row];
  item.oldest = max(item.position - args.shape.window + 1, 0);
  item.entries = NumEntries(args, item.row);
  item.first_window = item.oldest / kKeys;
  item.window_blocks = item.position / kKeys + 1 - item.first_window;
  int entry_blocks = (item.entries + kKeys - 1) / kKeys;
  if (args.segments > 1 && item.segment == 0) entry_blocks = 0;
  if (item.segment > 0) {
    item.window_blocks = 0;
    item.first_entry = (item.segment - 1) * kSegmentBlocks;
    entry_blocks = min(max(entry_blocks - item.first_entry, 0), kSegmentBlocks);
  }
  item.blocks = item.window_blocks + entry_blocks;
  return item;
}

// Items are taken in turn by blocks of threads or clusters of them.
template <int kBlocks>
__device__ int FirstItem() {
  return static_cast<int>(blockIdx.x) / kBlocks;
}
template <int kBlocks>
__device__ int ItemStride() {
  return static_cast<int>(gridDim.x) / kBlocks;
}

// Shared memory where tiles can lie.
template <typename Shared>
__device__ Shared& AlignedShared(uint8_t* memory) {
  return *reinterpret_cast<Shared*>(memory + (1024 - (SharedAddress(memory) & 1023u)) % 1024);
}
template <typename Shared>
constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;

}  // namespace baton::kernels::cuda
