#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/sample_keys.cuh"

// A row is cut into consecutive slices, one for each block of a cluster, which meet through each
// other's shared memory. Where a row's scores are edited or read often they are kept there too,
// else they are read from the logits, and all rows of a launch run at once. Masses and counts are
// integers, so the order in which threads add them is free; an argmax has one winner whatever the
// order: how a row is cut never changes a bit.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxRanks = 8;  // blocks of a row
constexpr int kMaxSlice = (1 << kTokenBits) / kMaxRanks;
constexpr int kManyBlocks = 132;  // beyond them a row is cut less: clusters leave some room unused
constexpr int kGroups = 128;      // parts of a row's threads, by whose best tokens top-k begins
constexpr int kBinsOfThread = (kBins + kThreads - 1) / kThreads;
constexpr int kMaxCandidates = kThreads;
constexpr Wide kTopPOff = Wide{1} << 32;
static_assert(kMaxFewTopK < kGroups);

__device__ int Thread() { return static_cast<int>(threadIdx.x); }
template <typename T>
__device__ const T* AtRank(const T* own, int rank) {
  return static_cast<const T*>(__cluster_map_shared_rank(own, static_cast<unsigned>(rank)));
}

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

// What top-k of few needs instead of the fine bins.
struct Few {
  float group_bests[kGroups];    // scores; the slice's first
  float all_bests[kGroups];      // of the row
  float scores[kMaxCandidates];  // of candidates
  float slice_scores[kMaxCandidates];
};
static_assert(sizeof(Few) <= sizeof(Bins));

struct Shared {
  Bins coarse;
  union {
    Bins fine;
    Few few;
  };
  SliceBins slice;
  Wide candidates[kMaxCandidates];        // of the row
  Wide slice_candidates[kMaxCandidates];  // of the slice
  uint32_t num_slice_candidates;
  float least_score;
  Best bests[2][kWarps];  // what the cluster exchanges, in turns
  Wide sums[2][kWarps];
  Wide warp_sums[kWarps];
  Place place;
  Cut cut;
};

// One row, by the cluster. Every function is called by all its threads with the same arguments.
template <int kRanks, bool kKeepsScores>
class RowSampler {
 public:
  __device__ RowSampler(const SampleRowArgs& row, const float* logits, int n, float* scores,
                        Shared& shared)
      : row_(row),
        is_wide_(n % 4 == 0),
        vocabulary_(n),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        x_(scores),
        s_(shared) {
    const int per_rank = SliceOf(n);
    first_ = min(rank_ * per_rank, n);
    count_ = min(per_rank, n - first_);
    logits_ = logits + first_;
  }

  // Scores of a block, in whole Philox blocks.
  __host__ __device__ static int SliceOf(int n) { return (n + 4 * kRanks - 1) / (4 * kRanks) * 4; }

