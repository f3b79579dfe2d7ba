#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/sample.h"

// A row is cut into consecutive slices, one for each block of a cluster, which keep their scores
// in shared memory and meet through each other's. Masses and counts are integers, so the order in
// which threads add them is free; an argmax has one winner whatever the order.
namespace baton::kernels::cuda {
namespace {

using Wide = unsigned long long;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRanks = 8;  // blocks of a row
constexpr int kTokenBits = 17;
constexpr int kMaxSlice = (1 << kTokenBits) / kRanks;
constexpr int kFineBits = 10;
constexpr int kOctaveBins = 32;              // coarse bins of a mass's octave
constexpr int kBins = 2 + 32 * kOctaveBins;  // mass 0, then up to 2^32
constexpr int kBinsOfThread = (kBins + kThreads - 1) / kThreads;
constexpr int kMaxCandidates = kThreads;
constexpr Wide kTopPOff = Wide{1} << 32;
constexpr float kForbidden = -__builtin_inff();
static_assert(kMaxVocabulary < 1 << kTokenBits && 1 << kFineBits <= kBins);

__device__ int Thread() { return static_cast<int>(threadIdx.x); }
__device__ int Rank() { return static_cast<int>(blockIdx.x) % kRanks; }
template <typename T>
__device__ const T* AtRank(const T* own, int rank) {
  return static_cast<const T*>(__cluster_map_shared_rank(own, static_cast<unsigned>(rank)));
}

// Higher score, then the lower id; NaN and -inf never. -1: none.
struct Best {
  float score = 0.0f;
  int32_t token = -1;

  __device__ bool IsBeatenBy(float other, int32_t other_token) const {
    if (token < 0) return other > kForbidden;
    return other > score || (other == score && other_token < token);
  }
  __device__ void Offer(float other, int32_t other_token) {
    if (IsBeatenBy(other, other_token)) {
      score = other;
      token = other_token;
    }
  }
  // All lanes get the warp's best.
  __device__ void MergeWarp() {
    for (int d = kWarp / 2; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, score, d);
      const int32_t other_token = __shfl_xor_sync(kFullWarp, token, d);
      if (other_token >= 0) Offer(other, other_token);
    }
  }
};

__device__ Wide WarpSum(Wide x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}

// At least Gumbel(word): with k leading ones, 1 - u >= 2^-(k + 1), and
// -log(-log u) <= -log(1 - u).
__device__ float GumbelBound(uint32_t word) {
  constexpr float kLog2 = 0.693148f, kSlack = 0.01f;
  return static_cast<float>(__clz(static_cast<int>(~word)) + 1) * kLog2 + kSlack;
}

// ceil(p * total / 2^32), at least 1; total < 2^50.
__device__ Wide NeedOf(Wide p, Wide total) {
  const Wide low = p * total, high = __umul64hi(p, total);
  const Wide rounded = low + 0xffffffffull;
  const Wide carry = rounded < low ? 1 : 0;
  const Wide need = (high + carry) << 32 | rounded >> 32;
  return need > 1 ? need : 1;
}

__device__ Wide RankKey(Wide mass, int32_t token) {
  return (mass << kTokenBits) + ((Wide{1} << kTokenBits) - 1 - static_cast<Wide>(token));
}
__device__ Wide MassOf(Wide key) { return key >> kTokenBits; }

// Rank keys first .. last; the distances from the top outside of which there is none of them, with
// room for rounding.
struct Range {
  Wide first, last;
  float low, high;
};
__device__ Range MakeRange(Wide first, Wide last) {
  constexpr float kRoom = 1e-3f, kLowest = -23.9f;  // masses below e^-24 are 0
  const Wide least = MassOf(first), most = MassOf(last) + 1;
  Range range = {first, last, kForbidden, Log(static_cast<float>(most) * 0x1p-32f) + kRoom};
  if (least > 1) range.low = Log(static_cast<float>(least - 1) * 0x1p-32f) - kRoom;
  if (range.low < kLowest) range.low = kForbidden;
  return range;
}

// Coarse bins part masses by their leading bits as floats.
__device__ int CoarseBin(Wide mass) {
  constexpr int kFirst = 127 * kOctaveBins;
  if (mass == 0) return 0;
  return static_cast<int>(BitsOf(static_cast<float>(mass)) >> 18) - kFirst + 1;
}
__device__ Range CoarseRange(int bin) {
  if (bin == 0) return MakeRange(0, (Wide{1} << kTokenBits) - 1);
  const auto edge = [bin](int next) {
    const auto bits = static_cast<uint32_t>(127 * kOctaveBins + bin - 1 + next) << 18;
    return static_cast<Wide>(::ceilf(FloatOf(bits))) << kTokenBits;
  };
  return MakeRange(edge(0), edge(1) - 1);
}

// How many keys lie in a bin and what they weigh: of a row.
struct Bins {
  Wide masses[kBins];
  uint32_t counts[kBins];

