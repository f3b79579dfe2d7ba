#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/sample.h"

// One block a row. Masses and counts are integers, so the order in which
// threads add them is free; an argmax has one winner whatever the order.
namespace baton::kernels::cuda {
namespace {

using Wide = unsigned long long;

constexpr int kThreads = 1024;
constexpr int kTokenBits = 17;
constexpr int kKeyBits = 50;  // rank key: mass, then the lower id (2.3)
constexpr int kDigitBits = 10;
constexpr int kBins = 1 << kDigitBits;
constexpr Wide kTopPOff = Wide{1} << 32;
constexpr float kForbidden = -__builtin_inff();

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

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
};

// The best of all threads' candidates, in every thread.
__device__ Best BlockBest(Best mine) {
  __shared__ float scores[kWarp];
  __shared__ int32_t tokens[kWarp];
  const auto merge = [&mine] {
    for (int d = kWarp / 2; d > 0; d /= 2) {
      const float score = __shfl_xor_sync(kFullWarp, mine.score, d);
      const int32_t token = __shfl_xor_sync(kFullWarp, mine.token, d);
      if (token >= 0) mine.Offer(score, token);
    }
  };
  merge();
  __syncthreads();
  if (LaneIndex() == 0) {
    scores[WarpIndex()] = mine.score;
    tokens[WarpIndex()] = mine.token;
  }
  __syncthreads();
  mine = {scores[LaneIndex()], tokens[LaneIndex()]};
  merge();
  return mine;
}

__device__ Wide BlockSum(Wide x) {
  __shared__ Wide sums[kWarp];
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  __syncthreads();
  if (LaneIndex() == 0) sums[WarpIndex()] = x;
  __syncthreads();
  x = sums[LaneIndex()];
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
  return x;
}

// Several scores on their way at a time.
template <typename Score>
__device__ Best ArgMax(int n, const Score& score) {
  constexpr int kAtOnce = 8;
  Best best;
  for (int base = Thread(); base < n; base += kAtOnce * kThreads) {
    float scores[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int v = base + i * kThreads;
      scores[i] = v < n ? score(v) : kForbidden;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) best.Offer(scores[i], base + i * kThreads);
  }
  return BlockBest(best);
}

// At least Gumbel(word): with k leading ones, 1 - u >= 2^-(k + 1), and
// -log(-log u) <= -log(1 - u).
__device__ float GumbelBound(uint32_t word) {
  constexpr float kLog2 = 0.693148f, kSlack = 0.01f;
  return static_cast<float>(__clz(static_cast<int>(~word)) + 1) * kLog2 + kSlack;
}

// Argmax of z(v) + noise over the tokens whose z is not -inf and that
// is_allowed(v) lets through; a Philox block serves four tokens. `largest`: the
// z of an allowed token, to 2^-10. Noise is at least -3.13, so that token's sum
// is a bar from the start (2.2).
template <typename Scaled, typename Allowed>
__device__ Best NoisyArgMax(const SampleRowArgs& row, int n, float largest, const Scaled& z,
                            const Allowed& is_allowed) {
  constexpr float kMostNoise = 22.9f, kLeastNoise = -3.14f;
  const auto p = static_cast<uint64_t>(row.position);
  const uint2 key =
      make_uint2(static_cast<uint32_t>(row.key), static_cast<uint32_t>(row.key >> 32));
  Best best;
  // Sums below the bar cannot win.
  float bar = Abs(largest) < -kForbidden ? largest + kLeastNoise - (0.01f + Abs(largest) * 0x1p-20f)
                                         : kForbidden;
  for (int group = Thread(); group < (n + 3) / 4; group += kThreads) {
    float scaled[4];
    bool is_any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int v = 4 * group + i;
      scaled[i] = v < n ? z(v) : kForbidden;
      is_any = is_any || scaled[i] + kMostNoise >= bar;
    }
    if (!is_any) continue;
    const uint4 words =
        Philox(key, make_uint4(static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32),
                               static_cast<uint32_t>(group), 0));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int v = 4 * group + i;
      if (!(scaled[i] > kForbidden) || scaled[i] + GumbelBound(word[i]) < bar) continue;
      if (!is_allowed(v)) continue;
      best.Offer(scaled[i] + Gumbel(word[i]), v);
      bar = best.token >= 0 && best.score > bar ? best.score : bar;
    }
  }
  return BlockBest(best);
}

