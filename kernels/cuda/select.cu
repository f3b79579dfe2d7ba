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
constexpr int kPageEntries = 64;
constexpr int kMostRows = 32;     // of a block of threads: they mostly share keys
constexpr int kFewBlocks = 1024;  // below so many blocks they take fewer rows

struct SliceArgs {
  SelectArgs select;
  int first_row;
  int rows;  // of the slice
  int rows_per_block;
  int64_t stride;  // of scores
};

// Where a page of the tile lies: index row 0, its scales.
struct ScoreShared {
  RowPlace pages[kKeys / kPageEntries];
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
// very far apart; heads are summed in order. kIsUsual: 128 values a head, whole sets of kHeads.
template <bool kIsUsual>
class TileScorer {
 public:
  __device__ TileScorer(const SliceArgs& slice, ScoreShared& shared)
      : args_(slice.select), s_(shared) {}

  __device__ int64_t NumVisible(int row) const {
    return (args_.step.position[row] + 1) / kCsaRatio;
  }

  __device__ void LoadKeys(int run_index, int64_t first) {
    const RunInfo run = args_.step.runs[run_index];
    const int64_t stored = (run.first + run.num_rows) / kCsaRatio;
    __syncthreads();
    const int64_t entry = first + static_cast<int64_t>(threadIdx.x) * kPageEntries;
    if (threadIdx.x < kKeys / kPageEntries && entry < stored) {
      s_.pages[threadIdx.x] = IndexPlace(args_.step, args_.pages, run_index, entry);
    }
    __syncthreads();
    if (kIsUsual && !args_.pages.has_fp4_index) {
      LoadUsualKeys(stored - first);
    } else {
      LoadAnyKeys(stored - first);
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < kMaxIndexDim / 16; ++k) {
        if (16 * k < Dim())
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
        if (kIsUsual || heads - group >= kHeadGroup) {
          float terms[kHeadGroup];
#pragma unroll
          for (int g = 0; g < kHeadGroup; ++g) {
            terms[g] = s_.weights[group + g] * Larger(dots[g * kDotStride], 0.0f);
          }
#pragma unroll
          for (int g = 0; g < kHeadGroup; ++g) sum += terms[g];
        } else {
          for (int g = 0; g < heads - group; ++g) {
            sum += s_.weights[group + g] * Larger(dots[g * kDotStride], 0.0f);
          }
        }
        __syncwarp();
      }
    }
    return sum;
  }

 private:
  __device__ int Dim() const { return kIsUsual ? kMaxIndexDim : args_.shape.index_dim; }

  // Keys 0 .. stored - 1 of the tile exist; the others are zero. All loads are on their way before
  // the first is used.
  __device__ void LoadUsualKeys(int64_t stored) {
    constexpr int kChunks = kMaxIndexDim / 16, kOwn = kKeys * kChunks / kThreads;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    uint4 codes[kOwn];
    float scales[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int key = (i * kThreads + static_cast<int>(threadIdx.x)) / kChunks;
      const bool is_stored = key < stored;
      const RowPlace page = s_.pages[is_stored ? key / kPageEntries : 0];
      const int row = is_stored ? key % kPageEntries : 0;
      codes[i] = *reinterpret_cast<const uint4*>(page.data + row * kMaxIndexDim + 16 * chunk);
      scales[i] = *reinterpret_cast<const float*>(page.scales + row * sizeof(float));
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int key = (i * kThreads + static_cast<int>(threadIdx.x)) / kChunks;
      const uint32_t keep = key < stored ? ~0u : 0u;
      WidenCodes(
          make_uint4(codes[i].x & keep, codes[i].y & keep, codes[i].z & keep, codes[i].w & keep),
          scales[i], s_.keys + key * kStride + 16 * chunk);
    }
  }

