#include "kernels/cuda/experts.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_math.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }

// Better: larger value, then the lower expert. -1: none.
struct Candidate {
  float value;
  int expert;
};
__device__ bool IsBeatenBy(const Candidate& a, const Candidate& b) {
  if (b.expert < 0) return false;
  return a.expert < 0 || b.value > a.value || (b.value == a.value && b.expert < a.expert);
}

__device__ Candidate BestOfWarp(Candidate best) {
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const Candidate other = {__shfl_xor_sync(kFullWarp, best.value, d),
                             __shfl_xor_sync(kFullWarp, best.expert, d)};
    if (IsBeatenBy(best, other)) best = other;
  }
  return best;
}

constexpr int kRouteRows = 4;  // of a block of threads, a warp each

// A row's experts e = lane + 32 i in registers, kMost of a lane at most.
template <int kMost>
struct RouteRow {
  float biased[kMost];
  unsigned taken = 0;

  __device__ Candidate BestOfLane(int experts) const {
    Candidate best = {0.0f, -1};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Candidate mine = {biased[i], LaneIndex() + i * kWarp};
      const bool is_free = mine.expert < experts && (taken >> i & 1u) == 0;
      if (is_free && IsBeatenBy(best, mine)) best = mine;
    }
    return best;
  }

  // Writes the `slots` best experts by biased score.
  __device__ void Pick(int experts, int slots, int32_t* ids) {
    Candidate mine = BestOfLane(experts);
    for (int slot = 0; slot < slots; ++slot) {
      const Candidate best = BestOfWarp(mine);
      if (LaneIndex() == 0) ids[slot] = best.expert;
      if (best.expert != mine.expert) continue;
      taken |= 1u << (best.expert / kWarp);
      mine = BestOfLane(experts);
    }
  }
};

// A warp a row.
template <int kMost>
__global__ void __launch_bounds__(kRouteRows* kWarp) RouteKernel(RouteArgs args) {
  StartAfterEarlier();
  __shared__ float all_scores[kRouteRows][kMost * kWarp];
  __shared__ int32_t all_chosen[kRouteRows][kMaxExpertsPerToken];
  const int lane = LaneIndex(), row = static_cast<int>(blockIdx.x) * kRouteRows + WarpIndex();
  const int experts = args.shape.experts, slots = args.shape.experts_per_token;
  if (row >= *args.step.num_rows) return;
  float* scores = all_scores[WarpIndex()];
  int32_t* chosen = all_chosen[WarpIndex()];
  const bool is_hashed = args.token_experts != nullptr;
  const float* logits = args.logits + static_cast<int64_t>(row) * experts;
  RouteRow<kMost> own;
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const int e = lane + i * kWarp;
    own.biased[i] = e < experts ? logits[e] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const int e = lane + i * kWarp;
    const float score = Sqrt(Softplus(own.biased[i]));
    scores[e] = score;
    own.biased[i] = is_hashed || e >= experts ? score : score + args.bias[e];
  }
  __syncwarp();
  if (is_hashed) {
    const int64_t token = args.step.token[row];
    for (int i = lane; i < slots; i += kWarp) chosen[i] = args.token_experts[token * slots + i];
  } else {
    own.Pick(experts, slots, chosen);
  }
  __syncwarp();
  float sum = 0.0f;
  for (int i = 0; i < slots; ++i) sum += scores[chosen[i]];
  for (int i = lane; i < slots; i += kWarp) {
    args.ids[row * slots + i] = chosen[i];
    args.weights[row * slots + i] = scores[chosen[i]] / sum * args.shape.routed_scaling;
  }
}

__device__ bool IsFirstMention(const int32_t* ids, int slot) {
  for (int i = 0; i < slot; ++i) {
    if (ids[i] == ids[slot]) return false;
  }
  return true;
}

// Which rows of a part name an expert: bits by row.
struct PartMarks {
  uint32_t words[kMaxExperts][kPlanRows / 32];

