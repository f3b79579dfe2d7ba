#include <algorithm>

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/select.h"
#include "kernels/cuda/select_decode.h"
#include "kernels/cuda/select_mma.cuh"
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

struct WorkArgs {
  SelectArgs select;
  ScoreSlice slice;
  int rows_per_block = 1;
  int pages_per_block = 0;  // of the usual shape's kernel
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
// very far apart; heads are summed in order.
class TileScorer {
 public:
  __device__ TileScorer(const WorkArgs& work, ScoreShared& shared)
      : args_(work.select), s_(shared) {}

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
    LoadKeyRows(stored - first);
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
        for (int g = 0; g < min(kHeadGroup, heads - group); ++g) {
          sum += s_.weights[group + g] * Larger(dots[g * kDotStride], 0.0f);
        }
        __syncwarp();
      }
    }
    return sum;
  }

 private:
  __device__ int Dim() const { return args_.shape.index_dim; }

  // Keys 0 .. stored - 1 of the tile exist; the others are zero.
  __device__ void LoadKeyRows(int64_t stored) {
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
      const bool is_head = h < heads;
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
      if (16 * k >= Dim()) break;
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
__global__ void __launch_bounds__(kThreads, 2) ScoreKernel(const __grid_constant__ WorkArgs work) {
  extern __shared__ __align__(16) uint8_t raw_shared[];
  const SelectArgs& args = work.select;
  TileScorer scorer(work, *reinterpret_cast<ScoreShared*>(raw_shared));
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kKeys;
  const int begin = static_cast<int>(blockIdx.x) * work.rows_per_block;
  int loaded = -1;
  for (int i = begin; i < min(begin + work.rows_per_block, work.slice.rows); ++i) {
    const int row = work.slice.first_row + i;
    if (row >= *args.step.num_rows) return;
    const int64_t visible = scorer.NumVisible(row);
    if (visible <= args.shape.index_topk || first >= visible) continue;
    const int run = args.step.sequence[row];
    if (run != loaded) scorer.LoadKeys(run, first);
    loaded = run;
    const float score = scorer.Score(row);
    const int64_t entry = first + threadIdx.x;
    if (entry < visible) args.scores[i * work.slice.stride + entry] = score;
  }
}

// The usual shape, 64 heads of 128 values: two warpgroups multiply, one widens keys page by page.
constexpr int kGroupThreads = 128;
constexpr int kUsualThreads = 3 * kGroupThreads;
constexpr int kHalfRow = 128;  // bytes of a row's half: 64 bf16 values, swizzled for wgmma
constexpr int kStages = 3;     // of widened pages
constexpr int kFetched = 4;    // pages of codes
constexpr int kWeightStride = kHeads + 4;
constexpr int kTurn = 1;        // barriers 1 and 2: a warpgroup's turn to multiply
constexpr int kWideners = 3;    // the barrier of those who widen
constexpr int kEverybody = 4;   // of all threads, which wait at different places of the code
constexpr int kManyBlocks = 8;  // for a multiprocessor, so that their ends do not matter
constexpr int kMultiprocessors = 132;
constexpr int kFewestPages = 8;  // of a block
constexpr int kQueries = 4;      // of a product
constexpr int kSets = 2;         // of queries: the warpgroups share one, or have one each
constexpr int kWidenRegisters = 72, kMultiplyRegisters = 216;  // of a thread that does

struct UsualShared {
  alignas(1024) uint8_t queries[kSets][2][kQueries * kHeads * kHalfRow];
  alignas(1024) uint8_t keys[kStages][2][kPageEntries * kHalfRow];
  alignas(128) uint8_t codes[kFetched][kPageEntries * kMaxIndexDim];
  alignas(128) float code_scales[kFetched][kPageEntries];
  float scales[kStages][kPageEntries];
  float weights[kSets * kQueries][kWeightStride];
  uint64_t fetched[kFetched], widened[kStages], used[kStages];
};

// Some rows of one run, and which of its pages are scored.
struct Segment {
  int run, first_row, rows;
  int first_page, pages;
};

// Accumulator columns 8 j + 2 t and + 1 belong to lane t of every four. The rows of the second
// operand are laid so that these are heads 2 j and 2 j + 1 of query t of four: a lane has its heads
// in order and adds them up in registers.
class UsualScorer {
 public:
  __device__ UsualScorer(const WorkArgs& work, UsualShared& shared)
      : work_(work), args_(work.select), s_(shared) {}

  __device__ void Run() {
    InitBarriers();
    if (Group() == 2) {
      ShrinkRegisters<kWidenRegisters>();
      ForSegments([this](const Segment& segment) { Widen(segment); });
    } else {
      GrowRegisters<kMultiplyRegisters>();
      ForSegments([this](const Segment& segment) { Multiply(segment); });
    }
  }

 private:
  __device__ static int Thread() { return static_cast<int>(threadIdx.x) % kGroupThreads; }
  __device__ static int Group() { return static_cast<int>(threadIdx.x) / kGroupThreads; }
  __device__ static bool Fetches() { return Group() == 2 && Thread() == 0; }
  __device__ int NumVisible(int row) const { return (args_.step.position[row] + 1) / kCsaRatio; }

  __device__ void InitBarriers() {
    if (Fetches()) {
      for (uint64_t& barrier : s_.fetched) BarrierInit(SharedAddress(&barrier), 1);
      for (uint64_t& barrier : s_.widened) {
        BarrierInit(SharedAddress(&barrier), kGroupThreads);
      }
      for (uint64_t& barrier : s_.used) {
        BarrierInit(SharedAddress(&barrier), 2 * kGroupThreads);
      }
      FenceAsyncProxy();
    }
    if (Group() == 1) ArriveAt(kTurn, 2 * kGroupThreads);
  }

  // score(segment) for all of the block's, their queries in place.
  template <typename Score>
  __device__ void ForSegments(const Score& score) {
    const int begin = work_.slice.first_row + static_cast<int>(blockIdx.x) * work_.rows_per_block;
    const int end = min(min(begin + work_.rows_per_block, work_.slice.first_row + work_.slice.rows),
                        *args_.step.num_rows);
    const int first_page = static_cast<int>(blockIdx.y) * work_.pages_per_block;
    for (int row = begin; row < end;) {
      const int run_index = args_.step.sequence[row];
      const RunInfo run = args_.step.runs[run_index];
      const int stop = min(end, run.first_row + run.num_rows);
      const int visible = NumVisible(stop - 1);
      const int last_page =
          min(first_page + work_.pages_per_block, (visible + kPageEntries - 1) / kPageEntries);
      if (visible > args_.shape.index_topk && first_page < last_page) {
        const Segment segment = {run_index, row, stop - row, first_page, last_page - first_page};
        if (Fetches()) FetchFirst(segment);
        MeetAt(kEverybody, kUsualThreads);  // the queries before are done with
        LoadQueries(segment);
        MeetAt(kEverybody, kUsualThreads);
        score(segment);
        done_ += segment.pages;
      }
      row = stop;
    }
  }

  __device__ void LoadQueries(const Segment& segment) {
    constexpr int kChunks = kMaxIndexDim / 8;
    const int64_t first_head = static_cast<int64_t>(segment.first_row) * kHeads;
    const Bf16* from = args_.index_query + first_head * kMaxIndexDim;
    for (int i = static_cast<int>(threadIdx.x); i < segment.rows * kHeads * kChunks;
         i += kUsualThreads) {
      const int chunk = i % kChunks, head = i / kChunks % kHeads, query = i / kChunks / kHeads;
      const int row = head / 2 * 8 + query % kQueries * 2 + head % 2;
      uint8_t* to = s_.queries[query / kQueries][chunk / 8] + row * kHalfRow;
      CopyAsync16(SharedAddress(to + (chunk % 8 ^ row % 8) * 16), from + 8 * i, true);
    }
    CopyAsyncCommit();
    for (int i = static_cast<int>(threadIdx.x); i < segment.rows * kHeads; i += kUsualThreads) {
      s_.weights[i / kHeads][i % kHeads] = args_.index_weights[first_head + i];
    }
    CopyAsyncWait<0>();
    FenceAsyncProxy();
  }

  __device__ int32_t PageId(const Segment& segment, int i) const {
    if (i >= segment.pages) return 0;
    return args_.step.page_table[static_cast<int64_t>(segment.run) * args_.step.max_pages +
                                 segment.first_page + i];
  }
  __device__ void Fetch(int32_t page, int number) {
    const int slot = number % kFetched;
    const uint32_t barrier = SharedAddress(&s_.fetched[slot]);
    const uint8_t* from = args_.pages.base + static_cast<uint64_t>(page) * args_.pages.stride;
    const auto value_bytes = static_cast<uint32_t>(kPageEntries * args_.pages.index_value_bytes);
    const auto scale_bytes = static_cast<uint32_t>(kPageEntries * args_.pages.index_scale_bytes);
    BarrierExpect(barrier, value_bytes + scale_bytes);
    CopyBulk(SharedAddress(s_.codes[slot]), from + args_.pages.index_values, value_bytes, barrier);
    CopyBulk(SharedAddress(s_.code_scales[slot]), from + args_.pages.index_scales, scale_bytes,
             barrier);
  }

  // Its codes come while the queries do.
  __device__ void FetchFirst(const Segment& segment) {
    int32_t pages[kFetched];
#pragma unroll
    for (int i = 0; i < kFetched; ++i) pages[i] = PageId(segment, i);
#pragma unroll
    for (int i = 0; i < kFetched; ++i) {
      if (i < segment.pages) Fetch(pages[i], done_ + i);
    }
  }

  __device__ void Widen(const Segment& segment) {
    int32_t next = Thread() == 0 ? PageId(segment, kFetched) : 0;
    for (int i = 0; i < segment.pages; ++i) {
      const int number = done_ + i, slot = number % kFetched, stage = number % kStages;
      BarrierWait(SharedAddress(&s_.fetched[slot]), number / kFetched % 2);
      BarrierWait(SharedAddress(&s_.used[stage]), (number / kStages + 1) % 2);
      if (args_.pages.has_fp4_index) {
        WidenPage<true>(slot, stage);
      } else {
        WidenPage<false>(slot, stage);
      }
      if (Thread() < kPageEntries) {
        s_.scales[stage][Thread()] =
            args_.pages.has_fp4_index ? 1.0f : s_.code_scales[slot][Thread()];
      }
      BarrierArrive(SharedAddress(&s_.widened[stage]));
      MeetAt(kWideners, kGroupThreads);  // all have read the codes
      if (Thread() == 0 && i + kFetched < segment.pages) {
        Fetch(next, number + kFetched);
        next = PageId(segment, i + kFetched + 1);
      }
    }
  }

  // A thread has sixteen values of every sixteenth key, at the same place of the swizzle; fp8
  // without the key's scale, a power of two that its score gets at the end.
  template <bool kIsFp4>
  __device__ void WidenPage(int slot, int stage) {
    constexpr int kParts = kMaxIndexDim / 16, kKeysAtOnce = kGroupThreads / kParts;
    const int key = Thread() / kParts, part = Thread() % kParts;
    // Halves of the row begin with different chunks, on banks of their own.
    const bool flips = part >= kParts / 2;
    const int first = (2 * (part % 4) ^ key % 8) * 16;
    uint8_t* row = s_.keys[stage][part / 4] + key * kHalfRow;
    uint8_t* places[2] = {row + (flips ? first ^ 16 : first), row + (flips ? first : first ^ 16)};
    const uint4* codes = reinterpret_cast<const uint4*>(s_.codes[slot]) + Thread();
#pragma unroll
    for (int j = 0; j < kPageEntries / kKeysAtOnce; ++j) {
      __align__(16) uint32_t words[8];
      if constexpr (kIsFp4) {
        LoadFp4Chunk(slot, j * kKeysAtOnce + key, part, words);
      } else {
        WidenFp8Chunk(codes[j * kGroupThreads], words);
      }
      const uint4 low = make_uint4(words[0], words[1], words[2], words[3]);
      const uint4 high = make_uint4(words[4], words[5], words[6], words[7]);
      constexpr int kStep = kKeysAtOnce * kHalfRow;
      *reinterpret_cast<uint4*>(places[0] + j * kStep) = flips ? high : low;
      *reinterpret_cast<uint4*>(places[1] + j * kStep) = flips ? low : high;
    }
  }
  __device__ void LoadFp4Chunk(int slot, int key, int part, uint32_t (&words)[8]) const {
    auto* scales = reinterpret_cast<uint8_t*>(s_.code_scales[slot]);
    LoadIndexChunk(
        {s_.codes[slot] + key * (kMaxIndexDim / 2), scales + key * (kMaxIndexDim / kFp4Group)},
        16 * part, true, reinterpret_cast<Bf16*>(words));
  }
  __device__ static void WidenFp8Chunk(const uint4& codes, uint32_t (&words)[8]) {
    const uint32_t from[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words[2 * w] = WidenUnscaledPair(__byte_perm(from[w], 0, 0x4140));
      words[2 * w + 1] = WidenUnscaledPair(__byte_perm(from[w], 0, 0x4342));
    }
  }

  __device__ void Multiply(const Segment& segment) {
    constexpr int kColumns = kQueries * kHeads;
    const bool takes_turns = segment.rows > kQueries;  // a set of queries each
    const int set = takes_turns ? Group() : 0;
    const int warp = Thread() / kWarp, row_of_lane = LaneIndex() / 4;
    for (int i = 0; i < segment.pages; ++i) {
      const int number = done_ + i, stage = number % kStages;
      const bool is_mine = takes_turns || i % 2 == Group();
      float d[kColumns / 2];
      float scales[2] = {};
      BarrierWait(SharedAddress(&s_.widened[stage]), number / kStages % 2);
      FenceAsyncProxy();  // here, where it waits for no loads
      if (is_mine) {
        if (takes_turns) MeetAt(kTurn + Group(), 2 * kGroupThreads);
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < kMaxIndexDim / 16; ++k) {
          const uint32_t step = static_cast<uint32_t>(k % 4 * 32);
          ScoreMma(d, TileDescriptor(SharedAddress(s_.keys[stage][k / 4]) + step),
                   TileDescriptor(SharedAddress(s_.queries[set][k / 4]) + step), k > 0);
        }
        WgmmaCommit();
        if (takes_turns) ArriveAt(kTurn + (1 - Group()), 2 * kGroupThreads);
        scales[0] = s_.scales[stage][16 * warp + row_of_lane];
        scales[1] = s_.scales[stage][16 * warp + row_of_lane + 8];
        WgmmaWait();
        HoldResults(d);
      }
      BarrierArrive(SharedAddress(&s_.used[stage]));
      if (!is_mine) continue;
      float sums[2] = {};
      AddHeads(d, s_.weights[set * kQueries + LaneIndex() % 4], sums);
      Store(segment, set, segment.first_page + i, sums[0] * scales[0], sums[1] * scales[1]);
    }
  }

  // All heads of a lane's query, for its two keys.
  template <int kCount>
  __device__ static void AddHeads(const float (&d)[kCount], const float* weights,
                                  float (&sums)[2]) {
#pragma unroll
    for (int i = 0; i < kHeads / 4; ++i) {
      const float4 four = reinterpret_cast<const float4*>(weights)[i];
      const float w[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int h = 0; h < 4; ++h) {
#pragma unroll
        for (int key = 0; key < 2; ++key) {
          sums[key] += w[h] * Larger(d[8 * i + h / 2 * 4 + h % 2 + 2 * key], 0.0f);
        }
      }
    }
  }

  // The eight lanes of a query in a warp have a group of keys.
  __device__ void Store(const Segment& segment, int set, int page, float low, float high) {
    const int query = set * kQueries + LaneIndex() % 4;
    const int row = segment.first_row + query, index = row - work_.slice.first_row;
    const int visible = query < segment.rows ? NumVisible(row) : 0;
    const int entry = page * kPageEntries + 16 * (Thread() / kWarp) + LaneIndex() / 4;
    const bool is_scored = visible > args_.shape.index_topk;
    const bool has_low = is_scored && entry < visible, has_high = is_scored && entry + 8 < visible;
    float* scores = args_.scores + index * work_.slice.stride + entry;
    if (has_low) scores[0] = low;
    if (has_high) scores[8] = high;
    if (work_.slice.maxima == nullptr) return;
    constexpr float kNone = -__builtin_inff();
    float largest = Larger(has_low ? low : kNone, has_high ? high : kNone);
    for (int lanes = 4; lanes < kWarp; lanes *= 2) {
      largest = Larger(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
    }
    if (LaneIndex() < 4 && has_low) {
      work_.slice.maxima[index * work_.slice.maxima_stride + entry / kGroupScores] = largest;
    }
  }

  const WorkArgs& work_;
  const SelectArgs& args_;
  UsualShared& s_;
  int done_ = 0;  // pages that went through the stages
};

// Grid: (groups of rows of the slice, stretches of pages).
__global__ void __launch_bounds__(kUsualThreads, 1)
    UsualScoreKernel(const __grid_constant__ WorkArgs work) {
  extern __shared__ __align__(1024) uint8_t raw_stages[];
  UsualScorer(work, *reinterpret_cast<UsualShared*>(raw_stages)).Run();
}

cudaError_t LaunchScores(const WorkArgs& work, int longest, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ScoreShared);
  if (const cudaError_t error =
          cudaFuncSetAttribute(ScoreKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  WorkArgs own = work;
  const int tiles = (longest + kKeys - 1) / kKeys;
  const int fair = static_cast<int>(static_cast<int64_t>(work.slice.rows) * tiles / kFewBlocks);
  own.rows_per_block = fair < 1 ? 1 : (fair < kMostRows ? fair : kMostRows);
  const dim3 grid(
      static_cast<unsigned>((work.slice.rows + own.rows_per_block - 1) / own.rows_per_block),
      static_cast<unsigned>(tiles));
  ScoreKernel<<<grid, kThreads, kBytes, stream>>>(own);
  return cudaPeekAtLastError();
}

// Sequences' rows lie together: where they have several, a block takes them together.
cudaError_t LaunchUsual(WorkArgs work, int longest, cudaStream_t stream) {
  constexpr int kBytes = sizeof(UsualShared);
  if (const cudaError_t error = cudaFuncSetAttribute(
          UsualScoreKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const DeviceStep& step = work.select.step;
  work.rows_per_block =
      std::min((step.rows + step.sequences - 1) / step.sequences, kSets * kQueries);
  const int blocks = (work.slice.rows + work.rows_per_block - 1) / work.rows_per_block;
  const int pages = (longest + kPageEntries - 1) / kPageEntries;
  const int wanted = kMultiprocessors * kManyBlocks;
  const int64_t fair = (static_cast<int64_t>(blocks) * pages + wanted - 1) / wanted;
  work.pages_per_block = static_cast<int>(std::max<int64_t>(fair, kFewestPages));
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>((pages + work.pages_per_block - 1) / work.pages_per_block));
  UsualScoreKernel<<<grid, kUsualThreads, kBytes, stream>>>(work);
  return cudaPeekAtLastError();
}

}  // namespace

cudaError_t RunSelect(const SelectArgs& args, int longest, cudaStream_t stream) {
  const bool is_usual = args.shape.index_dim == kMaxIndexDim && args.shape.index_heads == kHeads;
  const bool is_decode = is_usual && args.step.rows <= args.step.sequences;
  // Rows of scores are as long as this step's longest, so that many fit.
  const int64_t capacity = static_cast<int64_t>(args.slice_rows) * args.max_entries;
  const int64_t stride = std::min(longest, args.max_entries);
  const int most_rows = static_cast<int>(capacity / stride);
  for (int first = 0; first < args.step.rows; first += most_rows) {
    const int rows = std::min(most_rows, args.step.rows - first);
    ScoreSlice slice = {first, rows, stride, nullptr, (stride + kGroupScores - 1) / kGroupScores};
    if (is_usual && longest > kMostShort) slice.maxima = args.maxima;
    if (is_decode && longest <= kMostShort) {
      if (const cudaError_t error = RunSelectShort(args, slice, stream)) return error;
      continue;
    }
    if (longest > args.shape.index_topk) {
      const cudaError_t error = is_decode  ? RunScoreDecode(args, slice, stream)
                                : is_usual ? LaunchUsual({args, slice}, longest, stream)
                                           : LaunchScores({args, slice}, longest, stream);
      if (error) return error;
    }
    PickArgs pick;
    pick.scores = args.scores;
    pick.stride = stride;
    pick.maxima = slice.maxima;
    pick.maxima_stride = slice.maxima_stride;
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
