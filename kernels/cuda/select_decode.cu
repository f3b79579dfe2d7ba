#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pick.cuh"
#include "kernels/cuda/select_decode.h"
#include "kernels/cuda/widen.cuh"

// The indexer's scores where every row is of another sequence, as in decode steps without drafts,
// at the usual shape. A warpgroup takes pages on its own: codes come ahead into shared memory, a
// lane widens those of its part of the first operand in registers, and adds up the heads of its
// keys. A short row has some blocks, the last of which to store its scores picks from them all; the
// pages of long rows are shared out evenly.
namespace baton::kernels::cuda {
namespace {

constexpr int kCsaRatio = 4;
constexpr int kHeads = 64;
constexpr int kIndexDim = 128;
constexpr int kPageEntries = 64;
constexpr int kHalfRow = 128;  // bytes of a query's half: 64 bf16 values, swizzled for wgmma
constexpr int kMultiprocessors = 132;
constexpr int kMostBlocks = 16;              // of a short row
constexpr int kLanes = 4;                    // that have a key's heads
constexpr uint32_t kUnscaled = 0x7b807b80u;  // 2^120 twice: what codes taken as bf16 lack

struct PageSlot {
  uint8_t codes[kPageEntries * kIndexDim];  // rows of 128 bytes, chunks of 16 swizzled
  float scales[kPageEntries];
};

template <bool kIsShort>
struct Shared {
  static constexpr int kBlocks = kIsShort ? 1 : 2;  // of a multiprocessor
  static constexpr int kGroups = 4 / kBlocks;       // warpgroups of a block
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kSlots = 5;  // pages of a warpgroup

  alignas(1024) uint8_t queries[2][kHeads * kHalfRow];
  float weights[kLanes][kHeads / kLanes + 4];  // on banks of their own
  bool is_last;
  union {
    alignas(128) PageSlot pages[kGroups][kSlots];
    PickShared picker;
  };
};

struct DecodeArgs {
  SelectArgs select;
  ScoreSlice slice;
};

template <bool kIsShort, bool kIsFp4>
class Scorer {
 public:
  using Shared = Shared<kIsShort>;
  static constexpr int kGroups = Shared::kGroups, kThreads = Shared::kThreads;
  static constexpr int kSlots = Shared::kSlots;

  __device__ Scorer(const DecodeArgs& args, Shared& shared)
      : slice_(args.slice), args_(args.select), s_(shared) {
    const uint32_t codes = SharedAddress(s_.pages[Group()][0].codes);
    const int row = Thread() / 8, key = 16 * Warp() + LaneIndex() % 16;
    to_ = codes + static_cast<uint32_t>(kIsFp4 ? Thread() * 16 : Swizzled(row, Thread() % 8));
    tile_ = codes + static_cast<uint32_t>(Swizzled(key, LaneIndex() / 16));
    from_ = args_.pages.base + args_.pages.index_values + Thread() * 16;
    scales_ = args_.pages.index_scales - args_.pages.index_values;
  }

  // Short rows: blocks (., y) share the pages of row y.
  __device__ void RunRow() {
    const int row = slice_.first_row + static_cast<int>(blockIdx.y);
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int visible = NumVisible(row), run = args_.step.sequence[row];
    if (row >= *args_.step.num_rows) return;
    const int pages = PagesOf(visible);
    out_ = args_.scores + blockIdx.y * slice_.stride;
    if (pages > 0) {
      Begin(row, run, visible, block * pages / blocks, (block + 1) * pages / blocks);
      Score();
    }
    if (pages > 0 ? IsLast(args_.arrivals + row) : block == 0) Pick(row, visible);
  }

  // Long rows: this block's share of all pages.
  __device__ void RunShare() {
    int total = 0;
    for (int first = 0; first < slice_.rows; first += kWarp) {
      total += __reduce_add_sync(kFullWarp, LaneRowAt(first).pages);
    }
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const auto share = [&](int i) { return static_cast<int>(int64_t{total} * i / blocks); };
    const int end = share(block + 1);
    for (int page = share(block); page < end;) page = ScoreFrom(page, end);
  }

