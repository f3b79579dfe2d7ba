#pragma once

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/row_math.cuh"

// Exact top-k (R7) of one row by a block of threads. The k-th largest is found by counting values
// in bins of equal width between the least and the largest, and ranking those of one bin; where
// that has too many, by three rounds over digits of an order-preserving integer. Then every warp
// counts what it will take of its stretch, and writes it behind what stretches before it take.
namespace baton::kernels::cuda {

constexpr int kBins = 2048;
constexpr uint32_t kMaxListed = 1024;  // values of a bin that are ranked

// An integer whose order is the score's; -0 and +0 tie. 0 is below all numbers.
__device__ __forceinline__ uint32_t Ordered(float score) {
  const uint32_t bits = BitsOf(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float FromOrdered(uint32_t value) {
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

struct PickShared {
  alignas(16) uint32_t bins[kBins];
  uint32_t list[kMaxListed];  // values of one bin
  uint32_t least[kWarp], largest[kWarp], sums[kWarp], above[kWarp], equal[kWarp];  // of warps
  uint32_t num_listed, prefix, left, takes_all_equal;
};

// load(i): score i of n, i < n. A thread keeps kHeld of them, of which a warp has consecutive ones;
// 0: none, they are loaded whenever they are looked at.
template <int kThreads, int kHeld, typename Load>
class RowPicker {
 public:
  __device__ RowPicker(const Load& load, int n, int k, PickShared& s)
      : load_(load), n_(n), k_(k), per_warp_((n + kThreads - 1) / kThreads * kWarp), s_(s) {
    if constexpr (kHeld > 0) {
      const int first = WarpIndex() * per_warp_ + LaneIndex();
      float scores[kHeld];
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {  // all under way before one is looked at
        if (j * kWarp < per_warp_) scores[j] = load(min(first + j * kWarp, n - 1));
      }
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        held_[j] = j * kWarp < per_warp_ && first + j * kWarp < n ? Ordered(scores[j]) : 0;
      }
    }
  }

  // The k-th largest value, of more than k, and how many that equal it are among the k; ends with a
  // barrier.
  struct Threshold {
    uint32_t value, left;
    bool takes_all_equal;
  };
  __device__ Threshold Find() {
    Start();
    if (!FindInBins()) {
      __syncthreads();
      Start();
      FindDigit(21, 11);
      FindDigit(10, 11);
      FindDigit(0, 10);
    }
    return {s_.prefix, s_.left, s_.takes_all_equal != 0};
  }

  // write(place, i, value) for the values from `least` on, in order. Returns how many there are;
  // where these are more than `most`, none are written.
  template <typename Write>
  __device__ uint32_t Compact(uint32_t least, uint32_t most, const Write& write) {
    uint32_t count = 0;
    ForStretch([&](int, uint32_t value) {
      count += static_cast<uint32_t>(__popc(__ballot_sync(kFullWarp, value >= least)));
    });
    if (LaneIndex() == 0) s_.above[WarpIndex()] = count;
    __syncthreads();
    const uint32_t total = __reduce_add_sync(kFullWarp, OfWarp(s_.above));
    uint32_t place = SumOfWarpsBefore(s_.above);
    if (total > most) return total;
    ForStretch([&](int i, uint32_t value) {
      const unsigned taken = __ballot_sync(kFullWarp, value >= least);
      if (value >= least) {
        write(place + static_cast<uint32_t>(__popc(taken & BelowLane())), i, value);
      }
      place += static_cast<uint32_t>(__popc(taken));
    });
    return total;
  }

  // The k best, ascending; entry_of(i): what value i stands for.
  template <typename EntryOf>
  __device__ void Take(const Threshold& threshold, const EntryOf& entry_of, int32_t* selected) {
    if (threshold.takes_all_equal) {
      Compact(threshold.value, ~0u,
              [&](uint32_t place, int i, uint32_t) { selected[place] = entry_of(i); });
      return;
    }
    uint32_t above = 0, equal = 0;
    ForBallots(threshold.value, [&](int, bool, bool, unsigned a, unsigned e) {
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
    ForBallots(threshold.value, [&](int i, bool is_above, bool is_equal, unsigned a, unsigned e) {
      const uint32_t ties = equal + static_cast<uint32_t>(__popc(e & BelowLane()));
      const uint32_t place =
          above + static_cast<uint32_t>(__popc(a & BelowLane())) + min(ties, threshold.left);
      if (is_above || (is_equal && ties < threshold.left)) selected[place] = entry_of(i);
      above += static_cast<uint32_t>(__popc(a));
      equal += static_cast<uint32_t>(__popc(e));
    });
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;

  __device__ static unsigned BelowLane() { return (1u << LaneIndex()) - 1u; }
  __device__ static uint32_t OfWarp(const uint32_t* of_warps) {
    return LaneIndex() < kWarps ? of_warps[LaneIndex()] : 0;
  }
  __device__ static uint32_t SumOfWarpsBefore(const uint32_t* of_warps) {
    return __reduce_add_sync(kFullWarp, LaneIndex() < WarpIndex() ? of_warps[LaneIndex()] : 0);
  }

  // visit(i, value) by whole warps; 0 stands for values that do not exist.
  template <typename Visit>
  __device__ void ForStretch(const Visit& visit) const {
    const int begin = WarpIndex() * per_warp_;
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (j * kWarp >= per_warp_) break;
        visit(begin + j * kWarp + LaneIndex(), held_[j]);
      }
    } else {
      for (int base = begin; base < min(begin + per_warp_, n_); base += kWarp) {
        const int i = base + LaneIndex();
        visit(i, i < n_ ? Ordered(load_(i)) : 0);
      }
    }
  }
  // visit(i, is_above, is_equal, above, equal): the latter of the warp.
  template <typename Visit>
  __device__ void ForBallots(uint32_t threshold, const Visit& visit) const {
    ForStretch([&](int i, uint32_t value) {
      const bool is_above = value > threshold, is_equal = value == threshold;
      visit(i, is_above, is_equal, __ballot_sync(kFullWarp, is_above),
            __ballot_sync(kFullWarp, is_equal));
    });
  }

  __device__ void Start() {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s_.bins[i] = 0;
    if (threadIdx.x != 0) return;
    s_.prefix = s_.num_listed = s_.takes_all_equal = 0;
    s_.left = static_cast<uint32_t>(k_);
  }

  // Bins between the least and the largest of all values; scale 0: there are none.
  __device__ LinearBins MakeBins() {
    uint32_t least = ~0u, largest = 0;
    ForStretch([&](int, uint32_t value) {
      if (value != 0) least = min(least, value);
      largest = max(largest, value);
    });
    least = __reduce_min_sync(kFullWarp, least);
    largest = __reduce_max_sync(kFullWarp, largest);
    if (LaneIndex() == 0) {
      s_.least[WarpIndex()] = least;
      s_.largest[WarpIndex()] = largest;
    }
    __syncthreads();
    if (LaneIndex() < kWarps) {
      least = s_.least[LaneIndex()];
      largest = s_.largest[LaneIndex()];
    }
    const float first = FromOrdered(__reduce_min_sync(kFullWarp, least));
    const float last = FromOrdered(__reduce_max_sync(kFullWarp, largest));
    const float scale = static_cast<float>(kBins - 1) / (last - first);
    constexpr float kMost = 1e38f;
    return {first, scale > 0.0f && scale < kMost ? scale : 0.0f};  // neither NaN nor infinite
  }

  // False: not found.
  __device__ bool FindInBins() {
    const LinearBins bins = MakeBins();
    if (bins.scale == 0.0f) return false;
    ForStretch([&](int, uint32_t value) {
      if (value != 0) atomicAdd(&s_.bins[bins.Of(value)], 1u);
    });
    ChooseBin();
    const uint32_t bin = s_.prefix, left = s_.left, listed = s_.bins[bin];
    if (listed > kMaxListed) return false;
    ForStretch([&](int, uint32_t value) {
      if (value != 0 && bins.Of(value) == bin) s_.list[atomicAdd(&s_.num_listed, 1u)] = value;
    });
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < listed; i += kThreads) {
      const uint32_t mine = s_.list[i];
      uint32_t above = 0, equal = 0, equal_before = 0;
#pragma unroll 4
      for (uint32_t j = 0; j < listed; ++j) {
        const uint32_t other = s_.list[j];
        above += other > mine ? 1 : 0;
        equal += other == mine ? 1 : 0;
        equal_before += other == mine && j < i ? 1 : 0;
      }
      if (above >= left || above + equal < left || equal_before > 0) continue;
      s_.prefix = mine;
      s_.left = left - above;
      s_.takes_all_equal = above + equal == left ? 1 : 0;
    }
    __syncthreads();
    return true;
  }

  // The next digit of the k-th largest: `bits` bits at `shift`, those above are found.
  __device__ void FindDigit(int shift, int bits) {
    const uint32_t high = static_cast<uint32_t>(shift + bits);
    __syncthreads();
    const uint32_t wanted = s_.prefix;
    ForStretch([&](int, uint32_t value) {
      if (value == 0 || (high < 32 && value >> high != wanted)) return;
      atomicAdd(&s_.bins[value >> shift & ((1u << bits) - 1)], 1u);
    });
    ChooseBin();
    const uint32_t bin = s_.prefix;
    __syncthreads();
    if (threadIdx.x == 0) s_.prefix = wanted << bits | bin;
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s_.bins[i] = 0;
    __syncthreads();
  }

  // The bin in which the `left` largest end: counts from the top, a stretch of bins a thread.
  __device__ void ChooseBin() {
    constexpr int kOwn = kBins / kThreads;
    struct alignas(4 * kOwn) Counts {
      uint32_t x[kOwn];
    };
    __syncthreads();
    const int bottom = kBins - (static_cast<int>(threadIdx.x) + 1) * kOwn;
    const Counts counts = *reinterpret_cast<const Counts*>(s_.bins + bottom);
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own += counts.x[i];
    uint32_t sum = own;
    for (int d = 1; d < kWarp; d *= 2) {
      const uint32_t below = __shfl_up_sync(kFullWarp, sum, d);
      if (LaneIndex() >= d) sum += below;
    }
    if (LaneIndex() == kWarp - 1) s_.sums[WarpIndex()] = sum;
    const uint32_t left = s_.left;
    __syncthreads();
    const uint32_t before = SumOfWarpsBefore(s_.sums) + sum - own;
    if (before < left && before + own >= left) {
      uint32_t rest = left - before;
      int bin = kOwn - 1;
#pragma unroll
      for (int i = kOwn - 1; i > 0; --i) {
        if (bin != i || counts.x[i] >= rest) continue;
        rest -= counts.x[i];
        --bin;
      }
      s_.prefix = static_cast<uint32_t>(bottom + bin);
      s_.left = rest;
    }
    __syncthreads();
  }

  const Load load_;
  const int n_, k_, per_warp_;
  PickShared& s_;
  uint32_t held_[kHeld > 0 ? kHeld : 1];
};

}  // namespace baton::kernels::cuda