  __device__ void LoadAnyKeys(int64_t stored) {
    const int chunks = Dim() / 16;
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * chunks; i += kThreads) {
      const int key = i / chunks, chunk = i % chunks, row = key % kPageEntries;
      Bf16* out = s_.keys + key * kStride + 16 * chunk;
      if (key < stored) {
        const RowPlace page = s_.pages[key / kPageEntries];
        LoadIndexChunk({page.data + row * args_.pages.index_value_bytes,
                        page.scales + row * args_.pages.index_scale_bytes},
                       16 * chunk, args_.pages.has_fp4_index, out);
      } else {
        reinterpret_cast<uint4*>(out)[0] = reinterpret_cast<uint4*>(out)[1] =
            make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ void LoadQueries(int row, int first_head, int heads) {
    __syncthreads();
    const int64_t head = static_cast<int64_t>(row) * args_.shape.index_heads + first_head;
    const auto* from = reinterpret_cast<const uint4*>(args_.index_query + head * Dim());
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * Dim() / 8; i += kThreads) {
      const int h = i / (Dim() / 8), chunk = i % (Dim() / 8);
      const bool is_head = kIsUsual || h < heads;
      *reinterpret_cast<uint4*>(s_.queries + h * kStride + 8 * chunk) =
          is_head ? from[i] : make_uint4(0, 0, 0, 0);
    }
    if (threadIdx.x < heads) s_.weights[threadIdx.x] = args_.index_weights[head + threadIdx.x];
    __syncthreads();
  }

  // dots [head of the group, key of the warp].
  __device__ void Multiply(int group) {
    float d[2][2][4] = {};  // [keys][heads]
#pragma unroll
    for (int k = 0; k < kMaxIndexDim / 16; ++k) {
      if (!kIsUsual && 16 * k >= Dim()) break;
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
  uint32_t a_[2][kMaxIndexDim / 16][4];
};

// Grid: (groups of rows of the slice, tiles of entries).
template <bool kIsUsual>
__global__ void __launch_bounds__(kThreads, 2)
    ScoreKernel(const __grid_constant__ SliceArgs slice) {
  extern __shared__ __align__(16) uint8_t raw_shared[];
  const SelectArgs& args = slice.select;
  TileScorer<kIsUsual> scorer(slice, *reinterpret_cast<ScoreShared*>(raw_shared));
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
    if (entry < visible) args.scores[i * slice.stride + entry] = score;
  }
}

}  // namespace

cudaError_t RunSelect(const SelectArgs& args, int longest, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ScoreShared);
  const bool is_usual =
      args.shape.index_dim == kMaxIndexDim && args.shape.index_heads % kHeads == 0;
  const auto score = is_usual ? ScoreKernel<true> : ScoreKernel<false>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(score, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  // Rows of scores are as long as this step's longest, so that many fit.
  const int64_t capacity = static_cast<int64_t>(args.slice_rows) * args.max_entries;
  const int64_t stride = longest < args.max_entries ? longest : args.max_entries;
  const int most_rows = static_cast<int>(capacity / stride);
  const int tiles = (longest + kKeys - 1) / kKeys;
  for (int first = 0; first < args.step.rows; first += most_rows) {
    const int left = args.step.rows - first;
    const int rows = most_rows < left ? most_rows : left;
    const int fair = static_cast<int>(static_cast<int64_t>(rows) * tiles / kFewBlocks);
    const int rows_per_block = fair < 1 ? 1 : (fair < kMostRows ? fair : kMostRows);
    const SliceArgs slice = {args, first, rows, rows_per_block, stride};
    if (longest > args.shape.index_topk) {
      const dim3 grid(static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block),
                      static_cast<unsigned>(tiles));
      score<<<grid, kThreads, kBytes, stream>>>(slice);
    }
    PickArgs pick;
    pick.scores = args.scores;
    pick.stride = stride;
    pick.positions = args.step.position + first;
    pick.num_rows = args.step.num_rows;
    pick.first_row = first;
    pick.rows = rows;
    pick.longest = longest;
    pick.k = args.shape.index_topk;
    pick.selected = args.selected + static_cast<int64_t>(first) * args.shape.index_topk;
    pick.num_selected = args.num_selected + first;
    if (const cudaError_t error = RunPick(pick, stream)) return error;
  }
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