  __device__ void Run(SampleResult& result) {
    if constexpr (kKeepsScores) LoadScores();
    const int32_t token = Choose();
    const bool writes = rank_ == 0 && Thread() == 0;
    if (writes) result = SampleResult{.token = max(token, 0), .is_empty = token < 0 ? 1 : 0};
    if (token >= 0 && row_.is_draft == 0 && row_.top_logprobs >= 0) ReportLogprobs(token, result);
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
  __device__ Best OfBlock(Best mine) {
    turn_ ^= 1;
    mine.MergeWarp();
    if (LaneIndex() == 0) s_.bests[turn_][WarpIndex()] = mine;
    __syncthreads();
    Best all;
    if (LaneIndex() < kWarps) all = s_.bests[turn_][LaneIndex()];
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

  // Raw logits of four tokens of the slice.
  __device__ float4 LogitsAt(int at) const {
    if (is_wide_) return __ldg(reinterpret_cast<const float4*>(logits_ + at));
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = at + i < count_ ? logits_[at + i] : kForbidden;
    return make_float4(x[0], x[1], x[2], x[3]);
  }
  // The same without those that are not allowed.
  __device__ float4 AllowedAt(int at) const {
    float4 x = LogitsAt(at);
    if (row_.allowed == nullptr) return x;
    const uint32_t bits = row_.allowed[(first_ + at) / 32] >> ((first_ + at) % 32);
    if ((bits & 1u) == 0) x.x = kForbidden;
    if ((bits & 2u) == 0) x.y = kForbidden;
    if ((bits & 4u) == 0) x.z = kForbidden;
    if ((bits & 8u) == 0) x.w = kForbidden;
    return x;
  }
  __device__ float4 ScoresAt(int at) const {
    if constexpr (kKeepsScores) return *reinterpret_cast<const float4*>(x_ + at);
    return AllowedAt(at);
  }

  // visit(at, source(at)) for all fours of the slice, by whole warps, kAtOnce of a thread at a
  // time; behind its end they are forbidden.
  template <int kAtOnce, typename Source, typename Visit>
  __device__ void ForFours(const Source& source, const Visit& visit) const {
    for (int base = 4 * Thread(); base - 4 * LaneIndex() < count_; base += 4 * kAtOnce * kThreads) {
      float4 x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = base + 4 * j * kThreads;
        x[j] =
            at < count_ ? source(at) : make_float4(kForbidden, kForbidden, kForbidden, kForbidden);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) visit(base + 4 * j * kThreads, x[j]);
    }
  }
  template <int kAtOnce = 4, typename Visit>
  __device__ void ForScores(const Visit& visit) const {
    ForFours<kAtOnce>([this](int at) { return ScoresAt(at); }, visit);
  }
  template <typename Visit>
  __device__ void ForLogits(const Visit& visit) const {
    ForFours<4>([this](int at) { return LogitsAt(at); }, visit);
  }
  // visit(i, x), one token after the other.
  template <typename Visit>
  __device__ void ForTokens(const Visit& visit) const {
    ForScores<1>([&](int at, const float4& x) {
#pragma unroll 1
      for (int i = 0; i < 4; ++i) visit(at + i, Nth(x, i));
    });
  }
  __device__ static float Nth(const float4& x, int i) {
    return i < 2 ? (i == 0 ? x.x : x.y) : (i == 2 ? x.z : x.w);
  }

  // NaN only if all are.
  __device__ static float LargestOf(const float4& x) {
    return ::fmaxf(::fmaxf(x.x, x.y), ::fmaxf(x.z, x.w));
  }

  __device__ void OfferFour(int at, const float4& x, Best& best) const {
    best.Offer(x.x, first_ + at);
    best.Offer(x.y, first_ + at + 1);
    best.Offer(x.z, first_ + at + 2);
    best.Offer(x.w, first_ + at + 3);
  }

  __device__ bool IsAllowed(int v) const {
    return row_.allowed == nullptr || (row_.allowed[v / 32] >> (v % 32) & 1u) != 0;
  }

  // Steps 1 to 4.
  __device__ void LoadScores() {
    ForFours<4>([this](int at) { return AllowedAt(at); },
                [this](int at, const float4& x) {
                  if (at < count_) *reinterpret_cast<float4*>(x_ + at) = x;
                });
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

  __device__ bool IsTruncated() const {
    return row_.is_draft == 0 && (row_.top_k > 0 || row_.top_p < kTopPOff || row_.min_p > 0);
  }
  __device__ bool BeginsWithFew() const {
    return row_.greedy == 0 && IsTruncated() && row_.top_k > 0 && row_.top_k <= kMaxFewTopK;
  }

  // Steps 5 to 8; -1: no token is left.
  __device__ int32_t Choose() {
    const bool is_plain = row_.greedy == 0 && !IsTruncated();
    if (!is_plain) {
      const Best top = TopScore();
      if (top.token < 0 || row_.greedy != 0) return top.token;
      top_ = top.score * row_.inv_temperature;  // no score's product is larger
      if (!(top_ > kForbidden)) return top.token;
      if (BeginsWithFew()) {
        const int32_t token = ChooseAmongFew();
        if (token >= 0) return token;
      }
      Truncate();
    }
    const int32_t token = NoisyArgMax();
    // Of a plain row all may have overflowed.
    return token >= 0 || !is_plain ? token : TopScore().token;
  }

  // The argmax of the scores, and of each group of threads where top-k begins with them.
  __device__ Best TopScore() {
    constexpr int kLanes = kRanks * kThreads / kGroups;
    Best best;
    ForScores([&](int at, const float4& x) { OfferFour(at, x, best); });
    if (BeginsWithFew()) {
      float most = best.token >= 0 ? best.score : kForbidden;
      for (int d = kLanes / 2; d > 0; d /= 2) {
        most = Larger(most, __shfl_xor_sync(kFullWarp, most, d));
      }
      if (LaneIndex() % kLanes == 0) s_.few.group_bests[Thread() / kLanes] = most;
    }
    return OfCluster(best);
  }

  // A score that the k best are not below: the k-th largest of the groups'.
  __device__ float LeastOfBest(int k) {
    constexpr int kOwn = kGroups / kRanks, kParts = kThreads / kGroups, kPart = kGroups / kParts;
    for (int i = Thread(); i < kGroups; i += kThreads) {
      s_.few.all_bests[i] = AtRank(s_.few.group_bests, i / kOwn)[i % kOwn];
    }
    __syncthreads();
    const int own = Thread() / kParts, first = Thread() % kParts * kPart;
    const float mine = s_.few.all_bests[own];
    int before = 0;
#pragma unroll
    for (int i = first; i < first + kPart; ++i) {
      const float other = s_.few.all_bests[i];
      before += other > mine || (other == mine && i < own) ? 1 : 0;
    }
    for (int d = 1; d < kParts; d *= 2) before += __shfl_xor_sync(kFullWarp, before, d);
    if (first == 0 && before == k - 1) s_.least_score = mine;
    __syncthreads();
    return s_.least_score;
  }

  // Steps 7 and 8 among the tokens that are not below a score which k of them reach; -1: that are
  // too many.
  __device__ int32_t ChooseAmongFew() {
    const float least = LeastOfBest(row_.top_k) * row_.inv_temperature;
    const Wide mass = least > kForbidden ? Mass(DistanceOf(least, top_)) : 0;
    if (mass == 0) return -1;
    const int count = GatherCandidates<true>(MakeRange(mass << kTokenBits, ~Wide{0}));
    if (count > kMaxCandidates) return -1;
    const bool is_one = Thread() < count;
    const Wide key = is_one ? s_.candidates[Thread()] : 0;
    Wide before = 0;
    int number = 0;
#pragma unroll 4
    for (int i = 0; i < (is_one ? count : 0); ++i) {
      const Wide other = s_.candidates[i];
      if (other <= key) continue;
      before += MassOf(other);
      ++number;
    }
    bool stays = is_one && number < row_.top_k;
    if (row_.top_p < kTopPOff) {
      const Wide all = SumOfBlock(stays ? MassOf(key) : 0);
      stays = stays && before < NeedOf(row_.top_p, all);
    }
    stays = stays && MassOf(key) >= row_.min_p;
    Best best;
    if (stays) {
      const int32_t token = TokenOf(key);
      const uint4 words = Words(static_cast<uint32_t>(token / 4));
      const uint32_t low = token % 2 == 0 ? words.x : words.y;
      const uint32_t high = token % 2 == 0 ? words.z : words.w;
      best.Offer(s_.few.scores[Thread()] + Gumbel(token % 4 < 2 ? low : high), token);
    }
    return OfBlock(best).token;
  }

  __device__ float Scaled(float x) const { return x * row_.inv_temperature; }
  // A token's rank key, 0 if it cannot be chosen.
  __device__ Wide KeyOf(float z, int i) const {
    return z > kForbidden ? RankKey(Mass(DistanceOf(z, top_)), first_ + i) : 0;
  }
  // The same if it is in the range, else 0.
  __device__ Wide KeyIn(const Range& range, float z, int i) const {
    const float distance = DistanceOf(z, top_);
    if (distance < range.low || distance > range.high) return 0;
    const Wide key = KeyOf(z, i);
    return key < range.first || key > range.last ? 0 : key;
  }

  // Step 7: the smallest key that stays, by top-k, top-p and min-p in that order (2.3).
  __device__ void Truncate() {
    const bool has_p = row_.top_p < kTopPOff;
    Wide smallest = 0;
    if (row_.top_k > 0 || has_p) {
      Cut cut = {0, 0};
      if (row_.top_k == 0) cut.mass = SetLeast();
      CountKeys(s_.coarse, MakeRange(least_, ~Wide{0}),
                [](Wide key) { return CoarseBin(MassOf(key)); });
      if (row_.top_k > 0) cut = Find(false, static_cast<Wide>(row_.top_k));
      smallest = cut.key;
      // Its prefix ends within top-k's.
      if (has_p) cut = Find(true, NeedOf(row_.top_p, cut.mass));
      smallest = cut.key > smallest ? cut.key : smallest;
    }
    const Wide least = static_cast<Wide>(row_.min_p) << kTokenBits;
    smallest_ = least > smallest ? least : smallest;
  }

  // Top-p's prefix ends above masses that all together cannot be needed. Returns the row's mass.
  __device__ Wide SetLeast() {
    Wide sum = 0;
    ForTokens([&](int i, float x) { sum += MassOf(KeyOf(Scaled(x), i)); });
    const Wide all = SumOfCluster(sum);
    const Wide spare = all - NeedOf(row_.top_p, all);
    least_ = spare / static_cast<Wide>(vocabulary_) << kTokenBits;
    return all;
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
    ForTokens([&](int i, float x) {
      const Wide key = KeyIn(range, Scaled(x), i);
      if (key == 0) return;
      const int next = bin_of(key);
      if (next != bin && count != 0) {
        s_.slice.Add(bin, count, low, high);
        count = low = high = 0;
      }
      bin = next;
      ++count;
      low += static_cast<uint32_t>(MassOf(key)) & 0xffffu;
      high += static_cast<uint32_t>(MassOf(key) >> 16);
    });
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
    if (range.first < least_) range = MakeRange(least_, range.last);
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
    GatherCandidates<false>(range);
    RankCandidates(static_cast<int>(count), by_mass, place.left, above);
    __syncthreads();
    return s_.cut;
  }

  __device__ Wide MassAbove(const Bins& bins, int bin) {
    Wide mass = 0;
    for (int b = bin + 1 + Thread(); b < kBins; b += kThreads) mass += bins.masses[b];
    return SumOfBlock(mass);
  }

  // The row's keys of a range and, if asked for, their scores. Returns their number; more than
  // kMaxCandidates are not gathered.
  template <bool kHasScores>
  __device__ int GatherCandidates(const Range& range) {
    if (Thread() == 0) s_.num_slice_candidates = 0;
    __syncthreads();
    ForScores([&](int at, const float4& x) {
      const float most = LargestOf(x);
      if (DistanceOf(Scaled(most), top_) < range.low) return;
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const float z = Scaled(Nth(x, i));
        const Wide key = KeyIn(range, z, at + i);
        if (key == 0) continue;
        const uint32_t place = atomicAdd(&s_.num_slice_candidates, 1u);
        if (place >= kMaxCandidates) continue;
        s_.slice_candidates[place] = key;
        if constexpr (kHasScores) s_.few.slice_scores[place] = z;
      }
    });
    ClusterSync();
    int total = 0;
    for (int r = 0; r < kRanks; ++r) {
      total += static_cast<int>(*AtRank(&s_.num_slice_candidates, r));
    }
    int at = Thread();  // of the ranks' lists one behind the other
    for (int r = 0; r < (total > kMaxCandidates ? 0 : kRanks); ++r) {
      const auto there = static_cast<int>(*AtRank(&s_.num_slice_candidates, r));
      if (at >= 0 && at < there) {
        s_.candidates[Thread()] = AtRank(s_.slice_candidates, r)[at];
        if constexpr (kHasScores) s_.few.scores[Thread()] = AtRank(s_.few.slice_scores, r)[at];
      }
      at -= there;
    }
    ClusterSync();  // the others have read this block's
    return total;
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

  __device__ uint4 Words(uint32_t block) const {
    const auto p = static_cast<uint64_t>(row_.position);
    return Philox(
        make_uint2(static_cast<uint32_t>(row_.key), static_cast<uint32_t>(row_.key >> 32)),
        make_uint4(static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), block, 0));
  }

  // What a score reaches with any noise, less room for rounding: noise is at least -3.13 (2.2).
  __device__ static float BarOf(float z) {
    constexpr float kLeastNoise = -3.14f;
    if (!(Abs(z) < -kForbidden)) return kForbidden;
    return z + kLeastNoise - (0.01f + Abs(z) * 0x1p-20f);
  }

  // Argmax of z + noise over the tokens that stay; a Philox block serves four tokens. The bar is
  // what a token that stays reaches: where some are cut, the top or a token of equal mass.
  __device__ int32_t NoisyArgMax() {
    constexpr float kMostNoise = 22.9f;
    const bool is_cut = smallest_ > 0;
    const float lowest = is_cut ? MakeRange(smallest_, smallest_).low : kForbidden;
    Best best;
    float bar = is_cut ? BarOf(top_) : kForbidden;
    ForScores([&](int at, const float4& x) {
      const float4 z = make_float4(Scaled(x.x), Scaled(x.y), Scaled(x.z), Scaled(x.w));
      const float most = LargestOf(z);
      bar = WarpMax(is_cut ? bar : Larger(bar, BarOf(most)));
      if (!(most + kMostNoise >= bar) || (is_cut && DistanceOf(most, top_) < lowest)) return;
      const uint4 words = Words(static_cast<uint32_t>((first_ + at) / 4));
      if (most + GumbelBound(max(max(words.x, words.y), max(words.z, words.w))) < bar) return;
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const float own = Nth(z, i);
        const uint32_t word = i < 2 ? (i == 0 ? words.x : words.y) : (i == 2 ? words.z : words.w);
        if (!(own > kForbidden) || own + GumbelBound(word) < bar) continue;
        if (is_cut && KeyOf(own, at + i) < smallest_) continue;
        best.Offer(own + Gumbel(word), first_ + at + i);
        bar = best.token >= 0 && best.score > bar ? best.score : bar;
      }
    });
    return OfCluster(best).token;
  }