  __device__ Wide Weight(int bin, bool by_mass) const {
    return by_mass ? masses[bin] : counts[bin];
  }
};
// The same of a slice; a mass in halves, each a sum below 2^32.
struct SliceBins {
  uint32_t counts[kBins], low[kBins], high[kBins];

  __device__ void Add(int bin, uint32_t count, uint32_t low_sum, uint32_t high_sum) {
    atomicAdd(&counts[bin], count);
    if (low_sum != 0) atomicAdd(&low[bin], low_sum);
    if (high_sum != 0) atomicAdd(&high[bin], high_sum);
  }
};

// In which bin, from the top, the sum of weights reaches what is needed, and what is left in it;
// -1: nowhere.
struct Place {
  int bin;
  Wide left;
};
// The smallest key that stays, and the mass of all that do.
struct Cut {
  Wide key, mass;
};

struct Shared {
  Bins coarse, fine;
  SliceBins slice;
  Wide candidates[kMaxCandidates];        // of the row
  Wide slice_candidates[kMaxCandidates];  // of the slice
  uint32_t num_slice_candidates;
  Best bests[2][kWarps];  // what the cluster exchanges, in turns
  Wide sums[2][kWarps];
  Wide warp_sums[kWarps];
  Place place;
  Cut cut;
};

// One row, by the cluster. Every function is called by all its threads with the same arguments.
class RowSampler {
 public:
  __device__ RowSampler(const SampleRowArgs& row, const float* logits, int n, float* scores,
                        Shared& shared)
      : row_(row), x_(scores), s_(shared) {
    const int per_rank = SliceOf(n);
    first_ = min(Rank() * per_rank, n);
    count_ = min(per_rank, n - first_);
    logits_ = logits + first_;
  }

  // Scores of a block, in whole Philox blocks.
  __host__ __device__ static int SliceOf(int n) { return (n + 4 * kRanks - 1) / (4 * kRanks) * 4; }

  __device__ void Run(SampleResult& result) {
    LoadScores();
    const Best top = ArgMax([this](int i) { return x_[i]; });
    const bool writes = Rank() == 0 && Thread() == 0;
    if (writes) result = SampleResult{.is_empty = top.token < 0 ? 1 : 0};
    if (top.token < 0) return;
    const int32_t token = Choose(top);
    if (writes) result.token = token;
    if (row_.is_draft == 0 && row_.top_logprobs >= 0) ReportLogprobs(token, result);
  }

 private:
  // The best of all threads' candidates, in every thread.
  __device__ Best OfCluster(Best mine) {
    turn_ ^= 1;
    mine.MergeWarp();
    if (LaneIndex() == 0) s_.bests[turn_][WarpIndex()] = mine;
    ClusterSync();
    Best all;
    for (int i = LaneIndex(); i < kRanks * kWarps; i += kWarp) {
      const Best other = AtRank(s_.bests[turn_], i / kWarps)[i % kWarps];
      if (other.token >= 0) all.Offer(other.score, other.token);
    }
    all.MergeWarp();
    return all;
  }
  __device__ Wide SumOfCluster(Wide mine) {
    turn_ ^= 1;
    mine = WarpSum(mine);
    if (LaneIndex() == 0) s_.sums[turn_][WarpIndex()] = mine;
    ClusterSync();
    Wide all = 0;
    for (int i = LaneIndex(); i < kRanks * kWarps; i += kWarp) {
      all += AtRank(s_.sums[turn_], i / kWarps)[i % kWarps];
    }
    return WarpSum(all);
  }
  __device__ Wide SumOfBlock(Wide mine) {
    mine = WarpSum(mine);
    __syncthreads();
    if (LaneIndex() == 0) s_.warp_sums[WarpIndex()] = mine;
    __syncthreads();
    return WarpSum(LaneIndex() < kWarps ? s_.warp_sums[LaneIndex()] : 0);
  }

