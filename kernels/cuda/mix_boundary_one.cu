#include "kernels/cuda/mix_boundary.cuh"

// A boundary, a row a cluster. Every block leaves the site for all of the row, so that nobody waits
// for others, multiplies its lanes, mixes all of the row and stores a part.
namespace baton::kernels::cuda {
namespace {

constexpr int kColumnThreads = kMaxHidden / 8;  // eight columns each
constexpr int kProductWarps = 3;                // a lane each; x . x of both
constexpr int kThreads = kColumnThreads + (kProductWarps + 1) * kWarp;
// Barriers of threads.
constexpr int kPreIsThere = 1;     // to those who have columns
constexpr int kMixedIsThere = 2;   // among these
constexpr int kLanesAreThere = 3;  // to those who multiply
constexpr int kLanesThreads = kColumnThreads + kProductWarps * kWarp;
// The ranks that store post and, the last one, comb; only they get all products.
constexpr int kPostRank = kRanks - 2;

struct Shared {
  alignas(128) float fn[kLanesOfRank][kMaxSteps * kLines];
  alignas(16) Bf16 x[kLanesOfRank][kMaxSteps];
  alignas(16) Bf16 mixed[kLanes][kMaxRowSteps + 8];  // the pad: lanes on banks of their own
  alignas(16) float sums[kLines + 1][kLanes];        // of products; x . x is the last
  float4 pre;
  float inverse;
  uint64_t come[kMaxSteps / kPieceSteps], sums_come;
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
        row_steps_(hidden_ / kLanes),
        pieces_(kFewStreams * row_steps_ / kPieceSteps),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        row_(static_cast<int>(blockIdx.x) / kRanks) {}

  // fn needs no earlier kernel.
  __device__ void Run() {
    const int warp = WarpIndex() - kColumnThreads / kWarp;  // of those without columns
    const bool fetches = warp == kProductWarps && LaneIndex() == 0;
    if (fetches) Fetch();
    __syncwarp();
    ClusterArriveRelaxed();
    StartAfterEarlier();
    const int live = *enter_.num_rows;
    if (warp < 0) {
      RunColumns(live);
    } else if (warp < kProductWarps) {
      RunProducts(live, warp);
    } else {
      RunRest(live, fetches);
    }
  }

 private:
  __device__ bool GetsAll() const { return rank_ >= kPostRank; }

  __device__ void Fetch() {
    for (int i = 0; i < pieces_; ++i) BarrierInit(SharedAddress(&s_.come[i]), 1);
    BarrierInit(SharedAddress(&s_.sums_come), 1);
    FenceBarrierInit();
    const int outputs = GetsAll() ? kLines + 1 : kPreOutputs;
    BarrierExpect(SharedAddress(&s_.sums_come),
                  static_cast<uint32_t>(outputs * kLanes) * sizeof(float));
    for (int piece = 0; piece < pieces_; ++piece) {
      FetchPiece(fn_, rank_, kFewStreams * row_steps_, piece, s_.fn[0] + piece * kPieceValues,
                 s_.fn[1] + piece * kPieceValues, SharedAddress(&s_.come[piece]));
    }
  }

  __device__ void RunColumns(int live) {
    const int column = 8 * static_cast<int>(threadIdx.x);
    const bool has_columns = column < hidden_;
    const LeaveInput in = LoadLeave(leave_, row_, has_columns ? column : 0);
    float norm[8];
    LoadNorm(enter_, has_columns ? column : 0, norm);
    ClusterWait();
    if (row_ >= live) return;
    uint4 own[kFewStreams];
    Leave(column, has_columns, in, own);
    ClusterArrive();
    ClusterWait();  // all have read the streams
    const bool is_mine = has_columns && column / (hidden_ / kRanks) == rank_;
    if (is_mine) {
      Bf16* row = leave_.streams + static_cast<int64_t>(row_) * kFewStreams * hidden_ + column;
#pragma unroll
      for (int k = 0; k < kFewStreams; ++k) *reinterpret_cast<uint4*>(row + k * hidden_) = own[k];
    }
    Enter(column, has_columns, is_mine, own, norm);
  }