  __device__ int Count(int expert) const {
    int count = 0;
    for (int w = 0; w < kPlanRows / 32; ++w) count += __popc(words[expert][w]);
    return count;
  }
  __device__ int CountBefore(int expert, int row) const {
    int count = __popc(words[expert][row / 32] & ((1u << (row % 32)) - 1u));
    for (int w = 0; w < row / 32; ++w) count += __popc(words[expert][w]);
    return count;
  }
};

__device__ void MarkPart(const ExpertPlanArgs& args, int part, PartMarks& marks) {
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kThreads) {
    for (uint32_t& word : marks.words[e]) word = 0;
  }
  __syncthreads();
  const int rows = min(kPlanRows, *args.step.num_rows - part * kPlanRows);
  for (int i = static_cast<int>(threadIdx.x); i < rows * args.slots; i += kThreads) {
    const int row = i / args.slots;
    const int32_t expert = args.ids[static_cast<int64_t>(part) * kPlanRows * args.slots + i];
    atomicOr(&marks.words[expert][row / 32], 1u << (row % 32));
  }
  __syncthreads();
}

// firsts[e] = sum of counts below e, firsts[experts] of all, by one block.
__device__ void PrefixSums(int32_t* firsts, int experts) {
  __shared__ int32_t warp_sums[kThreads / kWarp];
  int32_t carry = 0;
  for (int base = 0; base < experts; base += kThreads) {
    const int e = base + static_cast<int>(threadIdx.x);
    const int32_t count = e < experts ? firsts[e] : 0;
    int32_t sum = count;
    for (int d = 1; d < kWarp; d *= 2) {
      const int32_t below = __shfl_up_sync(kFullWarp, sum, d);
      if (LaneIndex() >= d) sum += below;
    }
    if (LaneIndex() == kWarp - 1) warp_sums[WarpIndex()] = sum;
    __syncthreads();
    int32_t before = carry;
    for (int w = 0; w < NumWarps(); ++w) {
      if (w < WarpIndex()) before += warp_sums[w];
      carry += warp_sums[w];
    }
    if (e < experts) firsts[e] = before + sum - count;
    __syncthreads();
  }
  if (threadIdx.x == 0) firsts[experts] = carry;
  __syncthreads();
}

// From the experts' counts in `firsts`: their first pairs, and the tiles, the shared expert's
// first.
__device__ void MakeTiles(const ExpertPlanArgs& args, int32_t* firsts, int32_t* tile_firsts) {
  const int thread = static_cast<int>(threadIdx.x), rows = *args.step.num_rows;
  const int shared_tiles = (rows + args.tile_rows - 1) / args.tile_rows;
  for (int e = thread; e < args.experts; e += kThreads) {
    tile_firsts[e] = (firsts[e] + args.tile_rows - 1) / args.tile_rows;
  }
  __syncthreads();
  PrefixSums(firsts, args.experts);
  PrefixSums(tile_firsts, args.experts);
  if (thread == 0) {
    *args.num_pairs = firsts[args.experts];
    *args.num_tiles = shared_tiles + tile_firsts[args.experts];
  }
  for (int tile = thread; tile < shared_tiles; tile += kThreads) {
    const int at = tile * args.tile_rows;
    args.tiles[tile] = {args.experts, args.shared_first + at, min(args.tile_rows, rows - at)};
  }
  for (int e = thread; e < args.experts; e += kThreads) {
    int32_t tile = shared_tiles + tile_firsts[e];
    for (int32_t at = firsts[e]; at < firsts[e + 1]; at += args.tile_rows) {
      args.tiles[tile++] = {e, at, min(args.tile_rows, firsts[e + 1] - at)};
    }
  }
}

