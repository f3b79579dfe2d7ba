#pragma once

#include "kernels/cuda/attend_entries.cuh"
#include "kernels/cuda/attend_quad_shared.cuh"

// The side of attention by four blocks that brings keys into shared memory.
namespace baton::kernels::cuda {

// What four threads a key bring of half of a tile's keys: a quarter of the channels, two slabs.
struct QuadUnit {
  int key;         // of this thread
  int first_slab;  // and its groups of codes from there on; negative: none, and no rope channels
  int groups;
  // The thread's pieces of a stored key, the third one behind the second one.
  bool has[3];
  int offsets[2];
  uint32_t to[2];  // where its channels go in the first tile

  __device__ QuadUnit(const AttendArgs& args, const QuadShared& shared, int key, int quarter_slab,
                      bool is_extra)
      : key(key),
        first_slab(quarter_slab),
        groups((args.shape.head_dim - args.shape.rope_dim) / kSlab - quarter_slab) {
    const int quarter = static_cast<int>(threadIdx.x) % 4;
    const bool has_low = 16 * quarter < args.shape.rope_dim;
    const bool has_high = 16 * quarter + 8 < args.shape.rope_dim;
    const int codes = kKvGroup * first_slab + 16 * quarter, rope = codes + 16 * quarter;
    has[0] = groups > 0 || (groups == 0 && has_low);
    has[1] = groups > 1 || (groups == 1 && has_low) || (groups == 0 && has_high);
    has[2] = groups == 1 && has_high;
    offsets[0] = groups > 0 ? codes : rope;
    offsets[1] = groups == 0 ? rope + 16 : (groups == 1 ? rope : codes) + kKvGroup;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = is_extra ? key % (kKeys / 2) : key;
      to[i] = SharedAddress(shared.keys[0]) +
              static_cast<uint32_t>((is_extra ? kSlabBytes : 0) + Swizzled(row, 2 * quarter + i));
    }
  }
};

// The copying warpgroups. Of the keys whose scores this block multiplies the first one brings this
// block's quarter of the channels, the second one the half's other quarter; of the other keys the
// third one brings this block's quarter.
class QuadLoader {
 public:
  __device__ QuadLoader(const AttendArgs& args, QuadShared& shared, int first_thread)
      : args_(args),
        s_(shared),
        thread_((static_cast<int>(threadIdx.x) - first_thread) % kGroup),
        which_((static_cast<int>(threadIdx.x) - first_thread) / kGroup),
        quarter_(thread_ % 4),
        unit_(args, shared, thread_ / 4 + kKeys / 2 * ((Rank() + which_ / 2) % 2),
              2 * (Rank() ^ which_ % 2), which_ == 1),
        page_shift_(args.ratio == 4 ? 6 : 1) {}

  __device__ void Run() {
    QuadItems items(args_);
    for (Item item = items.Next(); item.blocks > 0; item = items.Next()) LoadItem(item);
    CopyAsyncWaitAll();  // no thread leaves before its copies
    ClusterWait();
  }

 private:
  static constexpr int kDepth = QuadShared::kDepth;

  __device__ static int Rank() { return static_cast<int>(ClusterRank()); }

  // What entries are and where is read four to eight tiles ahead: the four threads of a key look
  // after every fourth tile each.
  class Places {
   public:
    __device__ Places(const QuadLoader& loader, const Item& item, int key)
        : loader_(loader), entries_(loader.args_, item, key) {
      entry_ = entries_.Of(loader.quarter_);
    }
    __device__ void Start() {
      next_ = entries_.Find(entry_, loader_.page_shift_);
      entry_ = entries_.Of(4 + loader_.quarter_);
    }
    __device__ __forceinline__ EntryPlace Of(int block) {
      if (block % 4 == 0) {
        places_ = next_;
        next_ = entries_.Find(entry_, loader_.page_shift_);
        entry_ = entries_.Of(block + 8 + loader_.quarter_);
      }
      return __shfl_sync(kFullWarp, places_, LaneIndex() / 4 * 4 + block % 4);
    }
    __device__ int blocks() const { return entries_.blocks; }

   private:
    const QuadLoader& loader_;
    const Entries entries_;
    int entry_;
    EntryPlace places_ = -1, next_ = -1;
  };

  // Entries are kDepth - 1 tiles ahead.
  __device__ void LoadItem(const Item& item) {
    Places places(*this, item, unit_.key);
    for (int b = 0; b < item.window_blocks; ++b) CopyWindow(item, b);
    if (places.blocks() == 0) return;
    places.Start();
    int slot = 0;
#pragma unroll 1
    for (int b = 0; b < places.blocks() + kDepth - 1; ++b) {
      CopyStored(places.Of(b), s_.stored[slot][which_]);
      CopyAsyncCommit();
      slot = slot + 1 < kDepth ? slot + 1 : 0;
      if (b < kDepth - 1) continue;
      CopyAsyncWait<kDepth - 1>();
      Acquire();
      Store(s_.stored[slot][which_]);
      cursor_.Advance();
    }
  }

