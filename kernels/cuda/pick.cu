#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/select.h"

// Exact top-k (R7). A row's scores are cut into consecutive slices, one for each block of a
// cluster. The k-th largest is found by counting scores in bins of equal width between the least
// and the largest, and ranking those of one bin; where that has too many, by three rounds over
// digits of an order-preserving integer. The blocks count their slices and add the counts up
// through distributed shared memory. Then every warp counts what it will take of its stretch, and
// writes it behind what stretches before it take.
namespace baton::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kBins = 2048;
constexpr int kMaxRanks = 8;
constexpr uint32_t kMaxListed = 1024;  // scores of a bin that are ranked
constexpr int kFewEntries = 8192;      // of a row: a small block takes it,
constexpr int kShortThreads = 512;     // with that many threads, and keeps its scores
constexpr int kFewRows = 16;           // so few that clusters take longer ones
constexpr int kCsaRatio = 4;

// An integer whose order is the score's; -0 and +0 tie.
__device__ uint32_t Ordered(float score) {
  const uint32_t bits = BitsOf(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float FromOrdered(uint32_t value) {
  return FloatOf((value & 0x80000000u) != 0 ? value & 0x7fffffffu : ~value);
}

// Bins of equal width; the same bin or a higher one for a larger score.
struct LinearBins {
  float least, scale;

  __device__ uint32_t Of(uint32_t value) const {
    constexpr float kInteger =
        0x1p23f;  // added to a number it rounds to an integer in the low bits
    return BitsOf((FromOrdered(value) - least) * scale + kInteger) & (kBins - 1);
  }
};

struct Shared {
  uint32_t bins[kBins];   // of this block's slice; later its scores of one bin
  uint32_t total[kBins];  // the same of the row
  uint32_t least[kMaxWarps], largest[kMaxWarps], num_listed;
  uint32_t warp_sums[kMaxWarps];
  uint32_t above[kMaxWarps], equal[kMaxWarps];  // of a warp's stretch
  uint32_t slice_above, slice_equal;            // of this block's slice
  uint32_t prefix, left;
};

__device__ uint32_t LoadWordFromRank(const uint32_t* p, int rank) {
  return BitsOf(LoadFromRank(SharedAddress(p), static_cast<uint32_t>(rank)));
}

template <int kRanks, int kThreads>
class RowPicker {
 public:
  __device__ RowPicker(const float* scores, int n, int k, uint32_t* kept, Shared& s)
      : s_(s), k_(k), rank_(kRanks == 1 ? 0 : static_cast<int>(blockIdx.x) % kRanks) {
    const int per_rank = (n + kRanks - 1) / kRanks;
    first_ = min(rank_ * per_rank, n);
    count_ = min(per_rank, n - first_);
    scores_ = scores + first_;
    kept_ = kept;
  }

  // Of values that lie in shared memory; entries[i] is what value i stands for.
  __device__ RowPicker(uint32_t* values, const int32_t* entries, int n, int k, Shared& s)
      : s_(s), k_(k), rank_(0), first_(0), count_(n), kept_(values), entries_(entries) {}

  __device__ void Run(int32_t* selected) {
    uint32_t least = ~0u, largest = 0;
#pragma unroll 8
    for (int i = Thread(); i < count_; i += kThreads) {
      const uint32_t value = Ordered(scores_[i]);
      if (kept_ != nullptr) kept_[i] = value;
      least = min(least, value);
      largest = max(largest, value);
    }
    Find(least, largest);
    Take(selected);
  }

  __device__ void Take(int32_t* selected) {
    uint32_t above = 0, equal = 0;
    ForStretch([&](int, bool, bool, unsigned a, unsigned e) {
      above += static_cast<uint32_t>(__popc(a));
      equal += static_cast<uint32_t>(__popc(e));
    });
    if (LaneIndex() == 0) {
      s_.above[WarpIndex()] = above;
      s_.equal[WarpIndex()] = equal;
    }
    __syncthreads();
    above = SumOfWarpsBefore(s_.above);
    equal = SumOfWarpsBefore(s_.equal);
    if constexpr (kRanks > 1) {
      const uint32_t all_above = __reduce_add_sync(kFullWarp, OfWarp(s_.above));
      const uint32_t all_equal = __reduce_add_sync(kFullWarp, OfWarp(s_.equal));
      if (Thread() == 0) {
        s_.slice_above = all_above;
        s_.slice_equal = all_equal;
      }
      Sync();
      for (int r = 0; r < rank_; ++r) {
        above += LoadOf(&s_.slice_above, r);
        equal += LoadOf(&s_.slice_equal, r);
      }
    }
    const uint32_t allowed = s_.left, below_lane = (1u << LaneIndex()) - 1u;
    ForStretch([&](int i, bool is_above, bool is_equal, unsigned a, unsigned e) {
      const uint32_t ties = equal + static_cast<uint32_t>(__popc(e & below_lane));
      const uint32_t place =
          above + static_cast<uint32_t>(__popc(a & below_lane)) + min(ties, allowed);
      if (is_above || (is_equal && ties < allowed))
        selected[place] = entries_ != nullptr ? entries_[i] : first_ + i;
      above += static_cast<uint32_t>(__popc(a));
      equal += static_cast<uint32_t>(__popc(e));
    });
    if constexpr (kRanks > 1) Sync();  // the others have read this block's sums
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;

  __device__ static int Thread() { return static_cast<int>(threadIdx.x); }
  __device__ void Find(uint32_t least, uint32_t largest) {
    Start();
    if (FindInBins(least, largest)) return;
    __syncthreads();
    Start();
    FindDigit(21, 11);
    FindDigit(10, 11);
    FindDigit(0, 10);
  }
  __device__ static void Sync() {
    if constexpr (kRanks == 1) {
      __syncthreads();
    } else {
      ClusterSync();
    }
  }
  __device__ uint32_t Value(int i) const {
    return kept_ != nullptr ? kept_[i] : Ordered(scores_[i]);
  }

  __device__ void Start() {
    if (Thread() != 0) return;
    s_.prefix = s_.num_listed = 0;
    s_.left = static_cast<uint32_t>(k_);
  }

  // Bins between the least and the largest of all threads' scores; scale 0: there are none.
  __device__ LinearBins BinsOf(uint32_t least, uint32_t largest) {
    least = __reduce_min_sync(kFullWarp, least);
    largest = __reduce_max_sync(kFullWarp, largest);
    if (LaneIndex() == 0) {
      s_.least[WarpIndex()] = least;
      s_.largest[WarpIndex()] = largest;
    }
    Sync();
    for (int i = LaneIndex(); i < kRanks * kWarps; i += kWarp) {
      least = min(least, LoadOf(&s_.least[i % kWarps], i / kWarps));
      largest = max(largest, LoadOf(&s_.largest[i % kWarps], i / kWarps));
    }
    least = __reduce_min_sync(kFullWarp, least);
    largest = __reduce_max_sync(kFullWarp, largest);
    const float first = FromOrdered(least);
    const float scale = static_cast<float>(kBins - 1) / (FromOrdered(largest) - first);
    constexpr float kMost = 1e38f;
    return {first, scale > 0.0f && scale < kMost ? scale : 0.0f};  // neither NaN nor infinite
  }

  // The k-th largest score and how many equal ones belong to the k largest. False: not found.
  __device__ bool FindInBins(uint32_t least, uint32_t largest) {
    for (uint32_t i = threadIdx.x; i < kBins; i += kThreads) s_.bins[i] = 0;
    const LinearBins bins = BinsOf(least, largest);
    if (bins.scale == 0.0f) return false;
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) atomicAdd(&s_.bins[bins.Of(Value(i))], 1u);
    AddUp(kBins);
    ChooseBin(kBins, 11);
    const uint32_t bin = s_.prefix, left = s_.left, listed = Counts()[bin];
    if constexpr (kRanks > 1) Sync();  // the others have read this block's counts
    if (listed > kMaxListed) return false;
    ListBin(bins, bin);
    for (uint32_t i = threadIdx.x; i < listed; i += kThreads) {
      const uint32_t mine = s_.total[i];
      uint32_t above = 0, equal = 0, equal_before = 0;
#pragma unroll 4
      for (uint32_t j = 0; j < listed; ++j) {
        const uint32_t other = s_.total[j];
        above += other > mine ? 1 : 0;
        equal += other == mine ? 1 : 0;
        equal_before += other == mine && j < i ? 1 : 0;
      }
      if (above >= left || above + equal < left || equal_before > 0) continue;
      s_.prefix = mine;
      s_.left = left - above;
    }
    __syncthreads();
    return true;
  }

  // The row's scores of a bin, as integers, into s_.total.
  __device__ void ListBin(const LinearBins& bins, uint32_t bin) {
    uint32_t* list = kRanks == 1 ? s_.total : s_.bins;
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) {
      const uint32_t value = Value(i);
      if (bins.Of(value) == bin) list[atomicAdd(&s_.num_listed, 1u)] = value;
    }
    Sync();
    if constexpr (kRanks > 1) {
      uint32_t first = 0;
      for (int r = 0; r < kRanks; ++r) {
        const uint32_t count = LoadOf(&s_.num_listed, r);
        for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
          s_.total[first + i] = LoadOf(&s_.bins[i], r);
        }
        first += count;
      }
      Sync();  // the others have read this block's
    }
  }

  __device__ static uint32_t LoadOf(const uint32_t* p, int rank) {
    return kRanks == 1 ? *p : LoadWordFromRank(p, rank);
  }

  // The row's counts of bins.
  __device__ const uint32_t* Counts() const { return kRanks == 1 ? s_.bins : s_.total; }
  // Adds up the blocks' counts of the first bins.
  __device__ void AddUp(uint32_t bins) {
    Sync();
    if constexpr (kRanks > 1) {
      for (uint32_t i = threadIdx.x; i < bins; i += kThreads) {
        uint32_t sum = 0;
        for (int r = 0; r < kRanks; ++r) sum += LoadOf(&s_.bins[i], r);
        s_.total[i] = sum;
      }
      __syncthreads();
    }
  }

  // The next digit of the k-th largest: `bits` bits at `shift`, those above are found.
  __device__ void FindDigit(int shift, int bits) {
    const uint32_t bins = 1u << bits, high = static_cast<uint32_t>(shift + bits);
    for (uint32_t i = threadIdx.x; i < bins; i += kThreads) s_.bins[i] = 0;
    __syncthreads();
    const uint32_t wanted = s_.prefix;
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) {
      const uint32_t value = Value(i);
      if (high < 32 && value >> high != wanted) continue;
      atomicAdd(&s_.bins[value >> shift & (bins - 1)], 1u);
    }
    AddUp(bins);
    ChooseBin(static_cast<int>(bins), bits);
    Sync();  // the others have read this block's counts
  }

  // The bin in which the `left` largest end: counts from the top, a stretch of bins a thread.
  __device__ void ChooseBin(int bins, int bits) {
    const uint32_t* counts = Counts();
    const int per_thread = bins / kThreads, top = bins - 1 - Thread() * per_thread;
    uint32_t own = 0;
    for (int i = 0; i < per_thread; ++i) own += counts[top - i];
    uint32_t sum = own;
    for (int d = 1; d < kWarp; d *= 2) {
      const uint32_t below = __shfl_up_sync(kFullWarp, sum, d);
      if (LaneIndex() >= d) sum += below;
    }
    if (LaneIndex() == kWarp - 1) s_.warp_sums[WarpIndex()] = sum;
    const uint32_t left = s_.left, prefix = s_.prefix;
    __syncthreads();
    const uint32_t before = SumOfWarpsBefore(s_.warp_sums) + sum - own;
    if (before < left && before + own >= left) {
      uint32_t rest = left - before;
      int bin = top;
      while (counts[bin] < rest) rest -= counts[bin--];
      s_.prefix = prefix << bits | static_cast<uint32_t>(bin);
      s_.left = rest;
    }
    __syncthreads();
  }
  __device__ static uint32_t OfWarp(const uint32_t* of_warps) {
    return LaneIndex() < kWarps ? of_warps[LaneIndex()] : 0;
  }
  __device__ static uint32_t SumOfWarpsBefore(const uint32_t* of_warps) {
    return __reduce_add_sync(kFullWarp, LaneIndex() < WarpIndex() ? of_warps[LaneIndex()] : 0);
  }

  // Ballots over a warp's stretch of the slice: visit(i, is_above, is_equal, above, equal).
  template <typename Visit>
  __device__ void ForStretch(const Visit& visit) const {
    const int per_warp = (count_ + kWarps - 1) / kWarps;
    const int begin = min(WarpIndex() * per_warp, count_), end = min(begin + per_warp, count_);
    const uint32_t threshold = s_.prefix;
    for (int base = begin; base < end; base += kWarp) {
      const int i = base + LaneIndex();
      const uint32_t value = i < end ? Value(i) : 0;
      const bool is_above = i < end && value > threshold, is_equal = i < end && value == threshold;
      visit(i, is_above, is_equal, __ballot_sync(kFullWarp, is_above),
            __ballot_sync(kFullWarp, is_equal));
    }
  }

  Shared& s_;
  const int k_, rank_;
  int first_, count_;
  const float* scores_ = nullptr;
  uint32_t* kept_;
  const int32_t* entries_ = nullptr;
};