  // Those who multiply get the block's lanes first; then the other columns follow.
  __device__ void Leave(int column, bool has_columns, const LeaveInput& in,
                        uint4 (&own)[kFewStreams]) {
    if (has_columns && column % kLanes / 8 == rank_ / 4) LeaveLanes(in, column / kLanes);
    __syncwarp();
    ArriveAt(kLanesAreThere, kLanesThreads);
    if (pieces_ == 0) return;  // never: keeps the compiler from beginning with what follows
    LeaveFour(in, [&](int stream, const uint4& values) { own[stream] = values; });
  }
  __device__ void LeaveLanes(const LeaveInput& in, int step) {
    const float2 branch = LanesOf(in.branch);
    float2 old[kFewStreams];
#pragma unroll
    for (int j = 0; j < kFewStreams; ++j) old[j] = LanesOf(in.old[j]);
#pragma unroll
    for (int k = 0; k < kFewStreams; ++k) {
      float2 sum = make_float2(Nth(in.post, k) * branch.x, Nth(in.post, k) * branch.y);
#pragma unroll
      for (int j = 0; j < kFewStreams; ++j) {
        sum.x += Nth(in.comb[j], k) * old[j].x;
        sum.y += Nth(in.comb[j], k) * old[j].y;
      }
      const uint32_t pair = PackBf16(sum.x, sum.y);
      s_.x[0][step + k * row_steps_] = static_cast<Bf16>(pair & 0xffffu);
      s_.x[1][step + k * row_steps_] = static_cast<Bf16>(pair >> 16);
    }
  }
  // The block's lanes of eight columns that have them.
  __device__ float2 LanesOf(const uint4& eight) const {
    const uint32_t low = rank_ % 2 == 0 ? eight.x : eight.y;
    const uint32_t high = rank_ % 2 == 0 ? eight.z : eight.w;
    const uint32_t pair = rank_ % 4 < 2 ? low : high;
    return make_float2(FloatOf(pair << 16), FloatOf(pair & 0xffff0000u));
  }

  // Mixes and normalises the row, of which this block stores some columns.
  __device__ void Enter(int column, bool has_columns, bool is_mine, const uint4 (&own)[kFewStreams],
                        const float (&norm)[8]) {
    float u[8] = {};
    MeetAt(kPreIsThere, kColumnThreads + kWarp);
    if (has_columns) {
      const uint4 mixed = MixFour(own, s_.pre);
      WidenEight(mixed, u);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        s_.mixed[column % kLanes + i][column / kLanes] = static_cast<Bf16>(BitsOf(u[i]) >> 16);
      }
    }
    MeetAt(kMixedIsThere, kColumnThreads);
    if (WarpIndex() == 0) {
      float sum = SquareSteps(s_.mixed[LaneIndex() % kLanes], row_steps_, 0.0f);
      for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFullWarp, sum, d, kLanes);
      const float inverse = InverseRms(sum, hidden_, enter_.shape.norm_epsilon);
      if (LaneIndex() == 0) s_.inverse = inverse;
    }
    MeetAt(kMixedIsThere, kColumnThreads);
    if (!__any_sync(kFullWarp, is_mine)) return;
    StoreNormed(enter_, row_, column, is_mine, u, norm, s_.inverse);
  }

  __device__ void RunProducts(int live, int warp) {
    ClusterWait();
    if (row_ >= live) return;
    ClusterArriveRelaxed();
    const bool is_square = warp == kLanesOfRank;
    const OutputScale output(enter_, min(LaneIndex(), kLines - 1));
    const int lane = is_square ? LaneIndex() % kLanesOfRank : warp;
    const int line = min(LaneIndex(), kLines - 1);
    MeetAt(kLanesAreThere, kLanesThreads);
    const float sum = is_square ? SquareSteps(s_.x[lane], kFewStreams * row_steps_, 0.0f)
                                : Multiply(reinterpret_cast<const uint4*>(s_.x[lane]),
                                           reinterpret_cast<const float4*>(s_.fn[lane]) + line);
    if (LaneIndex() < (is_square ? kLanesOfRank : kLines)) {
      Send(is_square ? kLines : line, rank_ * kLanesOfRank + lane, sum);
    }
    __syncwarp();
    ClusterWait();  // all have read post and comb
    if (is_square && GetsAll()) StorePostOrComb(output);
  }
  __device__ void Send(int output, int lane, float sum) {
    const bool is_for_all = output < kFewStreams || output == kLines;
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      if (!is_for_all && rank < kPostRank) continue;
      SendTo(rank, SharedAddress(&s_.sums[output][lane]), sum, SharedAddress(&s_.sums_come));
    }
  }

  // Sixteen steps are loaded while those before are added.
  struct Sixteen {
    uint4 x[2];
    float4 fn[4];
  };
  __device__ __forceinline__ static void LoadSixteen(const uint4* x, const float4* fn, int number,
                                                     Sixteen& s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) s.x[i] = x[2 * number + i];