// Steps 1 to 4: the row's scores in scratch, or the logits themselves where
// nothing changes them.
__device__ const float* EditScores(const SampleRowArgs& row, const float* logits, int n,
                                   float* scratch) {
  if (row.num_edits == 0 && row.allowed == nullptr) return logits;
  const auto is_allowed = [&row](int v) {
    return row.allowed == nullptr || (row.allowed[v / 32] >> (v % 32) & 1u) != 0;
  };
  for (int v = Thread(); v < n; v += kThreads) scratch[v] = is_allowed(v) ? logits[v] : kForbidden;
  __syncthreads();
  for (int i = Thread(); i < row.num_edits; i += kThreads) {
    const ScoreEdit edit = row.edits[i];
    if (!is_allowed(edit.token)) continue;
    float x = scratch[edit.token];
    if (edit.repeats != 0) x = x > 0 ? x / row.repetition : x * row.repetition;
    if (edit.count > 0) {
      x = Fma(-row.frequency, static_cast<float>(edit.count), x);
      x = x - row.presence;
    }
    if (edit.has_bias != 0) x += edit.bias;
    scratch[edit.token] = x;
  }
  __syncthreads();
  return scratch;
}

__device__ Wide RankKey(Wide mass, int32_t token) {
  return (mass << kTokenBits) + ((Wide{1} << kTokenBits) - 1 - static_cast<Wide>(token));
}
__device__ Wide MassOf(Wide key) { return key >> kTokenBits; }

// The tokens that may still be chosen, by rank key; 0: not among them.
struct Ranked {
  const float* scores;
  int n;
  float inv_temperature, top;
  Wide smallest;  // keys below are cut

  __device__ float Scaled(int v) const { return scores[v] * inv_temperature; }
  __device__ Wide KeyOf(float z, int v) const {
    if (!(z > kForbidden)) return 0;
    const Wide key = RankKey(Mass(z - top), v);
    return key < smallest ? 0 : key;
  }
  __device__ Wide Key(int v) const { return KeyOf(Scaled(v), v); }
};

// Distances from the top outside of which no key begins with `prefix`, the key
// without its last `rest` bits; with room for rounding.
struct Band {
  float low, high;
};
__device__ Band BandOf(Wide prefix, int rest) {
  constexpr float kRoom = 1e-3f, kLowest = -26.0f;  // masses below e^-24 are 0
  const Wide least = MassOf(prefix << rest), most = MassOf(((prefix + 1) << rest) - 1) + 1;
  Band band = {kForbidden, Log(static_cast<float>(most) * 0x1p-32f) + kRoom};
  if (least > 1) band.low = Log(static_cast<float>(least - 1) * 0x1p-32f) - kRoom;
  return band.low < kLowest ? Band{kForbidden, band.high} : band;
}

// In which bin, from the top, the sum of weights reaches `left`; what is left
// in it. By the whole block; -1: nowhere, `left` is then what all weigh too
// little.
struct Cut {
  int bin;
  Wide left;
};
__device__ Cut FindBin(const Wide* bins, Wide left) {
  __shared__ Wide warp_sums[kThreads / kWarp];
  __shared__ Cut cut;
  static_assert(kBins == kThreads);
  const int bin = kBins - 1 - Thread();
  const Wide own = bins[bin];
  Wide sum = own;
  for (int d = 1; d < kWarp; d *= 2) {
    const Wide before = __shfl_up_sync(kFullWarp, sum, d);
    if (LaneIndex() >= d) sum += before;
  }
  if (Thread() == 0) cut = {-1, 0};
  if (LaneIndex() == kWarp - 1) warp_sums[WarpIndex()] = sum;
  __syncthreads();
  Wide before = sum - own;
  for (int w = 0; w < WarpIndex(); ++w) before += warp_sums[w];
  if (before < left && before + own >= left) cut = {bin, left - before};
  __syncthreads();
  return cut;
}

// The largest key T for which keys >= T weigh at least `need`; a key weighs
// weigh(key). 0: all keys together weigh less.
template <typename Weigh>
__device__ Wide FindCut(const Ranked& ranked, Wide need, const Weigh& weigh) {
  __shared__ Wide bins[kBins];
  Wide prefix = 0, left = need;
  Band band = {kForbidden, -kForbidden};
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();
    for (int i = Thread(); i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    // Most tokens of a row fall into one bin: a thread adds up what it sees of
    // a bin in a row.
    int bin = 0;
    Wide weight = 0;
#pragma unroll 4
    for (int v = Thread(); v < ranked.n; v += kThreads) {
      const float z = ranked.Scaled(v), distance = z - ranked.top;
      if (distance < band.low || distance > band.high) continue;
      const Wide key = ranked.KeyOf(z, v);
      if (key == 0 || key >> (shift + kDigitBits) != prefix) continue;
      const int next = static_cast<int>((key >> shift) & (kBins - 1));
      if (next != bin && weight != 0) {
        atomicAdd(&bins[bin], weight);
        weight = 0;
      }
      bin = next;
      weight += weigh(key);
    }
    if (weight != 0) atomicAdd(&bins[bin], weight);
    __syncthreads();
    const Cut cut = FindBin(bins, left);
    if (cut.bin < 0) return 0;
    left = cut.left;
    prefix = prefix << kDigitBits | static_cast<Wide>(cut.bin);
    band = BandOf(prefix, shift);
  }
  return prefix;
}

