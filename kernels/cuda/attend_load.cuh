#pragma once

#include "kernels/cuda/attend_items.cuh"
#include "kernels/cuda/slots.cuh"

// The side of attention that brings keys into shared memory.
namespace baton::kernels::cuda {

// The copying warpgroups: four threads a key.
class Loader {
 public:
  __device__ Loader(const AttendArgs& args, Shared& shared)
      : args_(args),
        s_(shared),
        thread_(static_cast<int>(threadIdx.x) - kMathThreads),
        key_(thread_ / 4),
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
      if (args_.segments == 1 && thread_ < args_.shape.rope_dim / 2) {
        s_.angles[number % kAngleSets][thread_] =
            RopeSinCos(RopeAngle(item.position, args_.frequencies[thread_]));
      }
      ++number;
      LoadItem(item);
    }
  }

 private:
  // 16 channels of a key and slab as they are stored, and the groups' scales; zeros for no key.
  struct Stored {
    uint4 codes[kSlabs - 1];
    uint4 rope[2];
    uint2 scales;
  };

  // Channels past the heads' dimension stay zero.
  __device__ void ClearTiles() const {
    for (int at = 16 * thread_; at < kStages * kTileBytes; at += 16 * kMathThreads) {
      *reinterpret_cast<uint4*>(s_.keys[0] + at) = make_uint4(0, 0, 0, 0);
    }
    MeetAt(kLoaders, kMathThreads);
  }

  __device__ void LoadItem(const Item& item) {
    const int run = args_.step.sequence[item.row];
    RowPlace next = EntryOf(item, run, item.window_blocks);
    for (int b = 0; b < item.window_blocks; ++b) {
      StartWindow(item, run, b);
      if (b > 0) EndWindow<1>();
    }
    for (int b = item.window_blocks; b < item.blocks; ++b) {
      const Stored stored = LoadStored(next);
      next = EntryOf(item, run, b + 1);
      if (b > 0 && b == item.window_blocks) EndWindow<0>();
      Acquire();
      if (((stored.scales.x | stored.scales.y) & 0x80808080u) == 0) {
        Widen<true>(stored);
      } else {
        Widen<false>(stored);
      }
      cursor_.Advance();
      Release();
    }
    if (item.blocks == item.window_blocks) EndWindow<0>();
  }

  __device__ void Acquire() const {
    BarrierWait(SharedAddress(&s_.empty[cursor_.stage]), cursor_.parity ^ 1);
  }
  // The oldest tile that was not yet released is whole.
  __device__ void Release() {
    FenceAsyncProxy();
    WarpArrive(SharedAddress(&s_.full[whole_.stage]));
    whole_.Advance();
  }

  // Where this thread's key of an entry block lies; null: no such key.
  __device__ RowPlace EntryOf(const Item& item, int run, int block) const {
    const int rank = item.BaseOf(block) + key_;
    if (block >= item.blocks || rank >= item.entries) return {nullptr, nullptr};
    const int entry =
        args_.ratio == 4
            ? args_.selected[static_cast<int64_t>(item.row) * args_.shape.index_topk + rank]
            : rank;
    const int place = entry >> page_shift_, row = entry - (place << page_shift_);
    const int32_t page =
        args_.step.page_table[static_cast<int64_t>(run) * args_.step.max_pages + place];
    const LayerPages& pages = args_.pages;
    uint8_t* base = pages.base + static_cast<uint64_t>(page) * pages.stride;
    return {base + pages.data + row * pages.data_bytes,
            base + pages.scales + row * pages.scale_bytes};
  }

  __device__ void StartWindow(const Item& item, int run, int block) {
    const int position = item.BaseOf(block) + key_, dim = args_.shape.head_dim;
    const bool is_visible = position >= item.oldest && position <= item.position;
    const Bf16* row = args_.kv;
    if (is_visible) {
      const RunInfo& info = args_.step.runs[run];
      const int first = static_cast<int>(info.first), reach = args_.shape.window - 1;
      row = position >= first
                ? args_.kv + static_cast<int64_t>(info.first_row + position - first) * dim
                : args_.old_window +
                      (static_cast<int64_t>(run) * reach + position - (first - reach)) * dim;
    }
    Acquire();
    const uint32_t to = SharedAddress(s_.keys[cursor_.stage]);
#pragma unroll
    for (int i = 0; i < 2 * kSlabs; ++i) {
      const int slab = i / 2, chunk = 2 * quarter_ + i % 2, channel = kSlab * slab + 8 * chunk;
      if (channel >= dim) continue;
      CopyAsync16(to + slab * kSlabBytes + Swizzled(key_, chunk), row + channel, is_visible);
    }
    CopyAsyncCommit();
    cursor_.Advance();
  }
  // All but the last kLeft window blocks are there.
  template <int kLeft>
  __device__ void EndWindow() {
    CopyAsyncWait<kLeft>();
    Release();
  }

  __device__ Stored LoadStored(const RowPlace& place) const {
    Stored stored{};
    if (place.data == nullptr) return stored;
    stored.scales = __ldg(reinterpret_cast<const uint2*>(place.scales));
#pragma unroll
    for (int g = 0; g < kSlabs - 1; ++g) {
      if (g >= groups_) break;
      stored.codes[g] =
          __ldg(reinterpret_cast<const uint4*>(place.data + kKvGroup * g + 16 * quarter_));
    }
    const uint8_t* rope = place.data + kKvGroup * groups_;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = 2 * quarter_ + i;
      if (8 * chunk >= args_.shape.rope_dim) break;
      stored.rope[i] = __ldg(reinterpret_cast<const uint4*>(rope) + chunk);
    }
    return stored;
  }

  // Into the tile as bf16.
  template <bool kIsSmall>
  __device__ void Widen(const Stored& stored) const {
    uint8_t* tile = s_.keys[cursor_.stage];
    const int low = Swizzled(key_, 2 * quarter_), high = Swizzled(key_, 2 * quarter_ + 1);
#pragma unroll
    for (int g = 0; g < kSlabs - 1; ++g) {
      if (g >= groups_) break;
      const uint32_t scales = g < 4 ? stored.scales.x : stored.scales.y;
      uint32_t words[8];
      WidenStored<kIsSmall>(stored.codes[g], scales >> (8 * (g % 4)) & 255u, words);
      uint8_t* slab = tile + g * kSlabBytes;
      *reinterpret_cast<uint4*>(slab + low) = make_uint4(words[0], words[1], words[2], words[3]);
      *reinterpret_cast<uint4*>(slab + high) = make_uint4(words[4], words[5], words[6], words[7]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (8 * (2 * quarter_ + i) >= args_.shape.rope_dim) break;
      *reinterpret_cast<uint4*>(tile + groups_ * kSlabBytes + (i == 0 ? low : high)) =
          stored.rope[i];
    }
  }

  const AttendArgs& args_;
  Shared& s_;
  const int thread_, key_, quarter_, groups_, page_shift_;
  Cursor cursor_, whole_;  // the next tile to fill, to release
};

}  // namespace baton::kernels::cuda