  // The next tile is free.
  __device__ void Acquire() const {
    BarrierWait(SharedAddress(&s_.empty[cursor_.stage]), cursor_.parity ^ 1);
  }

  __device__ void CopyWindow(const Item& item, int block) {
    const int position = item.BaseOf(block) + unit_.key;
    const bool is_visible = position >= item.oldest && position <= item.position;
    const Bf16* row = is_visible ? WindowRow(args_, item.run, position) : args_.kv;
    const auto tile = static_cast<uint32_t>(cursor_.stage * QuadShared::kTileBytes);
    Acquire();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = kSlab * (unit_.first_slab + i / 2) + 8 * (2 * quarter_ + i % 2);
      const bool is_there = is_visible && channel < args_.shape.head_dim;
      CopyAsync16(unit_.to[i % 2] + tile + static_cast<uint32_t>(i / 2 * QuadShared::kPlaneBytes),
                  row + (is_there ? channel : 0), is_there);
    }
    ArriveBehindCopies(SharedAddress(&s_.full[cursor_.stage]));
    cursor_.Advance();
  }

  // 16 channels of a key in each of two slabs as they are stored, and the groups' scales; zeros
  // for no key. A slab of rope channels takes two pieces.
  __device__ __forceinline__ void CopyStored(EntryPlace place, QuadShared::Stored& stored) const {
    const LayerPages& pages = args_.pages;
    const bool is_there = place >= 0;
    const auto index = static_cast<uint32_t>(is_there ? place >> kPlaceShift : 0);
    const int row = place & ((1 << kPlaceShift) - 1);
    const uint8_t* page = pages.base + static_cast<uint64_t>(index) *
                                           static_cast<uint32_t>(pages.stride);  // below 4 GiB
    const uint8_t* data = page + pages.data;
    const uint8_t* scales = page + pages.scales;
    const uint32_t to = SharedAddress(&stored.values[0][thread_]);
    const uint8_t* first = data + (row * pages.data_bytes + unit_.offsets[0]);
    const uint8_t* second = data + (row * pages.data_bytes + unit_.offsets[1]);
    CopyAsync16(to, first, is_there && unit_.has[0]);
    CopyAsync16(to + 16 * kGroup, second, is_there && unit_.has[1]);
    CopyAsync16(to + 32 * kGroup, second + 16, is_there && unit_.has[2]);
    CopyAsync4(SharedAddress(&stored.scales[thread_]),
               scales + (row * pages.scale_bytes + unit_.first_slab / 4 * 4), is_there);
  }

  // Into the tile as bf16.
  __device__ __forceinline__ void Store(const QuadShared::Stored& stored) const {
    const uint4 first = stored.values[0][thread_], second = stored.values[1][thread_];
    const uint32_t scales = stored.scales[thread_] >> (8 * (unit_.first_slab % 4));
    const auto tile = static_cast<uint32_t>(cursor_.stage * QuadShared::kTileBytes);
    uint32_t words[8] = {first.x,  first.y,  first.z,  first.w,
                         second.x, second.y, second.z, second.w};
    if (unit_.groups != 0) Widen(first, scales & 255u, words);
    StoreShared16(unit_.to[0] + tile, &words[0]);
    StoreShared16(unit_.to[1] + tile, &words[4]);
    if (unit_.groups != 1) {
      Widen(unit_.groups == 0 ? make_uint4(0, 0, 0, 0) : second, scales >> 8 & 255u, words);
    } else {
      const uint4 last = stored.values[2][thread_];
      const uint32_t rope[8] = {second.x, second.y, second.z, second.w,
                                last.x,   last.y,   last.z,   last.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) words[i] = rope[i];
    }
    StoreShared16(unit_.to[0] + tile + QuadShared::kPlaneBytes, &words[0]);
    StoreShared16(unit_.to[1] + tile + QuadShared::kPlaneBytes, &words[4]);
    BarrierArrive(SharedAddress(&s_.full[cursor_.stage]));
  }
  __device__ static __forceinline__ void Widen(const uint4& codes, uint32_t scale,
                                               uint32_t (&words)[8]) {
    if (scale < 128) {
      WidenStored<true>(codes, scale, words);
    } else {
      WidenStored<false>(codes, scale, words);
    }
  }

  __device__ static void CopyAsync4(uint32_t to, const void* from, bool is_valid) {
    const int bytes = is_valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  }

  const AttendArgs& args_;
  QuadShared& s_;
  const int thread_, which_, quarter_;
  const QuadUnit unit_;
  const int page_shift_;
  Cursor<QuadShared::kStages> cursor_;  // the next tile to fill
};

}  // namespace baton::kernels::cuda
