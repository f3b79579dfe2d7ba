#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/select.h"
#include "kernels/cuda/slots.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpKeys = 32;
constexpr int kKeys = kWarpKeys * kThreads / kWarp;  // entries of a tile
constexpr int kHeads = 64;                           // whose queries lie in shared memory
constexpr int kHeadGroup = 16;                       // whose products are summed at a time
constexpr int kMaxIndexDim = 128;
constexpr int kStride = kMaxIndexDim + 8;  // bf16 values, against bank conflicts
constexpr int kDotStride = kWarpKeys + 1;
constexpr int kCsaRatio = 4;
constexpr int kBins = 256;
constexpr int kSelectThreads = 512;
constexpr int kManyRows = 128;  // from here on blocks take several rows, which mostly share keys
constexpr int kSharedRows = 8;

struct SliceArgs {
  SelectArgs select;
  int first_row;
  int rows;  // of the slice
  int rows_per_block;
};

struct ScoreShared {
  Bf16 keys[kKeys * kStride];
  Bf16 queries[kHeads * kStride];
  float weights[kHeads];
  float dots[kThreads / kWarp][kHeadGroup * kDotStride];
};

// Sixteen values of a stored index row from value `first` on.
__device__ void LoadIndexChunk(const RowPlace& place, int first, bool is_fp4, Bf16* out) {
  if (!is_fp4) {
    const uint4 codes = *reinterpret_cast<const uint4*>(place.data + first);
    WidenCodes(codes, *reinterpret_cast<const float*>(place.scales), out);
    return;
  }
  const float scale = DecodeE8m0(place.scales[first / kFp4Group]);
  for (int i = 0; i < 16; ++i) {
    const uint8_t pair = place.data[(first + i) / 2];
    out[i] = EncodeBf16(DecodeE2m1(i % 2 == 0 ? pair & 15 : pair >> 4) * scale);
  }
}

// Scores of one tile of entries for some rows. Warp = 32 keys: their fragments stay in registers
// while the rows go by; then lane = key. Queries and keys are e2m1 values times powers of two, so
// the products of a head add up exactly in fp32 whatever the order, unless the group scales lie
// very far apart; heads are summed in order.
class TileScorer {
 public:
  __device__ TileScorer(const SliceArgs& slice, ScoreShared& shared)
      : args_(slice.select), s_(shared), dim_(slice.select.shape.index_dim) {}

  __device__ int64_t NumVisible(int row) const {
    return (args_.step.position[row] + 1) / kCsaRatio;
  }