  // The best of score(i) over the slice's tokens i, and of the others' slices.
  template <typename Score>
  __device__ Best ArgMax(const Score& score) {
    Best best;
#pragma unroll 8
    for (int i = Thread(); i < count_; i += kThreads) best.Offer(score(i), first_ + i);
    return OfCluster(best);
  }

  __device__ bool IsAllowed(int v) const {
    return row_.allowed == nullptr || (row_.allowed[v / 32] >> (v % 32) & 1u) != 0;
  }

  // Steps 1 to 4.
  __device__ void LoadScores() {
#pragma unroll 8
    for (int i = Thread(); i < count_; i += kThreads) {
      x_[i] = IsAllowed(first_ + i) ? logits_[i] : kForbidden;
    }
    __syncthreads();
    for (int i = Thread(); i < row_.num_edits; i += kThreads) {
      const ScoreEdit edit = row_.edits[i];
      const int at = edit.token - first_;
      if (at < 0 || at >= count_ || !IsAllowed(edit.token)) continue;
      float x = x_[at];
      if (edit.repeats != 0) x = x > 0 ? x / row_.repetition : x * row_.repetition;
      if (edit.count > 0) {
        x = Fma(-row_.frequency, static_cast<float>(edit.count), x);
        x = x - row_.presence;
      }
      if (edit.has_bias != 0) x += edit.bias;
      x_[at] = x;
    }
    __syncthreads();
  }

  // Steps 5 to 8; `top` is the argmax of the scores, which exists.
  __device__ int32_t Choose(const Best& top) {
    if (row_.greedy != 0) return top.token;
    top_ = top.score * row_.inv_temperature;     // no score's product is larger
    if (!(top_ > kForbidden)) return top.token;  // all overflowed
    if (row_.is_draft == 0) Truncate();
    return NoisyArgMax();
  }

  __device__ float Scaled(int i) const { return x_[i] * row_.inv_temperature; }
  // Its rank key, 0 for a token that cannot be chosen.
  __device__ Wide KeyOf(float z, int i) const {
    return z > kForbidden ? RankKey(Mass(z - top_), first_ + i) : 0;
  }

  // Step 7: the smallest key that stays, by top-k, top-p and min-p in that order (2.3).
  __device__ void Truncate() {
    Wide smallest = 0;
    if (row_.top_k > 0 || row_.top_p < kTopPOff) {
      CountKeys(s_.coarse, MakeRange(0, ~Wide{0}), [](Wide key) { return CoarseBin(MassOf(key)); });
      Cut cut = {0, 0};
      if (row_.top_k > 0) {
        cut = Find(false, static_cast<Wide>(row_.top_k));
      } else {
        for (int bin = Thread(); bin < kBins; bin += kThreads) cut.mass += s_.coarse.masses[bin];
        cut.mass = SumOfBlock(cut.mass);
      }
      smallest = cut.key;
      // Its prefix ends within top-k's.
      if (row_.top_p < kTopPOff) cut = Find(true, NeedOf(row_.top_p, cut.mass));
      smallest = cut.key > smallest ? cut.key : smallest;
    }
    const Wide least = static_cast<Wide>(row_.min_p) << kTokenBits;
    smallest_ = least > smallest ? least : smallest;
  }

  // The row's keys of a range into bins.
  template <typename BinOf>
  __device__ void CountKeys(Bins& bins, const Range& range, const BinOf& bin_of) {
    for (int bin = Thread(); bin < kBins; bin += kThreads) {
      s_.slice.counts[bin] = s_.slice.low[bin] = s_.slice.high[bin] = 0;
    }
    __syncthreads();
    // Most tokens of a row fall into few bins: a thread adds up what it sees of a bin in a row.
    int bin = 0;
    uint32_t count = 0, low = 0, high = 0;
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) {
      const float z = Scaled(i), distance = z - top_;
      if (distance < range.low || distance > range.high) continue;
      const Wide key = KeyOf(z, i);
      if (key == 0 || key < range.first || key > range.last) continue;
      const int next = bin_of(key);
      if (next != bin && count != 0) {
        s_.slice.Add(bin, count, low, high);
        count = low = high = 0;
      }
      bin = next;
      ++count;
      low += static_cast<uint32_t>(MassOf(key)) & 0xffffu;
      high += static_cast<uint32_t>(MassOf(key) >> 16);
    }
    if (count != 0) s_.slice.Add(bin, count, low, high);
    ClusterSync();
    for (int b = Thread(); b < kBins; b += kThreads) {
      uint32_t total = 0;
      Wide mass = 0;
      for (int r = 0; r < kRanks; ++r) {
        const SliceBins* there = AtRank(&s_.slice, r);
        const uint32_t own = there->counts[b];
        if (own == 0) continue;
        total += own;
        mass += there->low[b] + (static_cast<Wide>(there->high[b]) << 16);
      }
      bins.counts[b] = total;
      bins.masses[b] = mass;
    }
    ClusterSync();  // the others have read this block's bins
  }

