#include "kernels/cuda/mix_boundary.cuh"

// A boundary, a row a cluster. Every block leaves the site for all of the row, so that nobody waits
// for others, multiplies it with three lines of fn, mixes all of it and stores a part. What bounds
// it is the order of a product's sum (R11), 1,024 dependent additions a lane: a thread has one
// lane, and gets eight of its values at a time.
namespace baton::kernels::cuda {
namespace {

constexpr int kProductWarps = 3;  // two lines; the third; x . x
constexpr int kThreads = kColumnThreads + (kProductWarps + 1) * kWarp;
constexpr int kStreamThreads = kColumnThreads + kProductWarps * kWarp;  // of its barrier
constexpr int kBarriersAreThere = kStreamIsThere + kFewStreams;         // to those without columns
constexpr int kWidth = kFewStreams * kMaxHidden;
constexpr int kSteps = kWidth / kLanes;  // of a lane
constexpr int kAtOnce = 8;
constexpr int kRounds = kPiece / kLanes / kAtOnce;  // of a piece

struct Shared {
  // The pads put what a warp reads at a time on banks of its own.
  alignas(128) float fn[kLinesOfRank][kWidth + 16];  // later the mixed row
  alignas(16) Bf16 x[kLanes][kSteps + kAtOnce];
  float products[kLines + 1];
  float pre[kFewStreams];
  float inverse;
  uint64_t come[kWidth / kPiece], products_come;
};

class OneRow {
 public:
  __device__ OneRow(const LeaveSiteArgs& leave, const MatrixView& fn, const EnterSiteArgs& enter,
                    Shared& shared)
      : leave_(leave),
        enter_(enter),
        fn_(reinterpret_cast<const float*>(fn.values)),
        s_(shared),
        hidden_(enter.shape.hidden),
        pieces_(kFewStreams * hidden_ / kPiece),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        row_(static_cast<int>(blockIdx.x) / kRanks) {}

  __device__ void Run() {
    const int warp = WarpIndex() - kColumnThreads / kWarp;  // of those without columns
    const bool fetches = warp == kProductWarps && LaneIndex() == 0;
    if (fetches) Fetch();
    StartAfterEarlier();
    const int live = *enter_.num_rows;
    if (warp < 0) {
      RunColumns(live);
    } else if (warp < kProductWarps) {
      if (row_ < live) RunProducts(warp);
    } else {
      RunRest(live, fetches);
    }
  }

 private:
  __device__ int Line(int i) const { return rank_ + i * kRanks; }

  __device__ void Fetch() {
    for (int i = 0; i < pieces_; ++i) BarrierInit(SharedAddress(&s_.come[i]), 1);
    BarrierInit(SharedAddress(&s_.products_come), 1);
    FenceBarrierInit();
    BarrierExpect(SharedAddress(&s_.products_come), kProductBytes);
    for (int piece = 0; piece < pieces_; ++piece) {
      const uint32_t barrier = SharedAddress(&s_.come[piece]);
      constexpr uint32_t kBytes = kPiece * sizeof(float);
      BarrierExpect(barrier, kLinesOfRank * kBytes);
      for (int i = 0; i < kLinesOfRank; ++i) {
        const float* line = fn_ + static_cast<int64_t>(Line(i)) * kFewStreams * hidden_;
        CopyBulk(SharedAddress(&s_.fn[i][piece * kPiece]), line + piece * kPiece, kBytes, barrier);
      }
    }
  }

  __device__ void RunColumns(int live) {
    const int column = 8 * static_cast<int>(threadIdx.x);
    const bool has_columns = column < hidden_;
    const LeaveInput in = LoadLeave(leave_, row_, has_columns ? column : 0);
    float norm[8];
    LoadNorm(enter_, has_columns ? column : 0, norm);
    if (row_ >= live) return;
    uint4 own[kFewStreams] = {};
    Leave(column, has_columns, in, own);
    ClusterArrive();
    ClusterWait();  // all have read the streams
    const bool is_mine = has_columns && column / (hidden_ / kRanks) == rank_;
    if (is_mine) {
      Bf16* row = leave_.streams + static_cast<int64_t>(row_) * kFewStreams * hidden_ + column;
#pragma unroll
      for (int k = 0; k < kFewStreams; ++k) *reinterpret_cast<uint4*>(row + k * hidden_) = own[k];
    }
    EnterRow(enter_, row_, column, is_mine, own, norm, s_.pre, *reinterpret_cast<MixedRow*>(s_.fn),
             &s_.inverse);
  }

  // A thread's columns are steps of eight lanes. Those who multiply get stream by stream.
  __device__ void Leave(int column, bool has_columns, const LeaveInput& in,
                        uint4 (&own)[kFewStreams]) {
    Bf16* to = &s_.x[column % kLanes][has_columns ? column / kLanes : 0];
    constexpr int kLane = kSteps + kAtOnce;
    LeaveFour(in, [&](int stream, const uint4& values) {
      own[stream] = values;
      const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
      if (has_columns) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          Bf16* place = to + 2 * i * kLane + stream * (hidden_ / kLanes);
          place[0] = static_cast<Bf16>(pairs[i] & 0xffffu);
          place[kLane] = static_cast<Bf16>(pairs[i] >> 16);
        }
      }
      ArriveAt(kStreamIsThere + stream, kStreamThreads);
    });
  }