// Of a long row, whose scores the threads keep in registers. What k maxima of groups of scores
// reach bounds the k-th largest score from below, mostly so well that few more than k scores reach
// it; these are gathered in their order, and rank 0 picks among them. A warp has consecutive lines
// of 128 scores.
constexpr int kLine = 4 * kWarp;
constexpr int kMaxGathered = 2048;
constexpr int kGroups = 1024;

struct LongShared {
  Shared picker;
  uint32_t maxima[kGroups];  // of the row's groups
  uint32_t values[kMaxGathered];
  int32_t entries[kMaxGathered];
  uint32_t warp_counts[kMaxWarps], slice_count;
};

template <int kRanks, int kThreads, int kMostLines>
class LongRowPicker {
 public:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kMostScores = kRanks * kWarps * kMostLines * kLine;
  static constexpr int kLanesOfGroup = kRanks * kThreads / kGroups;

  __device__ LongRowPicker(const PickArgs& args, const float* scores, int n, LongShared& s)
      : scores_(scores),
        is_wide_(args.stride % 4 == 0 && reinterpret_cast<uintptr_t>(args.scores) % 16 == 0),
        n_(n),
        k_(args.k),
        rank_(kRanks == 1 ? 0 : static_cast<int>(blockIdx.x) % kRanks),
        s_(s) {
    const int lines = (n + kLine - 1) / kLine;
    lines_of_warp_ = (lines + kRanks * kWarps - 1) / (kRanks * kWarps);
    const int warp = rank_ * kWarps + WarpIndex();
    first_ = warp * lines_of_warp_ * kLine;
    own_lines_ = min(max(lines - warp * lines_of_warp_, 0), lines_of_warp_);
  }