 private:
  __device__ static int Thread() { return static_cast<int>(threadIdx.x) % kGroupThreads; }
  __device__ static int Group() { return static_cast<int>(threadIdx.x) / kGroupThreads; }
  __device__ static int Warp() { return Thread() / kWarp; }
  // Where a chunk of 16 bytes of a key lies.
  __device__ static int Swizzled(int key, int chunk) {
    return key * kIndexDim + (chunk ^ key % 8) * 16;
  }
  __device__ int NumVisible(int row) const { return (args_.step.position[row] + 1) / kCsaRatio; }
  __device__ int PagesOf(int visible) const {
    return visible > args_.shape.index_topk ? (visible + kPageEntries - 1) / kPageEntries : 0;
  }
  // This lane's of 32 rows.
  struct LaneRow {
    int pages, run, visible;  // no pages: none are scored
  };
  __device__ LaneRow LaneRowAt(int first) const {
    const int i = first + LaneIndex(), row = slice_.first_row + i;
    if (i >= slice_.rows) return {};
    const int visible = NumVisible(row), run = args_.step.sequence[row];
    return {row < *args_.step.num_rows ? PagesOf(visible) : 0, run, visible};
  }

  // From a page of all rows' to its row's end or to page `end`; returns where that is.
  __device__ int ScoreFrom(int page, int end) {
    int before = 0;
    for (int first = 0;; first += kWarp) {
      const LaneRow own = LaneRowAt(first);
      int sum = own.pages;
      for (int d = 1; d < kWarp; d *= 2) {
        const int below = __shfl_up_sync(kFullWarp, sum, d);
        if (LaneIndex() >= d) sum += below;
      }
      sum += before;
      const unsigned behind = __ballot_sync(kFullWarp, sum > page);
      before = __shfl_sync(kFullWarp, sum, kWarp - 1);
      if (behind == 0) continue;
      const int lane = __ffs(static_cast<int>(behind)) - 1, index = first + lane;
      const int start = __shfl_sync(kFullWarp, sum - own.pages, lane);
      const int stop = min(end, __shfl_sync(kFullWarp, sum, lane));
      out_ = args_.scores + index * slice_.stride;
      maxima_ = slice_.maxima + index * slice_.maxima_stride;
      __syncthreads();  // the queries before are done with
      Begin(slice_.first_row + index, __shfl_sync(kFullWarp, own.run, lane),
            __shfl_sync(kFullWarp, own.visible, lane), page - start, stop - start);
      Score();
      return stop;
    }
  }

  // Pages first .. last - 1 of a row: the first ones and the queries come.
  __device__ void Begin(int row, int run, int visible, int first, int last) {
    visible_ = visible;
    table_ = args_.step.page_table + static_cast<int64_t>(run) * args_.step.max_pages;
    first_ = first + Group();
    count_ = (last - first_ + kGroups - 1) / kGroups;
    rounds_ = (last - first + kGroups - 1) / kGroups;
    LoadIds(0);
    QueryPart parts[kQueryParts];
    LoadQueries(row, parts);
#pragma unroll
    for (int i = 0; i < kSlots - 1; ++i) Fetch(i, i);
    StoreQueries(parts);
    __syncthreads();
  }

  // All warpgroups meet equally often, which racecheck can follow.
  __device__ void Score() {
    int slot = 0;
    for (int i = 0; i < rounds_; ++i) {
      CopyAsyncWait<kSlots - 2>();
      MeetAt(1 + Group(), kGroupThreads);
      Fetch(i + kSlots - 1, slot == 0 ? kSlots - 1 : slot - 1);
      if (i < count_) ScorePage(first_ + i * kGroups, slot);
      slot = slot == kSlots - 1 ? 0 : slot + 1;
    }
  }