#pragma unroll
    for (int i = 0; i < 4; ++i) s.fn[i] = fn[(4 * number + i) * kLines];
  }
  __device__ __forceinline__ static void AddSixteen(const Sixteen& s, float& sum) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      sum = Fma(Nth(s.x[i / 8], i % 8), Nth(s.fn[i / 4], i % 4), sum);
    }
  }
  __device__ float Multiply(const uint4* x, const float4* fn) {
    float sum = 0.0f;
    const auto start = [this](int piece) { BarrierWait(SharedAddress(&s_.come[piece]), 0); };
    constexpr int kSixteens = kPieceSteps / 16;
    Sixteen steps[2];
    start(0);
    LoadSixteen(x, fn, 0, steps[0]);
#pragma unroll 1
    for (int piece = 0; piece < pieces_; ++piece) {
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) {
        if (i + 1 == kSixteens && piece + 1 < pieces_) {
          start(piece + 1);
          x += 2 * kSixteens;
          fn += 4 * kSixteens * kLines;
        }
        LoadSixteen(x, fn, (i + 1) % kSixteens, steps[(i + 1) % 2]);
        __syncwarp();  // keeps loads ahead of what they are for
        AddSixteen(steps[i % 2], sum);
      }
    }
    return sum;
  }
  // An output a lane; of use where its sums come.
  __device__ float LogitOf(const OutputScale& output) {
    BarrierWait(SharedAddress(&s_.sums_come), 0);
    const float sum = TreeOfLanes(s_.sums[min(LaneIndex(), kLines)]);
    const float inverse = InverseRms(__shfl_sync(kFullWarp, sum, kLines), kFewStreams * hidden_,
                                     enter_.shape.norm_epsilon);
    return output.Logit(sum, inverse);
  }
  __device__ void StorePostOrComb(const OutputScale& output) {
    const float logit = LogitOf(output);
    if (rank_ == kPostRank) {
      const int k = LaneIndex() - kFewStreams;
      if (k >= 0 && k < kFewStreams) enter_.post[row_ * kFewStreams + k] = 2.0f * Sigmoid(logit);
      return;
    }
    const float comb = __shfl_sync(kFullWarp, logit, LaneIndex() % 16 + 2 * kFewStreams);
    const float x = SinkhornOfFour(comb, enter_.shape);
    if (LaneIndex() < 16) enter_.comb[row_ * 16 + LaneIndex()] = x;
  }

  __device__ void RunRest(int live, bool fetches) {
    const OutputScale output(enter_, min(LaneIndex(), kLines - 1));
    ClusterWait();
    if (row_ >= live) {
      for (int i = 0; fetches && i < pieces_; ++i) BarrierWait(SharedAddress(&s_.come[i]), 0);
      return;  // nothing is on its way any more
    }
    __syncwarp();
    ClusterArriveRelaxed();
    const float pre = Sigmoid(LogitOf(output)) + enter_.shape.mix_epsilon;
    if (LaneIndex() < kFewStreams) reinterpret_cast<float*>(&s_.pre)[LaneIndex()] = pre;
    __syncwarp();
    MeetAt(kPreIsThere, kColumnThreads + kWarp);
    ClusterWait();
  }

  const LeaveSiteArgs& leave_;
  const EnterSiteArgs& enter_;
  const float* fn_;
  Shared& s_;
  const int hidden_, row_steps_, pieces_, rank_, row_;
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