  __device__ Place FindBin(const Bins& bins, bool by_mass, Wide need) {
    const int top = kBins - 1 - Thread() * kBinsOfThread;
    Wide own = 0;
    for (int i = 0; i < kBinsOfThread; ++i) {
      if (top - i >= 0) own += bins.Weight(top - i, by_mass);
    }
    Wide sum = own;
    for (int d = 1; d < kWarp; d *= 2) {
      const Wide before = __shfl_up_sync(kFullWarp, sum, d);
      if (LaneIndex() >= d) sum += before;
    }
    __syncthreads();
    if (Thread() == 0) s_.place = {-1, 0};
    if (LaneIndex() == kWarp - 1) s_.warp_sums[WarpIndex()] = sum;
    __syncthreads();
    Wide before = sum - own;
    for (int w = 0; w < WarpIndex(); ++w) before += s_.warp_sums[w];
    if (before < need && before + own >= need) {
      Wide left = need - before;
      int bin = top;
      while (bins.Weight(bin, by_mass) < left) left -= bins.Weight(bin--, by_mass);
      s_.place = {bin, left};
    }
    __syncthreads();
    return s_.place;
  }

  // The largest key T for which keys >= T weigh at least `need`, a key its mass or 1. Key 0: all
  // together weigh less.
  __device__ Cut Find(bool by_mass, Wide need) {
    Place place = FindBin(s_.coarse, by_mass, need);
    Wide above = MassAbove(s_.coarse, place.bin);
    if (place.bin < 0) return {0, above};
    Range range = CoarseRange(place.bin);
    uint32_t count = s_.coarse.counts[place.bin];
    while (count > kMaxCandidates) {
      const int bits = 64 - __clzll(static_cast<long long>(range.last - range.first));
      const int shift = bits > kFineBits ? bits - kFineBits : 0;
      const Wide first = range.first;
      CountKeys(s_.fine, range, [=](Wide key) { return static_cast<int>((key - first) >> shift); });
      place = FindBin(s_.fine, by_mass, place.left);
      above += MassAbove(s_.fine, place.bin);
      count = s_.fine.counts[place.bin];
      const Wide begin = first + (static_cast<Wide>(place.bin) << shift);
      range = MakeRange(begin, min(range.last, begin + (Wide{1} << shift) - 1));
    }
    GatherCandidates(range);
    RankCandidates(static_cast<int>(count), by_mass, place.left, above);
    __syncthreads();
    return s_.cut;
  }

  __device__ Wide MassAbove(const Bins& bins, int bin) {
    Wide mass = 0;
    for (int b = bin + 1 + Thread(); b < kBins; b += kThreads) mass += bins.masses[b];
    return SumOfBlock(mass);
  }