  __device__ void LoadKeys(int run_index, int64_t first) {
    const RunInfo run = args_.step.runs[run_index];
    const int64_t stored = (run.first + run.num_rows) / kCsaRatio;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * dim_ / 16; i += kThreads) {
      const int key = i / (dim_ / 16), chunk = i % (dim_ / 16);
      Bf16* out = s_.keys + key * kStride + 16 * chunk;
      if (first + key < stored) {
        LoadIndexChunk(IndexPlace(args_.step, args_.pages, run_index, first + key), 16 * chunk,
                       args_.pages.has_fp4_index, out);
      } else {
        reinterpret_cast<uint4*>(out)[0] = reinterpret_cast<uint4*>(out)[1] =
            make_uint4(0, 0, 0, 0);
      }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < kMaxIndexDim / 16; ++k) {
        if (16 * k < dim_)
          LoadA(s_.keys, kStride, WarpIndex() * kWarpKeys + 16 * m, 16 * k, a_[m][k]);
      }
    }
  }

  __device__ float Score(int row) {
    float sum = 0.0f;
    for (int h = 0; h < args_.shape.index_heads; h += kHeads) {
      const int heads = min(kHeads, args_.shape.index_heads - h);
      LoadQueries(row, h, heads);
      for (int group = 0; group < heads; group += kHeadGroup) {
        Multiply(group);
        __syncwarp();
        const float* dots = s_.dots[WarpIndex()] + LaneIndex();
        for (int g = 0; g < min(kHeadGroup, heads - group); ++g) {
          sum += s_.weights[group + g] * Larger(dots[g * kDotStride], 0.0f);
        }
        __syncwarp();
      }
    }
    return sum;
  }

 private:
  __device__ void LoadQueries(int row, int first_head, int heads) {
    __syncthreads();
    const int64_t head = static_cast<int64_t>(row) * args_.shape.index_heads + first_head;
    const auto* from = reinterpret_cast<const uint4*>(args_.index_query + head * dim_);
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * dim_ / 8; i += kThreads) {
      const int h = i / (dim_ / 8), chunk = i % (dim_ / 8);
      *reinterpret_cast<uint4*>(s_.queries + h * kStride + 8 * chunk) =
          h < heads ? from[i] : make_uint4(0, 0, 0, 0);
    }
    if (threadIdx.x < heads) s_.weights[threadIdx.x] = args_.index_weights[head + threadIdx.x];
    __syncthreads();
  }

  // dots [head of the group, key of the warp].
  __device__ void Multiply(int group) {
    float d[2][2][4] = {};  // [keys][heads]
#pragma unroll
    for (int k = 0; k < kMaxIndexDim / 16; ++k) {
      if (16 * k >= dim_) break;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const Bf16* query =
            s_.queries + (group + 8 * n + LaneIndex() / 4) * kStride + 16 * k + LaneIndex() % 4 * 2;
        const uint32_t b0 = LoadPair(query), b1 = LoadPair(query + 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) Mma(d[m][n], a_[m][k], b0, b1);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float* dots = s_.dots[WarpIndex()] + (8 * n + LaneIndex() % 4 * 2) * kDotStride + 16 * m +
                      LaneIndex() / 4;
        dots[0] = d[m][n][0];
        dots[kDotStride] = d[m][n][1];
        dots[8] = d[m][n][2];
        dots[kDotStride + 8] = d[m][n][3];
      }
    }
  }

  const SelectArgs& args_;
  ScoreShared& s_;
  const int dim_;
  uint32_t a_[2][kMaxIndexDim / 16][4];
};

// Grid: (groups of rows of the slice, tiles of entries).
__global__ void __launch_bounds__(kThreads, 2)
    ScoreKernel(const __grid_constant__ SliceArgs slice) {
  extern __shared__ __align__(16) uint8_t raw_shared[];
  const SelectArgs& args = slice.select;
  TileScorer scorer(slice, *reinterpret_cast<ScoreShared*>(raw_shared));
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kKeys;
  const int begin = static_cast<int>(blockIdx.x) * slice.rows_per_block;
  int loaded = -1;
  for (int i = begin; i < min(begin + slice.rows_per_block, slice.rows); ++i) {
    const int row = slice.first_row + i;
    if (row >= *args.step.num_rows) return;
    const int64_t visible = scorer.NumVisible(row);
    if (visible <= args.shape.index_topk || first >= visible) continue;
    const int run = args.step.sequence[row];
    if (run != loaded) scorer.LoadKeys(run, first);
    loaded = run;
    const float score = scorer.Score(row);
    const int64_t entry = first + threadIdx.x;
    if (entry < visible) args.scores[static_cast<int64_t>(i) * args.max_entries + entry] = score;
  }
}