  // The best of the logits behind `last`; its token -1: of all.
  __device__ Best NextLogit(const Best& last) {
    Best best;
    ForLogits([&](int at, const float4& x) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float logit = Nth(x, i);
        const int32_t token = first_ + at + i;
        const bool is_behind =
            last.token < 0 || last.score > logit || (last.score == logit && last.token < token);
        if (is_behind) best.Offer(logit, token);
      }
    });
    return OfCluster(best);
  }

  // contracts.md 2.5, from the raw logits.
  __device__ void ReportLogprobs(int32_t token, SampleResult& result) {
    const bool writes = rank_ == 0 && Thread() == 0;
    const float maximum = NextLogit({}).score;
    Wide sum = 0;
    ForLogits([&](int, const float4& x) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += Mass(DistanceOf(Nth(x, i), maximum));
    });
    const float log_sum = Log(static_cast<float>(SumOfCluster(sum)) * 0x1p-32f);
    if (writes) result.logprob = DistanceOf(logits_[token], maximum) - log_sum;  // rank 0's begin
    const int count = min(row_.top_logprobs, kMaxTop);                           // the row
    Best last;
    int found = 0;
    for (; found < count; ++found) {
      const Best next = NextLogit(last);
      if (next.token < 0) break;
      last = next;
      if (writes) {
        result.top_tokens[found] = last.token;
        result.top_logprobs[found] = DistanceOf(last.score, maximum) - log_sum;
      }
    }
    if (writes) result.num_top = found;
  }

  const SampleRowArgs row_;  // not shared: its values stay in registers
  const bool is_wide_;       // fours of logits are aligned
  const int vocabulary_, rank_;
  const float* logits_;  // of the slice
  float* x_;             // its scores, where they are kept
  Shared& s_;
  int first_, count_;
  int turn_ = 0;
  float top_ = 0;
  Wide least_ = 0;     // keys below it need not be counted
  Wide smallest_ = 0;  // keys below are cut
};