  __device__ void RunProducts(int warp) {
    ClusterArriveRelaxed();
    MeetAt(kBarriersAreThere, (kProductWarps + 1) * kWarp);
    const bool is_square = warp == 2;
    const int line = warp == 0 ? LaneIndex() / kLanes : 2;
    float sum = is_square ? Square() : Multiply(s_.fn[line] + LaneIndex() % kLanes);
    for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFullWarp, sum, d, kLanes);
    sum = __shfl_sync(kFullWarp, sum, 0, kLanes);
    ClusterWait();  // all blocks are there
    const int rank = LaneIndex() % kLanes;
    const uint32_t barrier = SharedAddress(&s_.products_come);
    if (is_square) {
      if (LaneIndex() == 0) SendTo(rank_, SharedAddress(&s_.products[kLines]), sum, barrier);
    } else if ((warp == 0 || LaneIndex() < kLanes) && rank < kRanks) {
      SendTo(rank, SharedAddress(&s_.products[Line(line)]), sum, barrier);
    }
  }
  // Before the first piece of a stream.
  __device__ void WaitForStream(int piece) const {
    const int pieces_of_stream = hidden_ / kPiece;
    if (piece % pieces_of_stream != 0) return;
    MeetAt(kStreamIsThere + piece / pieces_of_stream, kStreamThreads);
  }

  __device__ const uint4* StepsOfLane() const {
    return reinterpret_cast<const uint4*>(s_.x[LaneIndex() % kLanes]);
  }
  __device__ static float Step(const uint4& x, int i) {
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    return FloatOf(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
  }
  struct Round {
    uint4 x;
    float fn[kAtOnce];
  };
  __device__ static void LoadRound(const uint4* x, const float* fn, int number, Round& round) {
    round.x = x[number];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) round.fn[i] = fn[(number * kAtOnce + i) * kLanes];
  }
  // A round is loaded while the one before is added.
  __device__ float Multiply(const float* fn) {
    const uint4* x = StepsOfLane();
    const int rounds = pieces_ * kRounds;
    Round round[2];
    float sum = 0.0f;
    BarrierWait(SharedAddress(&s_.come[0]), 0);
    WaitForStream(0);
    LoadRound(x, fn, 0, round[0]);
    for (int piece = 0; piece < pieces_; ++piece) {
      if (piece + 1 < pieces_) {
        BarrierWait(SharedAddress(&s_.come[piece + 1]), 0);
        WaitForStream(piece + 1);
      }
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        const int next = piece * kRounds + r + 1;
        LoadRound(x, fn, next < rounds ? next : 0, round[(r + 1) % 2]);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          sum = Fma(Step(round[r % 2].x, i), round[r % 2].fn[i], sum);
        }
      }
    }
    return sum;
  }
  __device__ float Square() {
    const uint4* x = StepsOfLane();
    float sum = 0.0f;
    for (int piece = 0; piece < pieces_; ++piece) {
      WaitForStream(piece);
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        const uint4 eight = x[piece * kRounds + r];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) sum = Fma(Step(eight, i), Step(eight, i), sum);
      }
    }
    return sum;
  }

  __device__ void RunRest(int live, bool fetches) {
    const OutputScale output(enter_);
    if (row_ >= live) {
      for (int i = 0; fetches && i < pieces_; ++i) BarrierWait(SharedAddress(&s_.come[i]), 0);
      return;  // nothing is on its way any more
    }
    __syncwarp();
    ClusterArriveRelaxed();
    MeetAt(kBarriersAreThere, (kProductWarps + 1) * kWarp);
    BarrierWait(SharedAddress(&s_.products_come), 0);
    const float logit = SplitRow(enter_, output, s_.products, s_.pre);
    if (rank_ == kRanks - 1) FinishRow(enter_, row_, output, logit);
    __syncwarp();
    ClusterWait();
  }

  const LeaveSiteArgs& leave_;
  const EnterSiteArgs& enter_;
  const float* fn_;
  Shared& s_;
  const int hidden_, pieces_, rank_, row_;
};

__global__ void __launch_bounds__(kThreads, 1)
    BoundaryOfOneKernel(const __grid_constant__ LeaveSiteArgs leave,
                        const __grid_constant__ MatrixView fn,
                        const __grid_constant__ EnterSiteArgs enter) {
  extern __shared__ __align__(128) uint8_t raw_shared[];
  OneRow(leave, fn, enter, *reinterpret_cast<Shared*>(raw_shared)).Run();
}

}  // namespace

cudaError_t RunBoundaryOfOne(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared);
  const auto kernel = BoundaryOfOneKernel;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(enter.rows * kRanks));
  return EarlyLaunch(grid, kThreads, kBytes, stream, kRanks).Run(kernel, leave, fn, enter);
}

}  // namespace baton::kernels::cuda