// ceil(p * total / 2^32), at least 1; total < 2^50.
__device__ Wide NeedOf(Wide p, Wide total) {
  const Wide low = p * total, high = __umul64hi(p, total);
  const Wide rounded = low + 0xffffffffull;
  const Wide carry = rounded < low ? 1 : 0;
  const Wide need = (high + carry) << 32 | rounded >> 32;
  return need > 1 ? need : 1;
}

// Step 7: the smallest key that stays, by top-k, top-p and min-p in that order
// (2.3).
__device__ void Truncate(const SampleRowArgs& row, Ranked& ranked) {
  if (row.top_k > 0) {
    ranked.smallest = FindCut(ranked, static_cast<Wide>(row.top_k), [](Wide) { return Wide{1}; });
  }
  if (row.top_p < kTopPOff) {
    Wide total = 0;
#pragma unroll 4
    for (int v = Thread(); v < ranked.n; v += kThreads) total += MassOf(ranked.Key(v));
    total = BlockSum(total);
    const Wide cut =
        FindCut(ranked, NeedOf(row.top_p, total), [](Wide key) { return MassOf(key); });
    if (cut > ranked.smallest) ranked.smallest = cut;
  }
  if (row.min_p > 0) {
    const Wide cut = static_cast<Wide>(row.min_p) << kTokenBits;
    if (cut > ranked.smallest) ranked.smallest = cut;
  }
}

// Steps 5 to 8; `top` is the argmax of the scores, which exists.
__device__ int32_t Choose(const SampleRowArgs& row, const float* scores, int n, const Best& top) {
  if (row.greedy != 0) return top.token;
  const float inverse = row.inv_temperature;
  const Best scaled = ArgMax(n, [&](int v) { return scores[v] * inverse; });
  if (scaled.token < 0) return top.token;  // all overflowed
  const bool is_truncated = row.top_k > 0 || row.top_p < kTopPOff || row.min_p > 0;
  const auto z = [&](int v) { return scores[v] * inverse; };
  if (row.is_draft != 0 || !is_truncated) {
    return NoisyArgMax(row, n, scaled.score, z, [](int) { return true; }).token;
  }
  // The largest z has the largest mass: it, or one of equal mass, is among
  // those that stay.
  Ranked ranked = {scores, n, inverse, scaled.score, 0};
  Truncate(row, ranked);
  return NoisyArgMax(row, n, scaled.score, z, [&](int v) { return ranked.Key(v) != 0; }).token;
}

// contracts.md 2.5, from the raw logits.
__device__ void ReportLogprobs(const SampleRowArgs& row, const float* logits, int n, int32_t token,
                               SampleResult& result) {
  const float maximum = ArgMax(n, [&](int v) { return logits[v]; }).score;
  Wide sum = 0;
  for (int v = Thread(); v < n; v += kThreads) sum += Mass(logits[v] - maximum);
  sum = BlockSum(sum);
  const float log_sum = Log(static_cast<float>(sum) * 0x1p-32f);
  if (Thread() == 0) result.logprob = (logits[token] - maximum) - log_sum;
  const int count = min(row.top_logprobs, kMaxTop);
  Best last;
  int found = 0;
  for (; found < count; ++found) {
    const bool is_first = found == 0;
    const Best next = ArgMax(n, [&](int v) {
      const bool is_behind =
          is_first || last.score > logits[v] || (last.score == logits[v] && last.token < v);
      return is_behind ? logits[v] : kForbidden;
    });
    if (next.token < 0) break;
    last = next;
    if (Thread() == 0) {
      result.top_tokens[found] = last.token;
      result.top_logprobs[found] = (last.score - maximum) - log_sum;
    }
  }
  if (Thread() == 0) result.num_top = found;
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleKernelArgs args) {
  const SampleRowArgs row = args.rows[blockIdx.x];
  const int n = args.vocabulary;
  const float* logits = args.logits + static_cast<int64_t>(row.logits_row) * n;
  SampleResult& result = args.results[blockIdx.x];
  const float* scores =
      EditScores(row, logits, n, args.scores + static_cast<int64_t>(blockIdx.x) * n);
  const Best top = ArgMax(n, [&](int v) { return scores[v]; });
  if (Thread() == 0) result = SampleResult{.is_empty = top.token < 0 ? 1 : 0};
  if (top.token < 0) return;
  const int32_t token = Choose(row, scores, n, top);
  if (Thread() == 0) result.token = token;
  if (row.is_draft != 0 || row.top_logprobs < 0) return;
  ReportLogprobs(row, logits, n, token, result);
}

}  // namespace

cudaError_t RunSample(const SampleKernelArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  SampleKernel<<<static_cast<unsigned>(args.num_rows), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
