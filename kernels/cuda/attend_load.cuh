#pragma once

#include "kernels/cuda/attend_items.cuh"

// The side of attention that brings keys into shared memory.
namespace baton::kernels::cuda {

// A copying warpgroup: four threads a key, of its half of a tile's keys.
class Loader {
 public:
  __device__ Loader(const AttendArgs& args, Shared& shared)
      : args_(args),
        s_(shared),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        half_((static_cast<int>(threadIdx.x) - kMathThreads) / kGroup),
        key_(thread_ / 4 + kKeys / 2 * half_),
        quarter_(thread_ % 4),
        groups_((args.shape.head_dim - args.shape.rope_dim) / kSlab),
        page_shift_(args.ratio == 4 ? 6 : 1) {}

  __device__ void Run() {
    if (args_.shape.head_dim < kSlab * kSlabs) ClearTiles();
    const int items = NumItems(args_);
    int number = 0;
    for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
      const Item item = ItemAt(args_, i);
      if (item.blocks == 0) continue;
      LoadItem(item, number++);
    }
    CopyAsyncWaitAll();  // no thread leaves before its copies
  }

 private:
  // A page and a row of it; page -1: no such key.
  struct EntryAt {
    int page, row;
  };
  // An item's entries, of which a thread has every kKeys-th.
  struct Entries {
    const int32_t* pages;
    const int32_t* selected;  // null: all
    int first, end, blocks;

    __device__ Entries(const AttendArgs& args, const Item& item, int run, int key)
        : pages(args.step.page_table + static_cast<int64_t>(run) * args.step.max_pages),
          selected(args.ratio == 4
                       ? args.selected + static_cast<int64_t>(item.row) * args.shape.index_topk
                       : nullptr),
          first(item.BaseOf(item.window_blocks) + key),
          end(item.entries),
          blocks(item.blocks - item.window_blocks) {}
  };
  // 16 channels of a key and slab as they are stored, and the groups' scales; zeros for no key.
  struct Stored {
    uint4 codes[kSlabs - 1];
    uint4 rope[2];
    uint2 scales;
  };

  // Channels past the heads' dimension stay zero.
  __device__ void ClearTiles() const {
    const int first = half_ * kGroup + thread_;
    for (int at = 16 * first; at < kStages * kTileBytes; at += 16 * kLoadThreads) {
      *reinterpret_cast<uint4*>(s_.keys[0] + at) = make_uint4(0, 0, 0, 0);
    }
    MeetAt(kLoader, kLoadThreads);
  }

  // Entries are read two blocks ahead: first where they lie, then what they are.
  __device__ void LoadItem(const Item& item, int number) {
    const int run = args_.step.sequence[item.row];
    const Entries entries(args_, item, run, key_);
    int block = 0;
    EntryAt next = EntryOf(entries, block);
    Stored stored = LoadStored(next);
    next = EntryOf(entries, 1);
    Acquire(0);
    Acquire(1);  // the row three before is done
    if (args_.segments == 1 && half_ == 0 && thread_ < args_.shape.rope_dim / 2) {
      s_.angles[number % kAngleSets][thread_] =
          RopeSinCos(RopeAngle(item.position, args_.frequencies[thread_]));
    }
    LoadWindow(item, run);
    for (; block < entries.blocks; ++block) {
      Acquire(half_);
      Store(stored);
      BarrierArrive(SharedAddress(&s_.full[cursor_.stage]));
      cursor_.Advance();
      stored = LoadStored(next);
      next = EntryOf(entries, block + 2);
    }
  }

  __device__ void LoadWindow(const Item& item, int run) {
    for (int b = 0; b < item.window_blocks; ++b) CopyWindow(item, run, b);
  }

  // That half of the next tile is free.
  __device__ void Acquire(int half) const {
    BarrierWait(SharedAddress(&s_.empty[cursor_.stage][half]), cursor_.parity ^ 1);
  }

  // Where this thread's key of an item's entry block lies.
  __device__ EntryAt EntryOf(const Entries& entries, int block) const {
    const int rank = entries.first + block * kKeys;
    if (block >= entries.blocks || rank >= entries.end) return {-1, 0};
    const int entry = entries.selected != nullptr ? entries.selected[rank] : rank;
    const int place = entry >> page_shift_;
    return {entries.pages[place], entry - (place << page_shift_)};
  }