// Pairs of a part's rows; first(e) is the first of expert e in the part.
template <typename First>
__device__ void PlacePart(const ExpertPlanArgs& args, int part, const PartMarks& marks,
                          const First& first) {
  const int first_row = part * kPlanRows;
  const int rows = min(kPlanRows, *args.step.num_rows - first_row);
  for (int i = static_cast<int>(threadIdx.x); i < rows * args.slots; i += kThreads) {
    const int row = i / args.slots, slot = i % args.slots;
    const int64_t at = static_cast<int64_t>(first_row + row) * args.slots;
    const int32_t* ids = args.ids + at;
    const int32_t expert = ids[slot];
    if (!IsFirstMention(ids, slot)) {
      args.row_pairs[at + slot] = -1;
      continue;
    }
    float weight = 0.0f;
    for (int other = slot; other < args.slots; ++other) {
      if (ids[other] == expert) weight += args.weights[at + other];
    }
    const int32_t pair = first(expert) + marks.CountBefore(expert, row);
    args.row_pairs[at + slot] = pair;
    args.pair_rows[pair] = first_row + row;
    args.pair_weights[pair] = weight;
  }
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kThreads) {
    args.pair_rows[args.shared_first + first_row + row] = first_row + row;
    args.pair_weights[args.shared_first + first_row + row] = 1.0f;
  }
}

// The whole plan of a step of one part.
__global__ void __launch_bounds__(kThreads) SmallPlanKernel(ExpertPlanArgs args) {
  StartAfterEarlier();
  __shared__ PartMarks marks;
  __shared__ int32_t firsts[kMaxExperts + 1], tile_firsts[kMaxExperts + 1];
  MarkPart(args, 0, marks);
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kThreads) {
    firsts[e] = marks.Count(e);
  }
  __syncthreads();
  MakeTiles(args, firsts, tile_firsts);
  const int32_t* first_pairs = firsts;
  PlacePart(args, 0, marks, [first_pairs](int32_t expert) { return first_pairs[expert]; });
}

// Grid: parts of kPlanRows rows.
__global__ void __launch_bounds__(kThreads) CountKernel(ExpertPlanArgs args) {
  __shared__ PartMarks marks;
  const int part = static_cast<int>(blockIdx.x);
  MarkPart(args, part, marks);
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kThreads) {
    args.part_counts[static_cast<int64_t>(part) * args.experts + e] = marks.Count(e);
  }
}

// Counts become first pairs; the tiles. One block.
__global__ void __launch_bounds__(kThreads) PrefixKernel(ExpertPlanArgs args, int parts) {
  __shared__ int32_t firsts[kMaxExperts + 1], tile_firsts[kMaxExperts + 1];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < args.experts; e += kThreads) {
    int32_t count = 0;
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
      count += args.part_counts[static_cast<int64_t>(part) * args.experts + e];
    }
    firsts[e] = count;
  }
  __syncthreads();
  MakeTiles(args, firsts, tile_firsts);
  for (int e = thread; e < args.experts; e += kThreads) {
    int32_t first = firsts[e];
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
      int32_t& count = args.part_counts[static_cast<int64_t>(part) * args.experts + e];
      const int32_t here = count;
      count = first;
      first += here;
    }
  }
}

// Grid: parts.
__global__ void __launch_bounds__(kThreads) PlaceKernel(ExpertPlanArgs args) {
  __shared__ PartMarks marks;
  const int part = static_cast<int>(blockIdx.x);
  MarkPart(args, part, marks);
  const int32_t* firsts = args.part_counts + static_cast<int64_t>(part) * args.experts;
  PlacePart(args, part, marks, [firsts](int32_t expert) { return firsts[expert]; });
}