  __device__ void LoadIds(int i) {
    const int at = i + LaneIndex();
    ids_ = at < count_ ? table_[first_ + at * kGroups] : 0;
  }

  // The warpgroup's page i into a slot.
  __device__ void Fetch(int i, int slot) {
    if (i % kWarp == 0 && i != 0) LoadIds(i);
    const auto page = static_cast<uint32_t>(__shfl_sync(kFullWarp, ids_, i % kWarp));
    if (i < count_) {
      const uint8_t* from = from_ + page * args_.pages.stride;
      const uint32_t to = to_ + static_cast<uint32_t>(slot) * sizeof(PageSlot);
#pragma unroll
      for (int m = 0; m < (kIsFp4 ? 2 : 4); ++m) CopyAsync16(to + m * 2048, from + m * 2048, true);
      if (Thread() < 16) {
        CopyAsync16(SharedAddress(s_.pages[Group()][slot].scales + 4 * Thread()), from + scales_,
                    true);
      }
    }
    CopyAsyncCommit();
  }

  // Sixteen values of a head.
  struct QueryPart {
    uint4 low, high;
  };
  static constexpr int kAllParts = kHeads * kIndexDim / 16;
  static constexpr int kQueryParts = (kAllParts + kThreads - 1) / kThreads;  // of a thread

  __device__ void LoadQueries(int row, QueryPart (&parts)[kQueryParts]) {
    const auto* from = reinterpret_cast<const uint4*>(
        args_.index_query + static_cast<int64_t>(row) * kHeads * kIndexDim);
#pragma unroll
    for (int p = 0; p < kQueryParts; ++p) {
      const int i = p * kThreads + static_cast<int>(threadIdx.x);
      if (i < kAllParts) parts[p] = {from[2 * i], from[2 * i + 1]};
    }
    const int head = static_cast<int>(threadIdx.x);
    weight_ = head < kHeads ? args_.index_weights[static_cast<int64_t>(row) * kHeads + head] : 0.0f;
  }
  // Rows of the second operand are laid so that accumulator columns 8 j + 2 t and + 1 of lane t of
  // every four are heads 16 t + 2 j and + 1; of every sixteen values the even ones come first, as a
  // word of codes has them.
  __device__ void StoreQueries(const QueryPart (&parts)[kQueryParts]) {
    const auto even = [](uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x5410); };
    const auto odd = [](uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x7632); };
#pragma unroll
    for (int p = 0; p < kQueryParts; ++p) {
      const int i = p * kThreads + static_cast<int>(threadIdx.x), head = i / 8, step = i % 8;
      if (i >= kAllParts) break;
      const uint4 &a = parts[p].low, &b = parts[p].high;
      const int to_row = head % 16 / 2 * 8 + head / 16 * 2 + head % 2, chunk = step % 4 * 2;
      uint8_t* to = s_.queries[step / 4] + to_row * kHalfRow;
      *reinterpret_cast<uint4*>(to + (chunk ^ to_row % 8) * 16) =
          make_uint4(even(a.x, a.y), even(a.z, a.w), even(b.x, b.y), even(b.z, b.w));
      *reinterpret_cast<uint4*>(to + ((chunk + 1) ^ to_row % 8) * 16) =
          make_uint4(odd(a.x, a.y), odd(a.z, a.w), odd(b.x, b.y), odd(b.z, b.w));
    }
    const int head = static_cast<int>(threadIdx.x);
    if (head < kHeads) s_.weights[head / 16][head % 16] = weight_;
    FenceAsyncProxy();
  }