  __device__ void CopyWindow(const Item& item, int run, int block) {
    const int dim = args_.shape.head_dim;
    const uint32_t tile = SharedAddress(s_.keys[cursor_.stage]);
    const int position = item.BaseOf(block) + key_;
    const bool is_visible = position >= item.oldest && position <= item.position;
    const Bf16* row = is_visible ? WindowRow(run, position) : args_.kv;
    Acquire(half_);
#pragma unroll
    for (int i = 0; i < 2 * kSlabs; ++i) {
      const int slab = i / 2, chunk = 2 * quarter_ + i % 2, channel = kSlab * slab + 8 * chunk;
      if (channel >= dim) continue;
      CopyAsync16(tile + slab * kSlabBytes + Swizzled(key_, chunk), row + channel, is_visible);
    }
    ArriveBehindCopies(SharedAddress(&s_.full[cursor_.stage]));
    cursor_.Advance();
  }
  __device__ const Bf16* WindowRow(int run, int position) const {
    const RunInfo& info = args_.step.runs[run];
    const int first = static_cast<int>(info.first), reach = args_.shape.window - 1;
    const int64_t dim = args_.shape.head_dim;
    if (position >= first) return args_.kv + (info.first_row + position - first) * dim;
    const int64_t index = static_cast<int64_t>(run) * reach + position - (first - reach);
    return args_.old_window + index * dim;
  }
  __device__ Stored LoadStored(const EntryAt& entry) const {
    Stored stored{};
    if (entry.page < 0) return stored;
    const LayerPages& pages = args_.pages;
    const uint8_t* page = pages.base + static_cast<uint64_t>(entry.page) * pages.stride;
    const uint8_t* scales = page + pages.scales + entry.row * pages.scale_bytes;
    const uint8_t* data = page + pages.data + entry.row * pages.data_bytes;
    stored.scales = __ldg(reinterpret_cast<const uint2*>(scales));
#pragma unroll
    for (int g = 0; g < kSlabs - 1; ++g) {
      if (g >= groups_) break;
      stored.codes[g] = __ldg(reinterpret_cast<const uint4*>(data + kKvGroup * g + 16 * quarter_));
    }
    const uint8_t* rope = data + kKvGroup * groups_;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = 2 * quarter_ + i;
      if (8 * chunk >= args_.shape.rope_dim) break;
      stored.rope[i] = __ldg(reinterpret_cast<const uint4*>(rope) + chunk);
    }
    return stored;
  }

  // Into the tile as bf16.
  __device__ void Store(const Stored& stored) const {
    uint8_t* low = s_.keys[cursor_.stage] + Swizzled(key_, 2 * quarter_);
    uint8_t* high = s_.keys[cursor_.stage] + Swizzled(key_, 2 * quarter_ + 1);
    if (((stored.scales.x | stored.scales.y) & 0x80808080u) == 0) {
      StoreCodes<true>(stored, low, high);
    } else {
      StoreCodes<false>(stored, low, high);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (8 * (2 * quarter_ + i) >= args_.shape.rope_dim) break;
      *reinterpret_cast<uint4*>((i == 0 ? low : high) + groups_ * kSlabBytes) = stored.rope[i];
    }
  }
  template <bool kIsSmall>
  __device__ void StoreCodes(const Stored& stored, uint8_t* low, uint8_t* high) const {
#pragma unroll
    for (int g = 0; g < kSlabs - 1; ++g) {
      if (g >= groups_) break;
      const uint32_t scales = g < 4 ? stored.scales.x : stored.scales.y;
      uint32_t words[8];
      WidenStored<kIsSmall>(stored.codes[g], scales >> (8 * (g % 4)) & 255u, words);
      *reinterpret_cast<uint4*>(low + g * kSlabBytes) =
          make_uint4(words[0], words[1], words[2], words[3]);
      *reinterpret_cast<uint4*>(high + g * kSlabBytes) =
          make_uint4(words[4], words[5], words[6], words[7]);
    }
  }

  const AttendArgs& args_;
  Shared& s_;
  const int thread_, half_, key_, quarter_, groups_, page_shift_;
  Cursor cursor_;  // the next tile to fill
};

}  // namespace baton::kernels::cuda