template <int kRanks, bool kKeepsScores>
__global__ void __launch_bounds__(kThreads, 2) SampleKernel(SampleKernelArgs args) {
  extern __shared__ __align__(16) float scores[];
  __shared__ Shared shared;
  const int number = static_cast<int>(blockIdx.x) / kRanks;
  const SampleRowArgs row = args.rows[number];
  const float* logits = args.logits + static_cast<int64_t>(row.logits_row) * args.vocabulary;
  RowSampler<kRanks, kKeepsScores>(row, logits, args.vocabulary, scores, shared)
      .Run(args.results[number]);
  ClusterSync();  // no block leaves while others read its shared memory
}

template <int kRanks, bool kKeepsScores>
cudaError_t Launch(const SampleKernelArgs& args, cudaStream_t stream) {
  const auto kernel = SampleKernel<kRanks, kKeepsScores>;
  cudaLaunchConfig_t config = {};
  if (kKeepsScores) {
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kMaxSlice * static_cast<int>(sizeof(float)))) {
      return error;
    }
    config.dynamicSmemBytes =
        static_cast<size_t>(RowSampler<kRanks, kKeepsScores>::SliceOf(args.vocabulary)) *
        sizeof(float);
  }
  config.gridDim = dim3(static_cast<unsigned>(args.num_rows * kRanks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kRanks, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace

cudaError_t RunSample(const SampleKernelArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  if (args.keeps_scores) return Launch<kMaxRanks, true>(args, stream);
  if (args.num_rows * kMaxRanks <= kManyBlocks) return Launch<kMaxRanks, false>(args, stream);
  return args.num_rows * 4 <= kManyBlocks ? Launch<4, false>(args, stream)
                                          : Launch<2, false>(args, stream);
}

}  // namespace baton::kernels::cuda
