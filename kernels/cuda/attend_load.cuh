#pragma once

#include "kernels/cuda/attend_entries.cuh"

// The side of attention that brings keys into shared memory.
namespace baton::kernels::cuda {

// A copying warpgroup: four threads a key, of its half of a tile's keys.
template <typename Shared>
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
    if (args_.shape.head_dim < kSlab * kMaxSlabs) ClearTiles();
    const int items = NumItems(args_);
    int number = 0;
    for (int i = FirstItem<1>(); i < items; i += ItemStride<1>()) {
      const Item item = ItemAt(args_, i);
      if (item.blocks == 0) continue;
      LoadItem(item, number++);
    }
    CopyAsyncWaitAll();  // no thread leaves before its copies
  }

 private:
  static constexpr int kSlabs = Shared::kSlabs;

  // 16 channels of a key and slab as they are stored, the rope channels last, and the groups'
  // scales; zeros for no key.
  struct Stored {
    uint4 values[kSlabs + 1];
    uint32_t scales[kSlabs / 4];
  };

  __device__ bool HasRope() const { return groups_ < kSlabs; }

  // Channels past the heads' dimension stay zero.
  __device__ void ClearTiles() const {
    const int first = half_ * kGroup + thread_;
    for (int at = 16 * first; at < Shared::kStages * Shared::kTileBytes; at += 16 * kLoadThreads) {
      *reinterpret_cast<uint4*>(s_.keys[0] + at) = make_uint4(0, 0, 0, 0);
    }
    MeetAt(kLoader, kLoadThreads);
  }

  // What entries are is read a block ahead, where they lie four to eight: the four threads of a key
  // look after every fourth block each.
  __device__ void LoadItem(const Item& item, int number) {
    const Entries entries(args_, item, key_);
    const int first = entries.Of(quarter_);
    int entry = entries.Of(4 + quarter_);
    EntryPlace places = entries.Find(first, page_shift_), next_places = -1;
    Stored stored = LoadStored(PlaceOf(places, 0));
    Acquire(0);
    Acquire(1);  // the row kAngleSets before is done
    StoreAngles(item, number);
    for (int b = 0; b < item.window_blocks; ++b) CopyWindow(item, b);
    for (int block = 0; block < entries.blocks; ++block) {
      Acquire(half_);
      Store(stored);
      BarrierArrive(SharedAddress(&s_.full[cursor_.stage]));
      cursor_.Advance();
      if (block % 4 == 3) {
        places = next_places;
        entry = entries.Of(block + 5 + quarter_);
      }
      stored = LoadStored(PlaceOf(places, block + 1));
      if (block % 4 == 0) next_places = entries.Find(entry, page_shift_);
    }
  }

  // For Finish.
  __device__ void StoreAngles(const Item& item, int number) const {
    if (args_.segments > 1 || half_ != 0 || thread_ >= args_.shape.rope_dim / 2) return;
    s_.angles[number % Shared::kAngleSets][thread_] =
        RopeSinCos(RopeAngle(item.position, args_.frequencies[thread_]));
  }

  // That half of the next tile is free.
  __device__ void Acquire(int half) const {
    BarrierWait(SharedAddress(&s_.empty[cursor_.stage][half]), cursor_.parity ^ 1);
  }

  // Of a block's key; whole warps call.
  __device__ static EntryPlace PlaceOf(EntryPlace places, int block) {
    return __shfl_sync(kFullWarp, places, LaneIndex() / 4 * 4 + block % 4);
  }

  __device__ void CopyWindow(const Item& item, int block) {
    const uint32_t tile = SharedAddress(s_.keys[cursor_.stage]);
    const int position = item.BaseOf(block) + key_;
    const bool is_visible = position >= item.oldest && position <= item.position;
    const Bf16* row = is_visible ? WindowRow(args_, item.run, position) : args_.kv;
    Acquire(half_);
#pragma unroll
    for (int i = 0; i < 2 * kSlabs; ++i) {
      const int slab = i / 2, chunk = 2 * quarter_ + i % 2;
      const int channel = kSlab * slab + 8 * chunk;
      if (channel >= args_.shape.head_dim) continue;
      CopyAsync16(tile + slab * kSlabBytes + Swizzled(key_, chunk), row + channel, is_visible);
    }
    ArriveBehindCopies(SharedAddress(&s_.full[cursor_.stage]));
    cursor_.Advance();
  }

  __device__ Stored LoadStored(EntryPlace place) const {
    Stored stored{};
    if (place < 0) return stored;
    const LayerPages& pages = args_.pages;
    const int row = place & ((1 << kPlaceShift) - 1);
    const uint8_t* page = pages.base + static_cast<uint64_t>(place >> kPlaceShift) * pages.stride;
    const uint8_t* scales = page + pages.scales + row * pages.scale_bytes;
    const uint8_t* data = page + pages.data + row * pages.data_bytes;
#pragma unroll
    for (int i = 0; i < kSlabs / 4; ++i) {
      stored.scales[i] = __ldg(reinterpret_cast<const uint32_t*>(scales) + i);
    }
#pragma unroll
    for (int g = 0; g < kSlabs; ++g) {
      if (g >= groups_) break;
      stored.values[g] = __ldg(reinterpret_cast<const uint4*>(data + kKvGroup * g + 16 * quarter_));
    }
    if (!HasRope()) return stored;
    const uint8_t* rope = data + kKvGroup * groups_;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = 2 * quarter_ + i;
      if (8 * chunk >= args_.shape.rope_dim) break;
      stored.values[kSlabs - 1 + i] = __ldg(reinterpret_cast<const uint4*>(rope) + chunk);
    }
    return stored;
  }

  // Into the tile as bf16.
  __device__ void Store(const Stored& stored) const {
    uint8_t* low = s_.keys[cursor_.stage] + Swizzled(key_, 2 * quarter_);
    uint8_t* high = s_.keys[cursor_.stage] + Swizzled(key_, 2 * quarter_ + 1);
    uint32_t any = 0;
    for (const uint32_t scales : stored.scales) any |= scales;
    if ((any & 0x80808080u) == 0) {
      StoreCodes<true>(stored, low, high);
    } else {
      StoreCodes<false>(stored, low, high);
    }
    if (!HasRope()) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (8 * (2 * quarter_ + i) >= args_.shape.rope_dim) break;
      *reinterpret_cast<uint4*>((i == 0 ? low : high) + groups_ * kSlabBytes) =
          stored.values[kSlabs - 1 + i];
    }
  }
  template <bool kIsSmall>
  __device__ void StoreCodes(const Stored& stored, uint8_t* low, uint8_t* high) const {
#pragma unroll
    for (int g = 0; g < kSlabs; ++g) {
      if (g >= groups_) break;
      uint32_t words[8];
      WidenStored<kIsSmall>(stored.values[g], stored.scales[g / 4] >> (8 * (g % 4)) & 255u, words);
      *reinterpret_cast<uint4*>(low + g * kSlabBytes) =
          make_uint4(words[0], words[1], words[2], words[3]);
      *reinterpret_cast<uint4*>(high + g * kSlabBytes) =
          make_uint4(words[4], words[5], words[6], words[7]);
    }
  }

  const AttendArgs& args_;
  Shared& s_;
  const int thread_, half_, key_, quarter_;
  const int groups_;  // of codes; the rope channels behind them
  const int page_shift_;
  Cursor<Shared::kStages> cursor_;  // the next tile to fill
};

}  // namespace baton::kernels::cuda