// An integer whose order is the score's; -0 and +0 tie.
__device__ uint32_t Ordered(float score) {
  const uint32_t bits = BitsOf(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The k-th largest of n ordered scores, and how many equal to it belong to the k largest.
struct Threshold {
  uint32_t value;
  int ties;
};
__device__ Threshold FindThreshold(const float* scores, int n, int k) {
  __shared__ int bins[kBins];
  __shared__ uint32_t prefix;
  __shared__ int left;
  if (threadIdx.x == 0) {
    prefix = 0;
    left = k;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSelectThreads) bins[i] = 0;
    __syncthreads();
    const uint32_t mask = shift == 24 ? 0u : ~0u << (shift + 8);
    const uint32_t wanted = prefix;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kSelectThreads) {
      const uint32_t value = Ordered(scores[i]);
      if ((value & mask) == wanted) atomicAdd(&bins[(value >> shift) & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = kBins - 1;
      while (bin > 0 && bins[bin] < left) left -= bins[bin--];
      prefix |= static_cast<uint32_t>(bin) << shift;
    }
    __syncthreads();
  }
  return {prefix, left};
}

// Position of this thread's flag among the block's set flags before it, and their number.
struct Place {
  int before, total;
};
__device__ Place CountFlags(bool flag, int* warp_counts) {
  const unsigned ballot = __ballot_sync(kFullWarp, flag);
  if (LaneIndex() == 0) warp_counts[WarpIndex()] = __popc(ballot);
  __syncthreads();
  Place place = {__popc(ballot & ((1u << LaneIndex()) - 1u)), 0};
  for (int w = 0; w < kSelectThreads / kWarp; ++w) {
    if (w < WarpIndex()) place.before += warp_counts[w];
    place.total += warp_counts[w];
  }
  __syncthreads();
  return place;
}

// selected [k] = indices of the k best of n > k scores, ascending; ties to the lowest index.
__device__ void PickBest(const float* scores, int n, int k, int32_t* selected) {
  __shared__ int warp_counts[kSelectThreads / kWarp];
  const Threshold threshold = FindThreshold(scores, n, k);
  int ties = 0, taken = 0;
  for (int base = 0; base < n; base += kSelectThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const uint32_t value = i < n ? Ordered(scores[i]) : 0u;
    const bool is_tie = i < n && value == threshold.value;
    const Place tie = CountFlags(is_tie, warp_counts);
    const bool is_taken =
        i < n && (value > threshold.value || (is_tie && ties + tie.before < threshold.ties));
    const Place place = CountFlags(is_taken, warp_counts);
    if (is_taken) selected[taken + place.before] = i;
    ties += tie.total;
    taken += place.total;
  }
}

__device__ void PickRow(const float* scores, int n, int k, int32_t* selected, int32_t* count) {
  if (threadIdx.x == 0) *count = n < k ? n : k;
  if (n > k) {
    PickBest(scores, n, k, selected);
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kSelectThreads) selected[i] = i;
}

__global__ void SelectKernel(SliceArgs slice) {
  const SelectArgs& args = slice.select;
  const int row = slice.first_row + static_cast<int>(blockIdx.x);
  if (row >= *args.step.num_rows) return;
  PickRow(args.scores + static_cast<int64_t>(blockIdx.x) * args.max_entries,
          (args.step.position[row] + 1) / kCsaRatio, args.shape.index_topk,
          args.selected + static_cast<int64_t>(row) * args.shape.index_topk,
          args.num_selected + row);
}

__global__ void PickKernel(PickArgs args) {
  const int64_t row = blockIdx.x;
  PickRow(args.scores + row * args.stride, args.counts[row], args.k, args.selected + row * args.k,
          args.num_selected + row);
}

}  // namespace

cudaError_t RunSelect(const SelectArgs& args, int longest, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ScoreShared);
  if (const cudaError_t error =
          cudaFuncSetAttribute(ScoreKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const int rows_per_block = args.step.rows > kManyRows ? kSharedRows : 1;
  for (int first = 0; first < args.step.rows; first += args.slice_rows) {
    const int left = args.step.rows - first;
    const int rows = args.slice_rows < left ? args.slice_rows : left;
    const SliceArgs slice = {args, first, rows, rows_per_block};
    if (longest > args.shape.index_topk) {
      const dim3 grid(static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block),
                      static_cast<unsigned>((longest + kKeys - 1) / kKeys));
      ScoreKernel<<<grid, kThreads, kBytes, stream>>>(slice);
    }
    SelectKernel<<<static_cast<unsigned>(rows), kSelectThreads, 0, stream>>>(slice);
  }
  return cudaPeekAtLastError();
}

cudaError_t RunPick(const PickArgs& args, cudaStream_t stream) {
  PickKernel<<<static_cast<unsigned>(args.rows), kSelectThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
