#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mix.h"
#include "kernels/cuda/mix_site.cuh"

// A boundary of few rows in one launch: a cluster takes kRows of them. Each of its blocks leaves
// the site for a piece of the columns and hands that piece to all; multiplies the rows with three
// lines of fn, which come meanwhile, and hands the products to all; and mixes and normalises whole
// rows, of which it stores a piece.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMaxWidth = kFewStreams * 4096;
constexpr int kLines = 24;  // of fn
constexpr int kFnColumns = 1024;

// The same place in the shared memory of block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* AtRank(T* own, int rank) {
  return static_cast<T*>(__cluster_map_shared_rank(own, static_cast<unsigned>(rank)));
}

// A rank has kLinesOfRank lines of fn, rank 0 x . x besides.
template <int kRanks, int kRows>
struct BoundaryShared {
  static constexpr int kLinesOfRank = kLines / kRanks, kFnStages = kLines / kLinesOfRank;

  alignas(128) float fn[kFnStages][kLinesOfRank][kFnColumns];  // later the mixed rows
  alignas(16) Bf16 x[kRows][kMaxWidth];
  float products[kRows][kLines + 1];
  float pre[kRows][kFewStreams], comb[kRows][kFewStreams * kFewStreams];
  float inverse[kRows];
  uint64_t come[kFnStages];
};

template <int kRanks, int kRows>
class BoundaryCluster {
 public:
  using Shared = BoundaryShared<kRanks, kRows>;

  __device__ BoundaryCluster(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, Shared& shared)
      : leave_(leave),
        enter_(enter),
        fn_(reinterpret_cast<const float*>(fn.values)),
        s_(shared),
        hidden_(enter.shape.hidden),
        width_(kFewStreams * hidden_),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        first_row_(static_cast<int>(blockIdx.x) / kRanks * kRows) {}