  // False: too many scores reach the bound.
  __device__ bool Run(int32_t* selected) {
    if constexpr (kRanks > 1) ClusterArriveRelaxed();
    Load();
    ShareMaximum();
    Sync();
    const uint32_t least = FindBound();
    const uint32_t before = CountGathered(least);
    if (total_ > kMaxGathered) return false;
    Gather(least, before);
    Sync();
    if (rank_ != 0) return true;
    FindGathered();
    RowPicker<1, kThreads>(s_.values, s_.entries, static_cast<int>(total_), k_, s_.picker)
        .Take(selected);
    return true;
  }

 private:
  template <typename T>
  __device__ static T* PlaceAt(T* own, int rank) {
    return kRanks == 1 ? own : AtRank(own, rank);
  }
  __device__ static void Sync() {
    if constexpr (kRanks == 1) {
      __syncthreads();
    } else {
      ClusterSync();
    }
  }

  __device__ void Load() {
    float4 x[kMostLines];
#pragma unroll
    for (int j = 0; j < kMostLines; ++j) {
      if (j < own_lines_) x[j] = LoadFour(first_ + j * kLine + 4 * LaneIndex());
    }
#pragma unroll
    for (int j = 0; j < kMostLines; ++j) {
      const int at = first_ + j * kLine + 4 * LaneIndex();
      const bool has_line = j < own_lines_;
      values_[4 * j] = has_line && at < n_ ? Ordered(x[j].x) : 0;
      values_[4 * j + 1] = has_line && at + 1 < n_ ? Ordered(x[j].y) : 0;
      values_[4 * j + 2] = has_line && at + 2 < n_ ? Ordered(x[j].z) : 0;
      values_[4 * j + 3] = has_line && at + 3 < n_ ? Ordered(x[j].w) : 0;
    }
  }
  __device__ float4 LoadFour(int at) const {
    if (is_wide_ && at < n_) return *reinterpret_cast<const float4*>(scores_ + at);
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = at + i < n_ ? scores_[at + i] : 0.0f;
    return make_float4(x[0], x[1], x[2], x[3]);
  }

