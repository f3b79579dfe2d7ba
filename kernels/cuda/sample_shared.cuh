#pragma once

#include "kernels/cuda/sample_keys.cuh"

// What the blocks of a row keep in shared memory while they choose its token.
namespace baton::kernels::cuda {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / kWarp;
constexpr int kMaxRanks = 8;  // blocks of a row
constexpr int kMaxSlice = (1 << kTokenBits) / kMaxRanks;
constexpr int kGroups = 128;  // parts of a row's threads, by whose best tokens top-k begins
constexpr int kBinsOfThread = (kBins + kSampleThreads - 1) / kSampleThreads;
constexpr int kMaxCandidates = kSampleThreads;
constexpr int kMostSlots = 16;  // bounds that a thread keeps of its fours
constexpr Wide kTopPOff = Wide{1} << 32;
static_assert(kMaxFewTopK < kGroups);

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
};

struct RowBins {
  Bins coarse, fine;
  SliceBins slice;
};
// What is larger than all of a thread's four tokens, or some fours of them.
struct Bounds {
  Few few;
  float of_fours[kMostSlots][kSampleThreads];
};

struct SampleShared {
  union {
    RowBins bins;
    Bounds bounds;
  };
  Wide candidates[kMaxCandidates];        // of the row
  Wide slice_candidates[kMaxCandidates];  // of the slice
  uint32_t num_candidates, num_slice_candidates;
  float least_score;
  Best bests[2][kSampleWarps];  // what the cluster exchanges, in turns
  Best block_bests[kSampleWarps];
  Wide sums[2][kSampleWarps];
  Wide warp_sums[kSampleWarps];
  uint32_t maxima[kSampleWarps];
  Place place;
  Cut cut;
};

}  // namespace baton::kernels::cuda
