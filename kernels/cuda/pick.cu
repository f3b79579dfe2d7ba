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
constexpr int kFewEntries = 8192;      // of a row: a small block takes it
constexpr int kFewRows = 16;           // so few that clusters take longer ones
constexpr int kMaxKept = 48 * 1024;    // scores of a slice that shared memory keeps
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
    kept_ = per_rank <= kMaxKept ? kept : nullptr;
  }

  __device__ void Run(int32_t* selected) {
    uint32_t least = ~0u, largest = 0;
#pragma unroll 8
    for (int i = Thread(); i < count_; i += kThreads) {
      const uint32_t value = Ordered(scores_[i]);
      if (kept_ != nullptr) kept_[i] = value;
      least = min(least, value);
      largest = max(largest, value);
    }
    Start();
    if (!FindInBins(least, largest)) {
      __syncthreads();
      Start();
      FindDigit(21, 11);
      FindDigit(10, 11);
      FindDigit(0, 10);
    }
    Take(selected);
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;

  __device__ static int Thread() { return static_cast<int>(threadIdx.x); }
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
    __syncthreads();
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) atomicAdd(&s_.bins[bins.Of(Value(i))], 1u);
    AddUp(kBins);
    ChooseBin(kBins, 11);
    const uint32_t bin = s_.prefix, left = s_.left, listed = s_.total[bin];
    Sync();  // the others have read this block's counts, all threads have these
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
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) {
      const uint32_t value = Value(i);
      if (bins.Of(value) == bin) s_.bins[atomicAdd(&s_.num_listed, 1u)] = value;
    }
    Sync();
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

  __device__ static uint32_t LoadOf(const uint32_t* p, int rank) {
    return kRanks == 1 ? *p : LoadWordFromRank(p, rank);
  }

  // The blocks' counts of the first bins.
  __device__ void AddUp(uint32_t bins) {
    Sync();
    for (uint32_t i = threadIdx.x; i < bins; i += kThreads) {
      uint32_t sum = 0;
      for (int r = 0; r < kRanks; ++r) sum += LoadOf(&s_.bins[i], r);
      s_.total[i] = sum;
    }
    __syncthreads();
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
    const int per_thread = bins / kThreads, top = bins - 1 - Thread() * per_thread;
    uint32_t own = 0;
    for (int i = 0; i < per_thread; ++i) own += s_.total[top - i];
    uint32_t sum = own;
    for (int d = 1; d < kWarp; d *= 2) {
      const uint32_t below = __shfl_up_sync(kFullWarp, sum, d);
      if (LaneIndex() >= d) sum += below;
    }
    if (LaneIndex() == kWarp - 1) s_.warp_sums[WarpIndex()] = sum;
    const uint32_t left = s_.left, prefix = s_.prefix;
    __syncthreads();
    uint32_t before = sum - own;
    for (int w = 0; w < WarpIndex(); ++w) before += s_.warp_sums[w];
    if (before < left && before + own >= left) {
      uint32_t rest = left - before;
      int bin = top;
      while (s_.total[bin] < rest) rest -= s_.total[bin--];
      s_.prefix = prefix << bits | static_cast<uint32_t>(bin);
      s_.left = rest;
    }
    __syncthreads();
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
    above = equal = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == WarpIndex() && Thread() != 0) break;
      above += s_.above[w];
      equal += s_.equal[w];
    }
    if (Thread() == 0) {
      s_.slice_above = above;
      s_.slice_equal = equal;
      above = equal = 0;
    }
    above = __shfl_sync(kFullWarp, above, kWarp - 1);
    equal = __shfl_sync(kFullWarp, equal, kWarp - 1);
    Sync();
    for (int r = 0; r < rank_; ++r) {
      above += LoadOf(&s_.slice_above, r);
      equal += LoadOf(&s_.slice_equal, r);
    }
    const uint32_t allowed = s_.left, below_lane = (1u << LaneIndex()) - 1u;
    ForStretch([&](int i, bool is_above, bool is_equal, unsigned a, unsigned e) {
      const uint32_t ties = equal + static_cast<uint32_t>(__popc(e & below_lane));
      const uint32_t place =
          above + static_cast<uint32_t>(__popc(a & below_lane)) + min(ties, allowed);
      if (is_above || (is_equal && ties < allowed)) selected[place] = first_ + i;
      above += static_cast<uint32_t>(__popc(a));
      equal += static_cast<uint32_t>(__popc(e));
    });
    Sync();  // the others have read this block's sums
  }

  Shared& s_;
  const int k_, rank_;
  int first_, count_;
  const float* scores_;
  uint32_t* kept_;
};

template <int kRanks, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads == 512 ? 2 : 1) PickKernel(PickArgs args) {
  extern __shared__ uint32_t kept[];
  __shared__ Shared shared;
  const int row = static_cast<int>(blockIdx.x) / kRanks;
  if (args.num_rows != nullptr && args.first_row + row >= *args.num_rows) return;
  const int n = args.counts != nullptr ? args.counts[row] : (args.positions[row] + 1) / kCsaRatio;
  int32_t* selected = args.selected + static_cast<int64_t>(row) * args.k;
  const bool is_first = kRanks == 1 || blockIdx.x % kRanks == 0;
  if (is_first && threadIdx.x == 0) args.num_selected[row] = n < args.k ? n : args.k;
  if (n > args.k) {
    RowPicker<kRanks, kThreads>(args.scores + row * args.stride, n, args.k, kept, shared)
        .Run(selected);
  } else if (is_first) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) selected[i] = i;
  }
}

template <int kRanks, int kThreads>
cudaError_t Launch(const PickArgs& args, cudaStream_t stream) {
  const int per_rank = (args.longest + kRanks - 1) / kRanks;
  const int bytes = 4 * (per_rank < kMaxKept ? per_rank : kMaxKept);
  const auto kernel = PickKernel<kRanks, kThreads>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 4 * kMaxKept)) {
    return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.rows * kRanks));
  config.blockDim = dim3(kThreads);
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
  if (args.longest <= kFewEntries) return Launch<1, 512>(args, stream);
  return args.longest <= kMaxKept && args.rows > kFewRows ? Launch<1, 1024>(args, stream)
                                                          : Launch<kMaxRanks, 512>(args, stream);
}

}  // namespace baton::kernels::cuda