  __device__ void ShareMaximum() {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4 * kMostLines; ++i) largest = max(largest, values_[i]);
    for (int d = 1; d < kLanesOfGroup; d *= 2) {
      largest = max(largest, __shfl_xor_sync(kFullWarp, largest, d));
    }
    if constexpr (kRanks > 1) ClusterWait();  // all blocks are there
    if (LaneIndex() % kLanesOfGroup != 0) return;
    const int group = (rank_ * kThreads + static_cast<int>(threadIdx.x)) / kLanesOfGroup;
#pragma unroll
    for (int r = 0; r < kRanks; ++r) *PlaceAt(&s_.maxima[group], r) = largest;
  }
  // The largest number that k values reach, bits below `last` zero; 0: too few are not 0. Ends once
  // exactly k reach one. A value is own[i] of a thread, i < held.
  template <int kMostHeld>
  __device__ uint32_t Reached(const uint32_t (&own)[kMostHeld], int held, uint32_t last) const {
    uint32_t reached = 0;
#pragma unroll 1
    for (uint32_t bit = 0x80000000u; bit >= last && bit != 0; bit >>= 1) {
      const uint32_t next = reached | bit;
      int count = 0;
#pragma unroll
      for (int i = 0; i < kMostHeld; ++i) {
        if (i < held) count += __syncthreads_count(own[i] >= next ? 1 : 0);
      }
      if (count >= k_) reached = next;
      if (count == k_) break;
    }
    return reached;
  }
  // What k maxima reach; 1, which every score does, if too few groups have scores.
  __device__ uint32_t FindBound() const {
    constexpr int kOwn = kGroups / kThreads;
    uint32_t own[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = s_.maxima[i * kThreads + static_cast<int>(threadIdx.x)];
    return max(Reached(own, kOwn, 1u << 16), 1u);
  }
  // The k-th largest of the gathered, or a number between it and the next, and how many equal ones
  // are taken, for the picker.
  __device__ void FindGathered() {
    constexpr int kMostHeld = kMaxGathered / kThreads;
    const auto total = static_cast<int>(total_);
    const int held = (total + kThreads - 1) / kThreads;
    uint32_t own[kMostHeld];
#pragma unroll
    for (int i = 0; i < kMostHeld; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      own[i] = at < total ? s_.values[at] : 0;
    }
    const uint32_t reached = Reached(own, held, 1);
    int above = 0;
#pragma unroll
    for (int i = 0; i < kMostHeld; ++i) {
      if (i < held) above += __syncthreads_count(own[i] > reached ? 1 : 0);
    }
    if (threadIdx.x == 0) {
      s_.picker.prefix = reached;
      s_.picker.left = static_cast<uint32_t>(k_ - above);
    }
    __syncthreads();
  }

  // How many scores of warps before reach the bound; total_: of the row.
  __device__ uint32_t CountGathered(uint32_t least) {
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < 4 * kMostLines; ++i) own += values_[i] >= least ? 1 : 0;
    own = __reduce_add_sync(kFullWarp, own);
    if (LaneIndex() == 0) s_.warp_counts[WarpIndex()] = own;
    __syncthreads();
    const uint32_t count = LaneIndex() < kWarps ? s_.warp_counts[LaneIndex()] : 0;
    const uint32_t slice = __reduce_add_sync(kFullWarp, count);
    uint32_t before = __reduce_add_sync(kFullWarp, LaneIndex() < WarpIndex() ? count : 0);
    if (kRanks > 1 && threadIdx.x == 0) s_.slice_count = slice;
    Sync();  // and all have found the bound
    total_ = slice;
    if constexpr (kRanks > 1) {
      const uint32_t there = LaneIndex() < kRanks ? *AtRank(&s_.slice_count, LaneIndex()) : 0;
      total_ = __reduce_add_sync(kFullWarp, there);
      before += __reduce_add_sync(kFullWarp, LaneIndex() < rank_ ? there : 0);
    }
    return before;
  }

  // To rank 0, in order.
  __device__ void Gather(uint32_t least, uint32_t place) {
    uint32_t* values = PlaceAt(s_.values, 0);
    int32_t* entries = PlaceAt(s_.entries, 0);
#pragma unroll
    for (int j = 0; j < kMostLines; ++j) {
      uint32_t own = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) own |= (values_[4 * j + i] >= least ? 1u : 0u) << i;
      if (__ballot_sync(kFullWarp, own != 0) == 0) continue;
      uint32_t sum = static_cast<uint32_t>(__popc(own));
      for (int d = 1; d < kWarp; d *= 2) {
        const uint32_t below = __shfl_up_sync(kFullWarp, sum, d);
        if (LaneIndex() >= d) sum += below;
      }
      uint32_t at = place + sum - static_cast<uint32_t>(__popc(own));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((own >> i & 1u) == 0) continue;
        values[at] = values_[4 * j + i];
        entries[at++] = first_ + j * kLine + 4 * LaneIndex() + i;
      }
      place += __shfl_sync(kFullWarp, sum, kWarp - 1);
    }
  }

  const float* scores_;
  const bool is_wide_;
  const int n_, k_, rank_;
  LongShared& s_;
  int lines_of_warp_, first_, own_lines_;
  uint32_t total_ = 0;
  uint32_t values_[4 * kMostLines];
};