  // The row's keys of a range, at most kMaxCandidates.
  __device__ void GatherCandidates(const Range& range) {
    if (Thread() == 0) s_.num_slice_candidates = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = Thread(); i < count_; i += kThreads) {
      const float z = Scaled(i), distance = z - top_;
      if (distance < range.low || distance > range.high) continue;
      const Wide key = KeyOf(z, i);
      if (key == 0 || key < range.first || key > range.last) continue;
      s_.slice_candidates[atomicAdd(&s_.num_slice_candidates, 1u)] = key;
    }
    ClusterSync();
    int at = Thread();  // of the ranks' lists one behind the other
    for (int r = 0; r < kRanks; ++r) {
      const auto there = static_cast<int>(*AtRank(&s_.num_slice_candidates, r));
      if (at >= 0 && at < there) s_.candidates[Thread()] = AtRank(s_.slice_candidates, r)[at];
      at -= there;
    }
    ClusterSync();  // the others have read this block's
  }

  // Which of `count` candidates brings what is needed; those above it are counted.
  __device__ void RankCandidates(int count, bool by_mass, Wide left, Wide above) {
    if (Thread() >= count) return;
    const Wide key = s_.candidates[Thread()], own = by_mass ? MassOf(key) : 1;
    Wide mass = 0, number = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const Wide other = s_.candidates[i];
      if (other > key) {
        mass += MassOf(other);
        ++number;
      }
    }
    const Wide before = by_mass ? mass : number;
    if (before < left && before + own >= left) s_.cut = {key, above + mass + MassOf(key)};
  }

  // Argmax of z + noise over the tokens that stay; a Philox block serves four tokens. The top's sum
  // is a bar from the start, as noise is at least -3.13 (2.2): it, or a token of equal mass, stays.
  __device__ int32_t NoisyArgMax() {
    constexpr float kMostNoise = 22.9f, kLeastNoise = -3.14f;
    const auto p = static_cast<uint64_t>(row_.position);
    const uint2 key =
        make_uint2(static_cast<uint32_t>(row_.key), static_cast<uint32_t>(row_.key >> 32));
    const float lowest = MakeRange(smallest_, smallest_).low;
    Best best;
    float bar =
        Abs(top_) < -kForbidden ? top_ + kLeastNoise - (0.01f + Abs(top_) * 0x1p-20f) : kForbidden;
    for (int group = Thread(); group < (count_ + 3) / 4; group += kThreads) {
      float z[4];
      bool is_any = false;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        z[i] = 4 * group + i < count_ ? Scaled(4 * group + i) : kForbidden;
        is_any = is_any || (z[i] + kMostNoise >= bar && !(z[i] - top_ < lowest));
      }
      if (!is_any) continue;
      const auto block = static_cast<uint32_t>(first_ / 4 + group);
      const uint4 words = Philox(
          key, make_uint4(static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), block, 0));
      const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!(z[i] > kForbidden) || z[i] + GumbelBound(word[i]) < bar) continue;
        if (smallest_ > 0 && KeyOf(z[i], 4 * group + i) < smallest_) continue;
        best.Offer(z[i] + Gumbel(word[i]), first_ + 4 * group + i);
        bar = best.token >= 0 && best.score > bar ? best.score : bar;
      }
    }
    return OfCluster(best).token;
  }

  // contracts.md 2.5, from the raw logits.
  __device__ void ReportLogprobs(int32_t token, SampleResult& result) {
    const bool writes = Rank() == 0 && Thread() == 0;
    const float maximum = ArgMax([this](int i) { return logits_[i]; }).score;
    Wide sum = 0;
#pragma unroll 8
    for (int i = Thread(); i < count_; i += kThreads) sum += Mass(logits_[i] - maximum);
    const float log_sum = Log(static_cast<float>(SumOfCluster(sum)) * 0x1p-32f);
    if (writes) result.logprob = (logits_[token] - maximum) - log_sum;  // rank 0 begins the row
    const int count = min(row_.top_logprobs, kMaxTop);
    Best last;
    int found = 0;
    for (; found < count; ++found) {
      const bool is_first = found == 0;
      const Best next = ArgMax([&](int i) {
        const float logit = logits_[i];
        const bool is_behind =
            is_first || last.score > logit || (last.score == logit && last.token < first_ + i);
        return is_behind ? logit : kForbidden;
      });
      if (next.token < 0) break;
      last = next;
      if (writes) {
        result.top_tokens[found] = last.token;
        result.top_logprobs[found] = (last.score - maximum) - log_sum;
      }
    }
    if (writes) result.num_top = found;
  }

  const SampleRowArgs row_;  // not shared: its values stay in registers
  const float* logits_;      // of the slice
  float* x_;
  Shared& s_;
  int first_, count_;
  int turn_ = 0;
  float top_ = 0;
  Wide smallest_ = 0;  // keys below are cut
};

__global__ void __launch_bounds__(kThreads, 2) SampleKernel(SampleKernelArgs args) {
  extern __shared__ __align__(16) float scores[];
  __shared__ Shared shared;
  const int number = static_cast<int>(blockIdx.x) / kRanks;
  const SampleRowArgs row = args.rows[number];
  const float* logits = args.logits + static_cast<int64_t>(row.logits_row) * args.vocabulary;
  RowSampler(row, logits, args.vocabulary, scores, shared).Run(args.results[number]);
  ClusterSync();  // no block leaves while others read its shared memory
}

}  // namespace

cudaError_t RunSample(const SampleKernelArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  if (const cudaError_t error =
          cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kMaxSlice * static_cast<int>(sizeof(float)))) {
    return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.num_rows * kRanks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes =
      static_cast<size_t>(RowSampler::SliceOf(args.vocabulary)) * sizeof(float);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kRanks, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, SampleKernel, args);
}

}  // namespace baton::kernels::cuda
