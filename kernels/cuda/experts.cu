#include "kernels/cuda/experts.h"
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

// One warp a row.
__global__ void RouteKernel(RouteArgs args) {
  __shared__ float scores[kMaxExperts];
  const int row = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int experts = args.shape.experts, slots = args.shape.experts_per_token;
  if (row >= *args.step.num_rows) return;
  const float* logits = args.logits + static_cast<int64_t>(row) * experts;
  for (int e = lane; e < experts; e += kWarp) scores[e] = Sqrt(Softplus(logits[e]));
  __syncwarp();
  int32_t* ids = args.ids + row * slots;
  if (args.token_experts != nullptr) {
    const int64_t token = args.step.token[row];
    for (int i = lane; i < slots; i += kWarp) ids[i] = args.token_experts[token * slots + i];
  } else {
    unsigned taken = 0;  // bit i: expert lane + 32 i
    for (int slot = 0; slot < slots; ++slot) {
      Candidate best = {0.0f, -1};
      for (int e = lane; e < experts; e += kWarp) {
        const Candidate mine = {scores[e] + args.bias[e], e};
        if ((taken >> (e / kWarp) & 1u) == 0 && IsBeatenBy(best, mine)) best = mine;
      }
      for (int d = kWarp / 2; d > 0; d /= 2) {
        const Candidate other = {__shfl_xor_sync(kFullWarp, best.value, d),
                                 __shfl_xor_sync(kFullWarp, best.expert, d)};
        if (IsBeatenBy(best, other)) best = other;
      }
      if (best.expert % kWarp == lane) taken |= 1u << (best.expert / kWarp);
      if (lane == 0) ids[slot] = best.expert;
    }
  }
  __syncwarp();
  if (lane != 0) return;
  float sum = 0.0f;
  for (int i = 0; i < slots; ++i) sum += scores[ids[i]];
  for (int i = 0; i < slots; ++i) {
    args.weights[row * slots + i] = scores[ids[i]] / sum * args.shape.routed_scaling;
  }
}

__device__ bool IsFirstMention(const int32_t* ids, int slot) {
  for (int i = 0; i < slot; ++i) {
    if (ids[i] == ids[slot]) return false;
  }
  return true;
}

// Grid: parts of kPlanRows rows. Thread = row.
__global__ void CountKernel(ExpertPlanArgs args) {
  __shared__ int32_t counts[kMaxExperts];
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kPlanRows) counts[e] = 0;
  __syncthreads();
  const int row = static_cast<int>(blockIdx.x * kPlanRows + threadIdx.x);
  if (row < *args.step.num_rows) {
    const int32_t* ids = args.ids + static_cast<int64_t>(row) * args.slots;
    for (int slot = 0; slot < args.slots; ++slot) {
      if (IsFirstMention(ids, slot)) atomicAdd(&counts[ids[slot]], 1);  // an integer: any order
    }
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kPlanRows) {
    args.part_counts[static_cast<int64_t>(blockIdx.x) * args.experts + e] = counts[e];
  }
}

// Counts become first pairs; the tiles. One block.
__global__ void PrefixKernel(ExpertPlanArgs args, int parts) {
  __shared__ int32_t firsts[kMaxExperts + 1], tile_firsts[kMaxExperts + 1];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int e = thread; e < args.experts; e += threads) {
    int32_t count = 0;
    for (int part = 0; part < parts; ++part) {
      count += args.part_counts[static_cast<int64_t>(part) * args.experts + e];
    }
    firsts[e] = count;
  }
  __syncthreads();
  if (thread == 0) {
    int32_t first = 0, first_tile = 0;
    for (int e = 0; e < args.experts; ++e) {
      const int32_t count = firsts[e];
      firsts[e] = first;
      tile_firsts[e] = first_tile;
      first += count;
      first_tile += (count + args.tile_rows - 1) / args.tile_rows;
    }
    firsts[args.experts] = *args.num_pairs = first;
    tile_firsts[args.experts] = *args.num_tiles = first_tile;
    *args.num_shared_tiles = (*args.step.num_rows + args.tile_rows - 1) / args.tile_rows;
  }
  __syncthreads();
  for (int e = thread; e < args.experts; e += threads) {
    for (int32_t at = firsts[e], tile = tile_firsts[e]; at < firsts[e + 1]; at += args.tile_rows) {
      args.tiles[tile++] = {e, at, min(args.tile_rows, firsts[e + 1] - at)};
    }
    int32_t first = firsts[e];
    for (int part = 0; part < parts; ++part) {
      int32_t& count = args.part_counts[static_cast<int64_t>(part) * args.experts + e];
      const int32_t here = count;
      count = first;
      first += here;
    }
  }
  const int rows = *args.step.num_rows;
  for (int tile = thread; tile * args.tile_rows < rows; tile += threads) {
    const int at = tile * args.tile_rows;
    args.shared_tiles[tile] = {args.experts, args.shared_first + at,
                               min(args.tile_rows, rows - at)};
  }
}