__global__ void __launch_bounds__(kThreads) SwigluKernel(SwigluArgs args) {
  StartAfterEarlier();
  const int pair = static_cast<int>(blockIdx.x), width = args.shape.intermediate;
  const bool is_live = pair < args.shared_first ? pair < *args.num_pairs
                                                : pair - args.shared_first < *args.step.num_rows;
  if (!is_live) return;
  const float limit = args.shape.swiglu_limit, weight = args.pair_weights[pair];
  const int64_t first = static_cast<int64_t>(pair) * width;
  for (int base = 0; base < width; base += 8 * kThreads) {
    const int column = base + 8 * static_cast<int>(threadIdx.x);
    const bool has_values = column < width;
    float gate[8] = {}, up[8] = {}, x[8];
    if (has_values) {
      LoadEight(args.gate + first + column, gate);
      LoadEight(args.up + first + column, up);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float g = gate[i] > limit ? limit : gate[i];
      x[i] = RoundBf16(Silu(g) * Clamp(up[i], limit) * weight);
    }
    QuantiseEight(x, has_values, args.hidden8 + first + column);
  }
}

__global__ void __launch_bounds__(kThreads) SumExpertsKernel(SumExpertsArgs args) {
  StartAfterEarlier();
  __shared__ int32_t pairs[kMaxExpertsPerToken + 1];
  __shared__ int count;
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int slots = args.shape.experts_per_token;
  if (row >= *args.step.num_rows) return;
  if (threadIdx.x == 0) {  // pairs ascend with the expert: sort them
    int n = 0;
    for (int slot = 0; slot < slots; ++slot) {
      const int32_t pair = args.row_pairs[static_cast<int64_t>(row) * slots + slot];
      if (pair < 0) continue;
      int at = n++;
      for (; at > 0 && pairs[at - 1] > pair; --at) pairs[at] = pairs[at - 1];
      pairs[at] = pair;
    }
    pairs[n] = args.shared_first + row;
    count = n + 1;
  }
  __syncthreads();
  const int column = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (column >= hidden) return;
  float sum[8] = {};
#pragma unroll 8
  for (int p = 0; p < count; ++p) {
    float x[8];
    LoadEight(args.outputs + static_cast<int64_t>(pairs[p]) * hidden + column, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += x[i];
  }
  StoreEight(sum, args.branch + static_cast<int64_t>(row) * hidden + column);
}

}  // namespace

cudaError_t RunRoute(const RouteArgs& args, cudaStream_t stream) {
  constexpr int kUsual = 256 / kWarp, kMost = kMaxExperts / kWarp;
  const unsigned blocks = Unsigned((args.step.rows + kRouteRows - 1) / kRouteRows);
  const auto kernel =
      args.shape.experts <= kUsual * kWarp ? RouteKernel<kUsual> : RouteKernel<kMost>;
  return EarlyLaunch(dim3(blocks), kRouteRows * kWarp, 0, stream).Run(kernel, args);
}

cudaError_t RunExpertPlan(const ExpertPlanArgs& args, cudaStream_t stream) {
  const int parts = (args.step.rows + kPlanRows - 1) / kPlanRows;
  if (parts == 1) {
    return EarlyLaunch(dim3(1), kThreads, 0, stream).Run(SmallPlanKernel, args);
  }
  CountKernel<<<Unsigned(parts), kThreads, 0, stream>>>(args);
  PrefixKernel<<<1, kThreads, 0, stream>>>(args, parts);
  PlaceKernel<<<Unsigned(parts), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunSwiglu(const SwigluArgs& args, cudaStream_t stream) {
  return EarlyLaunch(dim3(Unsigned(args.pairs)), kThreads, 0, stream).Run(SwigluKernel, args);
}

cudaError_t RunSumExperts(const SumExpertsArgs& args, cudaStream_t stream) {
  constexpr int kSumThreads = 128;
  const dim3 grid(Unsigned(args.step.rows),
                  Unsigned((args.shape.hidden / 8 + kSumThreads - 1) / kSumThreads));
  return EarlyLaunch(grid, kSumThreads, 0, stream).Run(SumExpertsKernel, args);
}

}  // namespace baton::kernels::cuda
