#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/sample_scores.cuh"

// A row is cut into consecutive slices, one for each block of a cluster, which meet through each
// other's shared memory. Where a row's scores are edited or read often they are kept there too,
// else they are read from the logits, and all rows of a launch run at once. Masses and counts are
// integers, so the order in which threads add them is free; an argmax has one winner whatever the
// order: how a row is cut never changes a bit.
namespace baton::kernels::cuda {
namespace {

constexpr int kManyBlocks = 132;  // beyond them a row is cut less: clusters leave some room unused

// One row, by the cluster. Every function is called by all its threads with the same arguments.
template <int kRanks, bool kKeepsScores>
class RowSampler : public SliceScores<kRanks, kKeepsScores> {
 public:
  __device__ RowSampler(const SampleRowArgs& row, const float* logits, int n, float* scores,
                        SampleShared& shared)
      : Base(row, logits, n, scores), vocabulary_(n), s_(shared) {}

  __device__ void Run(SampleResult& result) {
    if constexpr (kKeepsScores) this->LoadScores();
    const int32_t token = Choose();
    const bool writes = rank_ == 0 && Thread() == 0;
    if (writes) result = SampleResult{.token = max(token, 0), .is_empty = token < 0 ? 1 : 0};
    if (token >= 0 && row_.is_draft == 0 && row_.top_logprobs >= 0) {
      ReportLogprobs(*this, token, result);
    }
  }