  // Steps k and k + 1 of this lane's keys.
  __device__ void LoadKeys(int slot, int k, uint32_t (&a)[2][4]) const {
    if constexpr (kIsFp4) {
      LoadFp4Keys(slot, k, a);
      return;
    }
    uint32_t r[4];
    LoadMatrices(
        (tile_ + static_cast<uint32_t>(slot) * sizeof(PageSlot)) ^ static_cast<uint32_t>(k * 16),
        r);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[i][0] = LowFp8Pair(r[2 * i], kUnscaled);
      a[i][1] = LowFp8Pair(r[2 * i + 1], kUnscaled);
      a[i][2] = HighFp8Pair(r[2 * i], kUnscaled);
      a[i][3] = HighFp8Pair(r[2 * i + 1], kUnscaled);
    }
  }
  // e2m1 codes as bf16 lack 2^126; the scale of their group of 32 is multiplied in on its own.
  __device__ void LoadFp4Keys(int slot, int k, uint32_t (&a)[2][4]) const {
    constexpr uint32_t kLift = (126u + 127u) * 0x00800080u;
    const PageSlot& page = s_.pages[Group()][slot];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = 16 * Warp() + LaneIndex() / 4 + 8 * half;
      const uint8_t* scales = reinterpret_cast<const uint8_t*>(page.scales + key);
      const uint32_t scale = PairOfScale(DecodeE8m0(scales[k / 2]));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint8_t* codes = page.codes + key * (kIndexDim / 2) + 8 * (k + i);
        const uint32_t word = reinterpret_cast<const uint16_t*>(codes)[LaneIndex() % 4];
        const uint32_t pairs = word | word << 8;  // codes 0 and 2, above them 1 and 3
        a[i][half] =
            Lifted(Lifted((pairs << 6 & 0x01c001c0u) | (pairs << 12 & 0x80008000u), kLift), scale);
        a[i][2 + half] =
            Lifted(Lifted((pairs << 2 & 0x01c001c0u) | (pairs << 8 & 0x80008000u), kLift), scale);
      }
    }
  }

  __device__ void ScorePage(int page, int slot) {
    const uint64_t queries = TileDescriptor(SharedAddress(s_.queries));
    float d[kHeads / 2];
    uint32_t a[4][2][4];
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      LoadKeys(slot, k, a[k / 2]);
      WgmmaFence();
#pragma unroll
      for (int i = k; i < k + 2; ++i) {
        const uint64_t step = static_cast<uint64_t>((i / 4 * kHeads * kHalfRow + i % 4 * 32) >> 4);
        Wgmma<kHeads>(d, a[k / 2][i - k], queries + step, i > 0);
      }
    }
    WgmmaCommit();
    const int key = 16 * Warp() + LaneIndex() / 4;
    const float* scales = s_.pages[Group()][slot].scales + key;
    const float low = kIsFp4 ? 1.0f : scales[0], high = kIsFp4 ? 1.0f : scales[8];
    WgmmaWait();
    HoldResults(d);
    float sums[2] = {};
    AddHeads(d, sums);
    Store(page * kPageEntries + key, sums[0] * low, sums[1] * high);
  }

  // Sixteen heads a lane: the sum goes through the four lanes. The products become its terms.
  __device__ void AddHeads(float (&d)[kHeads / 2], float (&sums)[2]) const {
    const auto* weights = reinterpret_cast<const float4*>(s_.weights[LaneIndex() % 4]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 four = weights[i];
      const float w[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // heads 4 i + j / 4 * 2 and + 1 of two keys
        float& term = d[8 * i + j];
        term = w[j / 4 * 2 + j % 2] * Larger(term, 0.0f);
      }
    }
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
#pragma unroll
      for (int h = 0; h < 16; ++h) {
        sums[0] += d[h / 2 * 4 + h % 2];
        sums[1] += d[h / 2 * 4 + h % 2 + 2];
      }
      sums[0] = __shfl_sync(kFullWarp, sums[0], lane, 4);
      sums[1] = __shfl_sync(kFullWarp, sums[1], lane, 4);
    }
  }

  // Every four lanes have the scores of two keys; a warp has a group of keys.
  __device__ void Store(int entry, float low, float high) {
    const bool has_low = entry < visible_, has_high = entry + 8 < visible_;
    if (LaneIndex() % 4 == 0) {
      if (has_low) out_[entry] = low;
      if (has_high) out_[entry + 8] = high;
    }
    if constexpr (kIsShort) return;
    const uint32_t largest =
        __reduce_max_sync(kFullWarp, max(has_low ? Ordered(low) : 0, has_high ? Ordered(high) : 0));
    if (LaneIndex() == 0 && has_low) maxima_[entry / kGroupScores] = FromOrdered(largest);
  }

  // Whether all other blocks of the row have stored their scores.
  __device__ bool IsLast(uint32_t* arrivals) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      s_.is_last = atomicAdd(arrivals, 1u) == gridDim.x - 1;
      if (s_.is_last) *arrivals = 0;
      __threadfence();
    }
    __syncthreads();
    return s_.is_last;
  }

  __device__ void Pick(int row, int n) {
    const int k = args_.shape.index_topk;
    int32_t* selected = args_.selected + static_cast<int64_t>(row) * k;
    if (threadIdx.x == 0) args_.num_selected[row] = min(n, k);
    if (n <= k) {
      for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) selected[i] = i;
    } else if (n <= 4 * kThreads) {
      PickHeld<4>(n, k, selected);
    } else {
      PickHeld<kMostShort / kThreads>(n, k, selected);
    }
  }
  template <int kHeld>
  __device__ void PickHeld(int n, int k, int32_t* selected) {
    const float* scores = out_;
    const auto load = [scores](int i) { return __ldcg(scores + i); };
    RowPicker<kThreads, kHeld, decltype(load)> picker(load, n, k, s_.picker);
    const auto threshold = picker.Find();
    picker.Take(
        threshold, [](int i) { return i; }, selected);
  }

  const ScoreSlice& slice_;
  const SelectArgs& args_;
  Shared& s_;
  const uint8_t* from_;  // of this thread's codes, in page 0
  uint64_t scales_;      // behind them
  uint32_t to_, tile_;
  const int32_t* table_;
  float *out_, *maxima_;
  int visible_, first_, count_, rounds_;
  int32_t ids_;
  float weight_;
};