// Grid: parts. Thread = expert: takes its pairs of the part in row order.
__global__ void PlaceKernel(ExpertPlanArgs args) {
  const int first_row = static_cast<int>(blockIdx.x) * kPlanRows;
  const int last_row = min(first_row + kPlanRows, *args.step.num_rows);
  for (int e = static_cast<int>(threadIdx.x); e < args.experts; e += kThreads) {
    int32_t pair = args.part_counts[static_cast<int64_t>(blockIdx.x) * args.experts + e];
    for (int row = first_row; row < last_row; ++row) {
      const int64_t at = static_cast<int64_t>(row) * args.slots;
      float weight = 0.0f;
      int mention = -1;
      for (int slot = 0; slot < args.slots; ++slot) {
        if (args.ids[at + slot] != e) continue;
        weight += args.weights[at + slot];
        args.row_pairs[at + slot] = mention < 0 ? pair : -1;
        mention = slot;
      }
      if (mention < 0) continue;
      args.pair_rows[pair] = row;
      args.pair_weights[pair++] = weight;
    }
  }
  for (int row = first_row + static_cast<int>(threadIdx.x); row < last_row; row += kThreads) {
    args.pair_rows[args.shared_first + row] = row;
    args.pair_weights[args.shared_first + row] = 1.0f;
  }
}

__global__ void SwigluKernel(SwigluArgs args) {
  extern __shared__ float x[];
  const int pair = static_cast<int>(blockIdx.x), width = args.shape.intermediate;
  const bool is_live = pair < args.shared_first ? pair < *args.num_pairs
                                                : pair - args.shared_first < *args.step.num_rows;
  if (!is_live) return;
  const float limit = args.shape.swiglu_limit, weight = args.pair_weights[pair];
  const Bf16* gates = args.gate + static_cast<int64_t>(pair) * width;
  const Bf16* ups = args.up + static_cast<int64_t>(pair) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
    const float gate = DecodeBf16(gates[i]), up = DecodeBf16(ups[i]);
    x[i] = RoundBf16(Silu(gate > limit ? limit : gate) * Clamp(up, limit) * weight);
  }
  __syncthreads();
  QuantiseRow(x, width, args.codes + static_cast<int64_t>(pair) * width,
              args.scales + static_cast<int64_t>(pair) * (width / kFp8Group));
}

__global__ void SumExpertsKernel(SumExpertsArgs args) {
  __shared__ int32_t pairs[kMaxExpertsPerToken];
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
    count = n;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    float sum = 0.0f;
    for (int p = 0; p < count; ++p) {
      sum += DecodeBf16(args.outputs[static_cast<int64_t>(pairs[p]) * hidden + i]);
    }
    sum += DecodeBf16(args.outputs[static_cast<int64_t>(args.shared_first + row) * hidden + i]);
    args.branch[static_cast<int64_t>(row) * hidden + i] = EncodeBf16(sum);
  }
}

}  // namespace

cudaError_t RunRoute(const RouteArgs& args, cudaStream_t stream) {
  RouteKernel<<<Unsigned(args.step.rows), kWarp, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunExpertPlan(const ExpertPlanArgs& args, cudaStream_t stream) {
  const int parts = (args.step.rows + kPlanRows - 1) / kPlanRows;
  CountKernel<<<Unsigned(parts), kPlanRows, 0, stream>>>(args);
  PrefixKernel<<<1, kThreads, 0, stream>>>(args, parts);
  PlaceKernel<<<Unsigned(parts), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunSwiglu(const SwigluArgs& args, cudaStream_t stream) {
  const unsigned bytes = Unsigned(args.shape.intermediate) * static_cast<unsigned>(sizeof(float));
  SwigluKernel<<<Unsigned(args.pairs), kThreads, bytes, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunSumExperts(const SumExpertsArgs& args, cudaStream_t stream) {
  SumExpertsKernel<<<Unsigned(args.step.rows), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