 private:
  using Base = SliceScores<kRanks, kKeepsScores>;
  using Base::count_, Base::ScoresAt, Base::Nth, Base::LargestOf, Base::OfferFour;
  using Base::kThreads, Base::Thread, Base::row_, Base::rank_, Base::logits_, Base::first_;
  static constexpr int kWarps = kSampleWarps;
  static constexpr int kStep = 4 * kThreads;  // tokens from one four of a thread to its next
  static constexpr int kFours = (1 << kTokenBits) / (kRanks * kStep);
  static constexpr int kOfSlot = kFours > kMostSlots ? kFours / kMostSlots : 1;

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
    mine.MergeWarp();
    if (LaneIndex() == 0) s_.block_bests[WarpIndex()] = mine;
    __syncthreads();
    Best all;
    if (LaneIndex() < kWarps) all = s_.block_bests[LaneIndex()];
    all.MergeWarp();
    return all;
  }
  __device__ float MaxOfBlock(float mine) {
    mine = WarpMax(mine);
    if (LaneIndex() == 0) s_.maxima[WarpIndex()] = Ordered(mine);
    __syncthreads();
    return FromOrdered(
        __reduce_max_sync(kFullWarp, LaneIndex() < kWarps ? s_.maxima[LaneIndex()] : 0));
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

  // Bounds of the thread's fours, one of kOfSlot of them.
  __device__ float& BoundAt(int at) const {
    return s_.bounds.of_fours[at / kStep / kOfSlot][Thread()];
  }
  __device__ void NoteBound(int at, float bound) const {
    float& own = BoundAt(at);
    own = kOfSlot == 1 || at / kStep % kOfSlot == 0 ? bound : ::fmaxf(own, bound);
  }
  // visit(at) for fours whose bound passes, noted by this thread for all of the slice.
  template <typename Passes, typename Visit>
  __device__ void ForBounds(const Passes& passes, const Visit& visit) const {
    uint32_t slots = 0;
#pragma unroll
    for (int i = 0; i < kFours / kOfSlot; ++i) {
      const int at = 4 * Thread() + i * kStep * kOfSlot;
      if (at < count_ && passes(BoundAt(at))) slots |= 1u << i;
    }
    while (slots != 0) {
      const int first = 4 * Thread() + (__ffs(static_cast<int>(slots)) - 1) * kStep * kOfSlot;
      slots &= slots - 1;
      for (int i = 0; i < kOfSlot; ++i) {
        if (first + i * kStep < count_) visit(first + i * kStep);
      }
    }
  }

  __device__ bool IsTruncated() const {
    return row_.is_draft == 0 && (row_.top_k > 0 || row_.top_p < kTopPOff || row_.min_p > 0);
  }
  __device__ bool BeginsWithFew() const {
    return row_.greedy == 0 && IsTruncated() && row_.top_k > 0 && row_.top_k <= kMaxFewTopK;
  }

  // Steps 5 to 8; -1: no token is left.
  __device__ int32_t Choose() {
    if (row_.greedy == 0 && !IsTruncated()) {
      const int32_t token = NoisyArgMax<false>();
      return token >= 0 ? token : TopScore().token;  // all may have overflowed
    }
    const Best top = TopScore();
    if (top.token < 0 || row_.greedy != 0) return top.token;
    top_ = top.score * row_.inv_temperature;  // no score's product is larger
    if (!(top_ > kForbidden)) return top.token;
    if (BeginsWithFew()) {
      const int32_t token = ChooseAmongFew();
      if (token >= 0) return token;
    }
    if constexpr (kKeepsScores) return ChooseByBins();
    const int32_t token = ChooseByBinsApart(*this);
    ClusterSync();  // a copy took its turns
    return token;
  }
  __device__ int32_t ChooseByBins() {
    Truncate();
    return NoisyArgMax<true>();
  }
  // So that the code of rows that seldom need it lies together.
  __device__ static __noinline__ int32_t ChooseByBinsApart(RowSampler row) {
    return row.ChooseByBins();
  }

  // The argmax of the scores, and of each group of threads where top-k begins with them.
  __device__ Best TopScore() {
    constexpr int kLanes = kRanks * kThreads / kGroups;
    const bool is_few = BeginsWithFew();
    float most = kForbidden;
    float4 four = {};
    int first = 0;
    this->ForScores([&](int at, const float4& x) {
      const float largest = LargestOf(x);
      if (is_few) NoteBound(at, largest);
      if (!(largest > most)) return;
      most = largest;
      four = x;
      first = at;
    });
    Best best;
    if (most > kForbidden) OfferFour(first, four, best);
    if (is_few) {
      if (Thread() == 0) s_.num_candidates = 0;
      for (int d = kLanes / 2; d > 0; d /= 2) {
        most = Larger(most, __shfl_xor_sync(kFullWarp, most, d));
      }
      if (LaneIndex() % kLanes == 0) s_.bounds.few.group_bests[Thread() / kLanes] = most;
    }
    return OfCluster(best);
  }

  // A score that the k best are not below: the k-th largest of the groups'.
  __device__ float LeastOfBest(int k) {
    constexpr int kOwn = kGroups / kRanks, kParts = kThreads / kGroups, kPart = kGroups / kParts;
    for (int i = Thread(); i < kGroups; i += kThreads) {
      s_.bounds.few.all_bests[i] = AtRank(s_.bounds.few.group_bests, i / kOwn)[i % kOwn];
    }
    __syncthreads();
    const int own = Thread() / kParts, first = Thread() % kParts * kPart;
    const float mine = s_.bounds.few.all_bests[own];
    int before = 0;
#pragma unroll
    for (int i = first; i < first + kPart; ++i) {
      const float other = s_.bounds.few.all_bests[i];
      before += other > mine || (other == mine && i < own) ? 1 : 0;
    }
    for (int d = 1; d < kParts; d *= 2) before += __shfl_xor_sync(kFullWarp, before, d);
    if (first == 0 && before == k - 1) s_.least_score = mine;
    __syncthreads();
    return s_.least_score;
  }

  // Steps 7 and 8 among the tokens that are not below a score which k of them reach; -1: that are
  // too many. Only rank 0's token counts.
  __device__ int32_t ChooseAmongFew() {
    const float least = LeastOfBest(row_.top_k) * row_.inv_temperature;
    const Wide mass = least > kForbidden ? Mass(DistanceOf(least, top_)) : 0;
    if (mass == 0) return -1;
    const int count = GatherFew(MakeRange(mass << kTokenBits, ~Wide{0}));
    if (count > kMaxCandidates) return -1;
    return rank_ == 0 ? ChooseOf(count) : 0;
  }
  __device__ int32_t ChooseOf(int count) {
    // Some threads a candidate, of which the first goes on.
    const int parts = count <= kThreads / 4 ? 4 : 1, own = Thread() / parts,
              part = Thread() % parts;
    const Wide key = own < count ? s_.candidates[own] : ~Wide{0};
    Wide before = 0;
    int number = 0;
#pragma unroll 4
    for (int i = part; i < count; i += parts) {
      const Wide other = s_.candidates[i];
      if (other <= key) continue;
      before += MassOf(other);
      ++number;
    }
    for (int d = 1; d < parts; d *= 2) {
      before += __shfl_xor_sync(kFullWarp, before, d);
      number += __shfl_xor_sync(kFullWarp, number, d);
    }
    bool stays = own < count && part == 0 && number < row_.top_k;
    if (row_.top_p < kTopPOff) {
      const Wide all = SumOfBlock(stays ? MassOf(key) : 0);
      stays = stays && before < NeedOf(row_.top_p, all);
    }
    stays = stays && MassOf(key) >= row_.min_p;
    Best best;
    if (stays) {
      const int32_t token = TokenOf(key);
      const uint32_t word = Nth(Words(static_cast<uint32_t>(token / 4)), token % 4);
      best.Offer(s_.bounds.few.scores[own] + Gumbel(word), token);
    }
    return OfBlock(best).token;
  }

  // The row's keys of a range and their scores to rank 0, by the fours' largest scores. Returns
  // their number; those beyond kMaxCandidates are not kept.
  __device__ int GatherFew(const Range& range) {
    uint32_t* number = AtRank(&s_.num_candidates, 0);
    ForBounds([&](float most) { return !(DistanceOf(Scaled(most), top_) < range.low); },
              [&](int at) {
                const float4 x = ScoresAt(at);
#pragma unroll 1
                for (int i = 0; i < 4; ++i) {
                  const float z = Scaled(Nth(x, i));
                  const Wide key = KeyIn(range, z, at + i);
                  if (key == 0) continue;
                  const uint32_t place = atomicAdd(number, 1u);
                  if (place >= kMaxCandidates) continue;
                  *AtRank(&s_.candidates[place], 0) = key;
                  *AtRank(&s_.bounds.few.scores[place], 0) = z;
                }
              });
    ClusterSync();
    return static_cast<int>(*number);
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
      CountKeys(s_.bins.coarse, MakeRange(least_, ~Wide{0}),
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
    this->ForTokens([&](int i, float x) { sum += MassOf(KeyOf(Scaled(x), i)); });
    const Wide all = SumOfCluster(sum);
    const Wide spare = all - NeedOf(row_.top_p, all);
    least_ = spare / static_cast<Wide>(vocabulary_) << kTokenBits;
    return all;
  }

  // The row's keys of a range into bins.
  template <typename BinOf>
  __device__ void CountKeys(Bins& bins, const Range& range, const BinOf& bin_of) {
    for (int bin = Thread(); bin < kBins; bin += kThreads) {
      s_.bins.slice.counts[bin] = s_.bins.slice.low[bin] = s_.bins.slice.high[bin] = 0;
    }
    __syncthreads();
    // Most tokens of a row fall into few bins: a thread adds up what it sees of a bin in a row.
    int bin = 0;
    uint32_t count = 0, low = 0, high = 0;
    this->ForTokens([&](int i, float x) {
      const Wide key = KeyIn(range, Scaled(x), i);
      if (key == 0) return;
      const int next = bin_of(key);
      if (next != bin && count != 0) {
        s_.bins.slice.Add(bin, count, low, high);
        count = low = high = 0;
      }
      bin = next;
      ++count;
      low += static_cast<uint32_t>(MassOf(key)) & 0xffffu;
      high += static_cast<uint32_t>(MassOf(key) >> 16);
    });
    if (count != 0) s_.bins.slice.Add(bin, count, low, high);
    ClusterSync();
    for (int b = Thread(); b < kBins; b += kThreads) {
      uint32_t total = 0;
      Wide mass = 0;
      for (int r = 0; r < kRanks; ++r) {
        const SliceBins* there = AtRank(&s_.bins.slice, r);
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
    Place place = FindBin(s_.bins.coarse, by_mass, need);
    Wide above = MassAbove(s_.bins.coarse, place.bin);
    if (place.bin < 0) return {0, above};
    Range range = CoarseRange(place.bin);
    if (range.first < least_) range = MakeRange(least_, range.last);
    uint32_t count = s_.bins.coarse.counts[place.bin];
    while (count > kMaxCandidates) {
      const int bits = 64 - __clzll(static_cast<long long>(range.last - range.first));
      const int shift = bits > kFineBits ? bits - kFineBits : 0;
      const Wide first = range.first;
      CountKeys(s_.bins.fine, range,
                [=](Wide key) { return static_cast<int>((key - first) >> shift); });
      place = FindBin(s_.bins.fine, by_mass, place.left);
      above += MassAbove(s_.bins.fine, place.bin);
      count = s_.bins.fine.counts[place.bin];
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
    this->ForScores([&](int at, const float4& x) {
      if (DistanceOf(Scaled(LargestOf(x)), top_) < range.low) return;
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const Wide key = KeyIn(range, Scaled(Nth(x, i)), at + i);
        if (key != 0) s_.slice_candidates[atomicAdd(&s_.num_slice_candidates, 1u)] = key;
      }
    });
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

  __device__ uint4 Words(uint32_t block) const {
    const auto p = static_cast<uint64_t>(row_.position);
    return Philox(
        make_uint2(static_cast<uint32_t>(row_.key), static_cast<uint32_t>(row_.key >> 32)),
        make_uint4(static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), block, 0));
  }

  // What a score reaches with any noise: it is at least -3.13 (2.2).
  static constexpr float kLeastNoise = -3.14f;

  // Argmax of z + noise over the tokens that stay; a Philox block serves four tokens. First bounds
  // of the fours and what some token surely reaches, then the few that may reach it.
  template <bool kIsCut>
  __device__ int32_t NoisyArgMax() {
    Range edge = {};
    float bar = kForbidden;
    if constexpr (kIsCut) {
      edge = MakeRange(smallest_, smallest_);
      // The top stays, or a token of equal mass.
      if (Abs(top_) < -kForbidden) bar = top_ + kLeastNoise - (0.01f + Abs(top_) * 0x1p-20f);
    }
    constexpr int kAtOnce = kIsCut ? 1 : 4;  // scores of cut rows are mostly kept
    this->template ForScores<kAtOnce>(
        [&](int at, const float4& x) { BoundFour<kIsCut>(at, x, edge, bar); });
    bar = MaxOfBlock(bar);
    Best best;
    ForBounds([&](float bound) { return bound > kForbidden && bound >= bar; },
              [&](int at) {
                const float4 x = ScoresAt(at);
                const uint4 words = Words(static_cast<uint32_t>((first_ + at) / 4));
#pragma unroll 1
                for (int i = 0; i < 4; ++i) {
                  const float z = Scaled(Nth(x, i));
                  const uint32_t word = Nth(words, i);
                  if (!(z > kForbidden) || z + NoiseBound(word) < bar) continue;
                  if (kIsCut && KeyOf(z, at + i) < smallest_) continue;
                  best.Offer(z + Gumbel(word), first_ + at + i);
                }
              });
    return OfCluster(best).token;
  }

  // Raises the bar to what a token of four surely reaches.
  template <bool kIsCut>
  __device__ void BoundFour(int at, const float4& x, const Range& edge, float& bar) const {
    const uint4 words = Words(static_cast<uint32_t>((first_ + at) / 4));
    float bound = kForbidden, sure = kForbidden, most = kForbidden;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float z = Scaled(Nth(x, i));
      float reach = z + NoiseBound(Nth(words, i));
      if constexpr (kIsCut) {
        const float distance = DistanceOf(z, top_);
        if (distance < edge.low) reach = kForbidden;
        if (distance > edge.high) sure = ::fmaxf(sure, reach);
      }
      bound = ::fmaxf(bound, reach);
      most = ::fmaxf(most, z);
    }
    NoteBound(at, bound);
    if constexpr (!kIsCut) {
      sure = bound;
      bar = ::fmaxf(bar, most + kLeastNoise);
    }
    // Where noise is over 2.09 its bound is too high by less than 0.07. Larger scores round.
    constexpr float kTight = 2.1f, kGap = 0.08f, kMostExact = 0x1p16f;
    if (sure - most >= kTight && Abs(sure) < kMostExact) bar = ::fmaxf(bar, sure - kGap);
  }

  // The best of the logits behind `last`; its token -1: of all.
  __device__ Best NextLogit(const Best& last) {
    Best best;
    this->ForLogits([&](int at, const float4& x) {
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
  __device__ static __noinline__ void ReportLogprobs(RowSampler row, int32_t token,
                                                     SampleResult& result) {
    row.FindLogprobs(token, result);
  }
  __device__ void FindLogprobs(int32_t token, SampleResult& result) {
    const bool writes = rank_ == 0 && Thread() == 0;
    const float maximum = NextLogit({}).score;
    Wide sum = 0;
    this->ForLogits([&](int, const float4& x) {
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

  const int vocabulary_;
  SampleShared& s_;
  int turn_ = 0;
  float top_ = 0;
  Wide least_ = 0;     // keys below it need not be counted
  Wide smallest_ = 0;  // keys below are cut
};

template <int kRanks, bool kKeepsScores>
__global__ void __launch_bounds__(kSampleThreads, 2) SampleKernel(SampleKernelArgs args) {
  extern __shared__ __align__(16) float scores[];
  __shared__ SampleShared shared;
  StartAfterEarlier();
  const int number = static_cast<int>(blockIdx.x) / kRanks;
  SampleRowArgs row = args.rows[number];
  if (row.before != nullptr) row.position = *row.before + int64_t{1};
  const float* logits = args.logits + static_cast<int64_t>(row.logits_row) * args.vocabulary;
  RowSampler<kRanks, kKeepsScores>(row, logits, args.vocabulary, scores, shared)
      .Run(args.results[number]);
  ClusterSync();  // no block leaves while others read its shared memory
}

template <int kRanks, bool kKeepsScores>
cudaError_t Launch(const SampleKernelArgs& args, cudaStream_t stream) {
  const auto kernel = SampleKernel<kRanks, kKeepsScores>;
  size_t bytes = 0;
  if (kKeepsScores) {
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kMaxSlice * static_cast<int>(sizeof(float)))) {
      return error;
    }
    bytes = static_cast<size_t>(RowSampler<kRanks, kKeepsScores>::SliceOf(args.vocabulary)) *
            sizeof(float);
  }
  const dim3 grid(static_cast<unsigned>(args.num_rows * kRanks));
  return EarlyLaunch(grid, kSampleThreads, bytes, stream, kRanks).Run(kernel, args);
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