  // fn needs no earlier kernel.
  __device__ void Run() {
    const int first_pieces = min(kFnStages, width_ / kFnColumns);
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : s_.come) BarrierInit(SharedAddress(&barrier), 1);
      FenceAsyncProxy();
      for (int piece = 0; piece < first_pieces; ++piece) FetchFn(piece);
    }
    WaitForEarlier();
    rows_ = min(kRows, min(enter_.rows, *enter_.num_rows) - first_row_);
    if (rows_ <= 0) {
      for (int piece = 0; piece < first_pieces && threadIdx.x == 0; ++piece) {
        BarrierWait(SharedAddress(&s_.come[piece]), 0);
      }
      return;
    }
    ClusterSync();  // all blocks are there
    LeavePiece();
    ClusterSync();
    if (static_cast<int>(threadIdx.x) < kProductThreads) Multiply();
    ClusterSync();
    Enter();
  }

 private:
  static constexpr int kLinesOfRank = Shared::kLinesOfRank, kFnStages = Shared::kFnStages;
  static constexpr int kRowsOfThread = kRows == 1 ? 1 : 2;
  static constexpr int kThreadsOfSum = kRows == 1 ? kLanes : kLanes / 2;
  static constexpr int kSums = (kLinesOfRank + 1) * kThreadsOfSum * kRows / kRowsOfThread;
  static constexpr int kProductThreads = (kSums + kWarp - 1) / kWarp * kWarp;

  // Which of fn's lines: outputs rank, rank + kRanks, .. of 1 to 24; output 0 is x . x.
  __device__ int Line(int i) const { return rank_ + i * kRanks + (rank_ == 0 ? kRanks : 0) - 1; }

  __device__ void FetchFn(int piece) {
    const int stage = piece % kFnStages;
    const uint32_t barrier = SharedAddress(&s_.come[stage]);
    constexpr uint32_t kBytes = kFnColumns * sizeof(float);
    BarrierExpect(barrier, kLinesOfRank * kBytes);
    for (int i = 0; i < kLinesOfRank; ++i) {
      CopyBulk(SharedAddress(s_.fn[stage][i]),
               fn_ + static_cast<int64_t>(Line(i)) * width_ + piece * kFnColumns, kBytes, barrier);
    }
  }

  __device__ void LeavePiece() {
    const int columns = hidden_ / kRanks, chunks = columns / 8;
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * chunks; i += kThreads + kRows * kWarp) {
      const int r = i / chunks, column = rank_ * columns + i % chunks * 8, row = first_row_ + r;
      Bf16* streams = leave_.streams + static_cast<int64_t>(row) * width_ + column;
      LeaveEight<kFewStreams>(leave_, row, column, [&](int stream, const uint4& values) {
        const int at = stream * hidden_;
        *reinterpret_cast<uint4*>(streams + at) = values;
        for (int rank = 0; rank < kRanks; ++rank) {
          *reinterpret_cast<uint4*>(AtRank(&s_.x[r][at + column], rank)) = values;
        }
      });
    }
  }

  // Thread: some lanes of one output of kRowsOfThread rows.
  __device__ void Multiply() {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kThreadsOfSum;
    const int slot = thread / kThreadsOfSum % (kLinesOfRank + 1);
    const int group = min(thread / kThreadsOfSum / (kLinesOfRank + 1), kRows / kRowsOfThread - 1);
    const bool is_square = slot == kLinesOfRank;
    const Bf16* x = s_.x[group * kRowsOfThread];
    float2 sums[kRowsOfThread] = {};
    for (int piece = 0; piece < width_ / kFnColumns; ++piece) {
      const int stage = piece % kFnStages;
      BarrierWait(SharedAddress(&s_.come[stage]), piece / kFnStages % 2);
      const float* fn = s_.fn[stage][is_square ? 0 : slot];
      const Bf16* own = x + piece * kFnColumns;
      if constexpr (kRows == 1) {
#pragma unroll 32
        for (int i = lane; i < kFnColumns; i += kLanes) {
          const float value = DecodeBf16(own[i]);
          sums[0].x = Fma(value, is_square ? value : fn[i], sums[0].x);
        }
      } else {
#pragma unroll 16
        for (int i = 2 * lane; i < kFnColumns; i += kLanes) {
          const float2 w = *reinterpret_cast<const float2*>(fn + i);
#pragma unroll
          for (int r = 0; r < kRowsOfThread; ++r) {
            const float2 value = LoadTwo(own + r * kMaxWidth + i);
            sums[r].x = Fma(value.x, is_square ? value.x : w.x, sums[r].x);
            sums[r].y = Fma(value.y, is_square ? value.y : w.y, sums[r].y);
          }
        }
      }
      if (piece + kFnStages >= width_ / kFnColumns) continue;
      MeetAt(1, kProductThreads);  // all have read the stage
      if (thread == 0) FetchFn(piece + kFnStages);
    }
    const int output = is_square ? kLines : Line(slot);
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      float total = sums[r].x;
      if constexpr (kRows == 1) {
        for (int d = kLanes / 2; d > 0; d /= 2) {
          total += __shfl_down_sync(kFullWarp, total, d, kLanes);
        }
      } else {
        total = SumOfLanes(sums[r]);
      }
      if (thread >= kSums || lane != 0 || (is_square && rank_ != 0)) continue;
      for (int rank = 0; rank < kRanks; ++rank) {
        *AtRank(&s_.products[group * kRowsOfThread + r][output], rank) = total;
      }
    }
  }

  // The last warps split the products of a row each and then finish its comb, which nothing here
  // waits for.
  __device__ void Enter() {
    const int thread = static_cast<int>(threadIdx.x), split = WarpIndex() - kThreads / kWarp;
    if (split >= 0 && split < rows_) {
      SplitMix(enter_, first_row_ + split, s_.products[split], s_.pre[split], s_.comb[split]);
    }
    __syncthreads();
    if (split >= 0) {
      if (split < rows_ && rank_ == kRanks - 1) {
        FinishComb(enter_, first_row_ + split, s_.comb[split]);
      }
      return;
    }
    float* mixed = &s_.fn[0][0][0];
    for (int i = thread; i < rows_ * hidden_ / 8; i += kThreads) {
      const int r = i / (hidden_ / 8), column = i % (hidden_ / 8) * 8;
      float sum[8];
      MixEight<kFewStreams>(s_.x[r] + column, enter_.shape, s_.pre[r], sum);
      auto* to = reinterpret_cast<float4*>(mixed + r * hidden_ + column);
      to[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      to[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
    MeetAt(1, kThreads);
    const int warp = WarpIndex();
    if (warp < rows_) {
      const float value = InverseRms(SquareSum(mixed + warp * hidden_, hidden_), hidden_,
                                     enter_.shape.norm_epsilon);
      if (LaneIndex() == 0) s_.inverse[warp] = value;
    }
    MeetAt(1, kThreads);
    const int columns = hidden_ / kRanks, chunks = columns / 8;
    const int all = rows_ * chunks;
    for (int i = thread; i < (all + kWarp - 1) / kWarp * kWarp; i += kThreads) {
      const int r = min(i / chunks, rows_ - 1), column = rank_ * columns + i % chunks * 8;
      StoreNormed(enter_, first_row_ + r, column, i < all, mixed + r * hidden_, s_.inverse[r]);
    }
  }

  const LeaveSiteArgs& leave_;
  const EnterSiteArgs& enter_;
  const float* fn_;
  Shared& s_;
  const int hidden_, width_, rank_, first_row_;
  int rows_ = 0;
};

template <int kRanks, int kRows>
__global__ void __launch_bounds__(kThreads + kRows * kWarp)
    BoundaryKernel(const __grid_constant__ LeaveSiteArgs leave,
                   const __grid_constant__ MatrixView fn,
                   const __grid_constant__ EnterSiteArgs enter) {
  extern __shared__ __align__(128) uint8_t raw_shared[];
  LetNextStart();
  BoundaryCluster<kRanks, kRows>(leave, fn, enter,
                                 *reinterpret_cast<BoundaryShared<kRanks, kRows>*>(raw_shared))
      .Run();
}

template <int kRanks, int kRows>
cudaError_t LaunchBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                           const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kBytes = sizeof(BoundaryShared<kRanks, kRows>);
  const auto kernel = BoundaryKernel<kRanks, kRows>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>((enter.rows + kRows - 1) / kRows * kRanks));
  return EarlyLaunch(grid, kThreads + kRows * kWarp, kBytes, stream, kRanks)
      .Run(kernel, leave, fn, enter);
}

}  // namespace

bool FitsOneLaunch(const EnterSiteArgs& args) {
  const ModelShape& shape = args.shape;
  return args.rows <= kMaxFewRows && shape.streams == kFewStreams && !args.is_head &&
         args.x_rows == nullptr && args.num_rows != nullptr && args.normed8 != nullptr &&
         shape.hidden % (8 * kFp8Group) == 0 && kFewStreams * shape.hidden <= kMaxWidth;
}

cudaError_t RunBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                        const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kFewest = 8;  // for which a cluster each is the fastest
  return enter.rows <= kFewest ? LaunchBoundary<8, 1>(leave, fn, enter, stream)
                               : LaunchBoundary<8, 4>(leave, fn, enter, stream);
}

}  // namespace baton::kernels::cuda