template <bool kIsShort, bool kIsFp4>
__global__ void __launch_bounds__(Shared<kIsShort>::kThreads, Shared<kIsShort>::kBlocks)
    SelectDecodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(1024) uint8_t raw[];
  StartAfterEarlier();
  Scorer<kIsShort, kIsFp4> scorer(args, *reinterpret_cast<Shared<kIsShort>*>(raw));
  if constexpr (kIsShort) {
    scorer.RunRow();
  } else {
    scorer.RunShare();
  }
}

template <bool kIsShort>
cudaError_t Launch(dim3 grid, const DecodeArgs& args, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<kIsShort>);
  const auto kernel = args.select.pages.has_fp4_index ? SelectDecodeKernel<kIsShort, true>
                                                      : SelectDecodeKernel<kIsShort, false>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  return EarlyLaunch(grid, Shared<kIsShort>::kThreads, kBytes, stream).Run(kernel, args);
}

}  // namespace

cudaError_t RunSelectShort(const SelectArgs& args, const ScoreSlice& slice, cudaStream_t stream) {
  const int of_row = std::clamp(kMultiprocessors / slice.rows, 1, kMostBlocks);
  const dim3 grid(static_cast<unsigned>(of_row), static_cast<unsigned>(slice.rows));
  return Launch<true>(grid, {args, slice}, stream);
}

cudaError_t RunScoreDecode(const SelectArgs& args, const ScoreSlice& slice, cudaStream_t stream) {
  return Launch<false>(dim3(kMultiprocessors * Shared<false>::kBlocks), {args, slice}, stream);
}

}  // namespace baton::kernels::cuda