// How many scores a row has; those of short ones are all taken.
__device__ int CountScores(const PickArgs& args, int row, bool is_first) {
  const int n = args.counts != nullptr ? args.counts[row] : (args.positions[row] + 1) / kCsaRatio;
  if (!is_first) return n;
  if (threadIdx.x == 0) args.num_selected[row] = n < args.k ? n : args.k;
  int32_t* selected = args.selected + static_cast<int64_t>(row) * args.k;
  if (n > args.k) return n;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    selected[i] = i;
  }
  return n;
}

__global__ void __launch_bounds__(kShortThreads, 2) PickKernel(PickArgs args) {
  extern __shared__ uint32_t kept[];
  __shared__ Shared shared;
  const auto row = static_cast<int>(blockIdx.x);
  if (args.num_rows != nullptr && args.first_row + row >= *args.num_rows) return;
  const int n = CountScores(args, row, true);
  if (n <= args.k) return;
  RowPicker<1, kShortThreads>(args.scores + row * args.stride, n, args.k, kept, shared)
      .Run(args.selected + static_cast<int64_t>(row) * args.k);
}

template <int kRanks, int kThreads, int kMostLines>
__global__ void __launch_bounds__(kThreads) PickLongKernel(PickArgs args) {
  __shared__ LongShared shared;
  const int row = static_cast<int>(blockIdx.x) / kRanks;
  if (args.num_rows != nullptr && args.first_row + row >= *args.num_rows) return;
  const int n = CountScores(args, row, kRanks == 1 || blockIdx.x % kRanks == 0);
  if (n <= args.k) return;
  const float* scores = args.scores + row * args.stride;
  int32_t* selected = args.selected + static_cast<int64_t>(row) * args.k;
  using Picker = LongRowPicker<kRanks, kThreads, kMostLines>;
  if (n <= Picker::kMostScores && Picker(args, scores, n, shared).Run(selected)) return;
  RowPicker<kRanks, kThreads>(scores, n, args.k, nullptr, shared.picker).Run(selected);
}

template <int kRanks, typename Kernel>
cudaError_t Launch(Kernel kernel, const PickArgs& args, int threads, int bytes,
                   cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.rows * kRanks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kRanks, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = kRanks == 1 ? 0 : 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace

cudaError_t RunPick(const PickArgs& args, cudaStream_t stream) {
  using LongAlone = LongRowPicker<1, 1024, 8>;
  if (args.longest <= kFewEntries) {
    constexpr int kMostBytes = 4 * kFewEntries;
    if (const cudaError_t error = cudaFuncSetAttribute(
            PickKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBytes)) {
      return error;
    }
    return Launch<1>(PickKernel, args, kShortThreads, 4 * args.longest, stream);
  }
  if (args.rows > kFewRows && args.longest <= LongAlone::kMostScores) {
    return Launch<1>(PickLongKernel<1, 1024, 8>, args, 1024, 0, stream);
  }
  return Launch<kMaxRanks>(PickLongKernel<kMaxRanks, 512, 16>, args, 512, 0, stream);
}

}  // namespace baton::kernels::cuda
