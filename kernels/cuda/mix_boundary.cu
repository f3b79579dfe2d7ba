#include "kernels/cuda/mix_boundary.cuh"

// A boundary of some rows in one launch, kRows a cluster. A block leaves the site for a piece of
// their columns; then the rows come back through memory, each to all blocks at once, and are
// multiplied with three lines of fn; then a block mixes and normalises one row, or its part of one.
namespace baton::kernels::cuda {
namespace {

constexpr int kLanePairs = kLanes / 2;
constexpr int kProductWarps = kLinesOfRank + 1;  // a line each; x . x
constexpr int kThreads = kColumnThreads + (kProductWarps + 1) * kWarp;

template <int kRows>
struct Boundary {
  static constexpr int kStages = kRows == 4 ? 10 : 7;
  // Blocks that have the same row in the end, and rows that a block has.
  static constexpr int kShare = kRows < kRanks ? kRanks / kRows : 1;
  static constexpr int kOwn = (kRows + kRanks - 1) / kRanks;

  struct Stage {
    // The pads put what a warp reads at a time on banks of its own.
    float fn[kLinesOfRank][kPiece + 16];
    Bf16 x[kRows][kPiece + 16];
  };
  static_assert(kStages * sizeof(Stage) >= sizeof(MixedRow));
  struct Shared {
    alignas(128) Stage stages[kStages];  // later the mixed row
    float products[kOwn][kLines + 1];    // of the block's rows
    float pre[kOwn][kFewStreams];
    float inverse;
    uint64_t come[kStages], used[kStages], products_come[kOwn];
  };
};

template <int kRows>
class BoundaryCluster {
 public:
  using Shared = typename Boundary<kRows>::Shared;
  using Stage = typename Boundary<kRows>::Stage;

  __device__ BoundaryCluster(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, Shared& shared)
      : leave_(leave),
        enter_(enter),
        fn_(reinterpret_cast<const float*>(fn.values)),
        s_(shared),
        hidden_(enter.shape.hidden),
        width_(kFewStreams * hidden_),
        pieces_(width_ / kPiece),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        first_row_(static_cast<int>(blockIdx.x) / kRanks * kRows) {}

  // fn needs no earlier kernel.
  __device__ void Run() {
    const int warp = WarpIndex() - kColumnThreads / kWarp;  // of those without columns
    const bool fetches = warp == kProductWarps && LaneIndex() == 0;
    if (fetches) {
      InitBarriers();
      for (int piece = 0; piece < min(kStages, pieces_); ++piece) FetchFn(piece);
    }
    StartAfterEarlier();
    const LeaveInput input = LoadPiece();
    rows_ = min(*enter_.num_rows - first_row_, kRows);
    if (rows_ <= 0) {
      if (fetches) DropFn();
      return;
    }
    LeavePiece(input);
    __syncwarp();
    ClusterArrive();
    if (warp < 0) {
      RunColumns();
    } else if (warp < kProductWarps) {
      RunProducts(warp);
    } else {
      RunRest(fetches);
    }
  }

 private:
  static constexpr int kStages = Boundary<kRows>::kStages;
  static constexpr int kShare = Boundary<kRows>::kShare, kOwn = Boundary<kRows>::kOwn;
  static constexpr int kStep = kRows < kRanks ? kRows : kRanks;

  // The rows that the block has in the end, and which part of them is stored here.
  __device__ int OwnRow(int i) const { return rank_ % kStep + i * kRanks; }
  __device__ int OwnPart() const { return rank_ / kStep; }
  __device__ bool HasRow(int i) const { return OwnRow(i) < rows_; }
  __device__ Bf16* StreamsOf(int row) const {
    return leave_.streams + static_cast<int64_t>(row) * width_;
  }
  __device__ int Line(int i) const { return rank_ + i * kRanks; }

  __device__ void InitBarriers() {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(SharedAddress(&s_.come[i]), 2);  // fn and rows
      BarrierInit(SharedAddress(&s_.used[i]), kRanks * kProductWarps);
    }
    for (uint64_t& barrier : s_.products_come) BarrierInit(SharedAddress(&barrier), 1);
    FenceBarrierInit();
    for (uint64_t& barrier : s_.products_come) {
      BarrierExpect(SharedAddress(&barrier), kProductBytes);
    }
  }
  __device__ void FetchFn(int piece) {
    Stage& stage = s_.stages[piece % kStages];
    const uint32_t barrier = SharedAddress(&s_.come[piece % kStages]);
    constexpr uint32_t kBytes = kPiece * sizeof(float);
    BarrierExpect(barrier, kLinesOfRank * kBytes);
    for (int i = 0; i < kLinesOfRank; ++i) {
      const float* line = fn_ + static_cast<int64_t>(Line(i)) * width_;
      CopyBulk(SharedAddress(stage.fn[i]), line + piece * kPiece, kBytes, barrier);
    }
  }
  // Nothing may be on its way when the block ends.
  __device__ void DropFn() {
    for (int piece = 0; piece < min(kStages, pieces_); ++piece) {
      const uint32_t barrier = SharedAddress(&s_.come[piece]);
      BarrierArrive(barrier);
      BarrierWait(barrier, 0);
    }
  }
  // The block's part of its rows of streams, to all blocks.
  __device__ void FetchRows(int piece) {
    Stage& stage = s_.stages[piece % kStages];
    const uint32_t barrier = SharedAddress(&s_.come[piece % kStages]);
    constexpr int kColumns = kPiece / kShare;
    BarrierExpect(barrier, static_cast<uint32_t>(rows_) * kPiece * sizeof(Bf16));
    const int first = OwnPart() * kColumns;
    for (int i = 0; i < kOwn && HasRow(i); ++i) {
      CopyBulkToAll(SharedAddress(&stage.x[OwnRow(i)][first]),
                    StreamsOf(first_row_ + OwnRow(i)) + piece * kPiece + first,
                    kColumns * sizeof(Bf16), barrier, (1u << kRanks) - 1);
    }
  }

  __device__ void RunColumns() {
    ClusterWait();
    const int column = 8 * static_cast<int>(threadIdx.x);
    const bool has_columns = column < hidden_;
    const bool is_mine = has_columns && column / (hidden_ / kShare) == OwnPart();
    float norm[8];
    if (has_columns) LoadNorm(enter_, column, norm);
#pragma unroll 1
    for (int i = 0; i < kOwn && HasRow(i); ++i) {
      const int row = first_row_ + OwnRow(i);
      uint4 own[kFewStreams] = {};
#pragma unroll
      for (int k = 0; k < kFewStreams; ++k) {
        if (has_columns) own[k] = LoadNow(StreamsOf(row) + k * hidden_ + column);
      }
      EnterRow(enter_, row, column, is_mine, own, norm, s_.pre[i],
               *reinterpret_cast<MixedRow*>(s_.stages), &s_.inverse);
    }
  }

  // A thread has at most eight columns of a row; those past the step's rows are read for nothing.
  __device__ int PieceColumns() const { return hidden_ / kRanks; }
  __device__ int PieceRow() const { return static_cast<int>(threadIdx.x) / (PieceColumns() / 8); }
  __device__ int PieceColumn() const {
    return rank_ * PieceColumns() + static_cast<int>(threadIdx.x) % (PieceColumns() / 8) * 8;
  }
  __device__ LeaveInput LoadPiece() const {
    return LoadLeave(leave_, min(first_row_ + min(PieceRow(), kRows - 1), enter_.rows - 1),
                     PieceColumn());
  }
  __device__ void LeavePiece(const LeaveInput& input) {
    static_assert(kRows * kMaxHidden / kRanks / 8 <= kThreads);
    if (PieceRow() < rows_) {
      Bf16* streams = StreamsOf(first_row_ + PieceRow()) + PieceColumn();
      LeaveFour(input, [&](int stream, const uint4& values) {
        *reinterpret_cast<uint4*>(streams + stream * hidden_) = values;
      });
    }
    FenceBulk();
  }

  __device__ void RunProducts(int warp) {
    ClusterWait();
    if (warp < kLinesOfRank) {
      MultiplyLine(warp);
    } else if constexpr (kRows > kRanks) {
      MultiplyLastRow();
    } else {
      Square();
    }
  }

  __device__ const Stage& StageOf(int piece) const { return s_.stages[piece % kStages]; }
  __device__ void WaitForPiece(int piece) {
    BarrierWait(SharedAddress(&s_.come[piece % kStages]), piece / kStages % 2);
  }
  __device__ void LeaveStage(int piece) {
    if (piece + kStages >= pieces_) return;  // nobody waits for it
    __syncwarp();
    if (LaneIndex() < kRanks) {
      BarrierArriveAt(SharedAddress(&s_.used[piece % kStages]), LaneIndex());
    }
  }
  // Lanes 2 t and 2 t + 1 of the sums are thread t's of every eight.
  __device__ static int Pair() { return LaneIndex() % kLanePairs; }
  __device__ static int Group() { return LaneIndex() / kLanePairs; }
  __device__ static float2 Widen(uint32_t pair) {
    return make_float2(FloatOf(pair << 16), FloatOf(pair & 0xffff0000u));
  }

  static constexpr int kGroups = kWarp / kLanePairs;
  static constexpr int kRowsOfGroup = kStep / kGroups;
  static constexpr int kAtOnce = kRowsOfGroup == 1 ? 8 : 4;  // steps of a round
  static constexpr int kRounds = kPiece / kLanes / kAtOnce;
  struct Round {
    float2 fn[kAtOnce];
    uint32_t x[kRowsOfGroup][kAtOnce];
  };
  __device__ static void LoadRound(const Stage& stage, int line, int number, Round& round) {
    const int first = number * kAtOnce * kLanes + 2 * Pair();
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * kLanes;
      round.fn[i] = *reinterpret_cast<const float2*>(&stage.fn[line][at]);
#pragma unroll
      for (int r = 0; r < kRowsOfGroup; ++r) {
        round.x[r][i] = *reinterpret_cast<const uint32_t*>(&stage.x[Group() + r * kGroups][at]);
      }
    }
  }
  __device__ static void AddRound(const Round& round, float2 (&sums)[kRowsOfGroup]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int r = 0; r < kRowsOfGroup; ++r) {
        const float2 x = Widen(round.x[r][i]);
        sums[r].x = Fma(x.x, round.fn[i].x, sums[r].x);
        sums[r].y = Fma(x.y, round.fn[i].y, sums[r].y);
      }
    }
  }

  // A line times the first rows: every eighth of a warp has some. A round is loaded while the one
  // before is added.
  __device__ void MultiplyLine(int line) {
    float2 sums[kRowsOfGroup] = {};
    Round even, odd;
    WaitForPiece(0);
    LoadRound(StageOf(0), line, 0, even);
    for (int piece = 0; piece < pieces_; ++piece) {
#pragma unroll
      for (int r = 0; r < kRounds; r += 2) {
        LoadRound(StageOf(piece), line, r + 1, odd);
        AddRound(even, sums);
        if (r + 2 < kRounds) {
          LoadRound(StageOf(piece), line, r + 2, even);
        } else if (piece + 1 < pieces_) {
          WaitForPiece(piece + 1);
          LoadRound(StageOf(piece + 1), line, 0, even);
        }
        AddRound(odd, sums);
      }
      LeaveStage(piece);
    }
#pragma unroll
    for (int r = 0; r < kRowsOfGroup; ++r) {
      const float total = SumOfLanes(sums[r]);
      const int row = Group() + r * kGroups;
      if (Pair() != 0 || row >= rows_) continue;
#pragma unroll
      for (int part = 0; part < kShare; ++part) {
        Send(row + part * kRows, 0, Line(line), total);
      }
    }
  }
  // To a block that has the row in the end as its row `own`.
  __device__ void Send(int rank, int own, int output, float total) {
    SendTo(rank, SharedAddress(&s_.products[own][output]), total,
           SharedAddress(&s_.products_come[own]));
  }
  // The block's row by itself.
  __device__ void Square() {
    float2 sum = {};
    for (int piece = 0; piece < pieces_; ++piece) {
      WaitForPiece(piece);
      const Bf16* x = StageOf(piece).x[OwnRow(0)] + 2 * Pair();
#pragma unroll 32
      for (int i = 0; i < kPiece; i += kLanes) {
        const float2 a = LoadTwo(x + i);
        sum.x = Fma(a.x, a.x, sum.x);
        sum.y = Fma(a.y, a.y, sum.y);
      }
      LeaveStage(piece);
    }
    const float total = SumOfLanes(sum);
    if (LaneIndex() == 0 && HasRow(0)) Send(rank_, 0, kLines, total);
  }
  // One eighth of the warp does that, the others a line each times the ninth row, which is rank
  // 0's.
  __device__ void MultiplyLastRow() {
    const int line = max(Group() - 1, 0), row = Group() == 0 ? OwnRow(0) : kRanks;
    float2 sum = {}, square = {};
    for (int piece = 0; piece < pieces_; ++piece) {
      WaitForPiece(piece);
      const Bf16* x = StageOf(piece).x[row] + 2 * Pair();
      const float* w = StageOf(piece).fn[line] + 2 * Pair();
#pragma unroll 16
      for (int i = 0; i < kPiece; i += kLanes) {
        const float2 a = LoadTwo(x + i), b = *reinterpret_cast<const float2*>(w + i);
        sum.x = Fma(a.x, b.x, sum.x);
        sum.y = Fma(a.y, b.y, sum.y);
        square.x = Fma(a.x, a.x, square.x);
        square.y = Fma(a.y, a.y, square.y);
      }
      LeaveStage(piece);
    }
    const float total = SumOfLanes(sum), of_square = SumOfLanes(square);
    if (Pair() != 0) return;
    if (Group() == 0) {
      if (HasRow(0)) Send(rank_, 0, kLines, of_square);
    } else if (rows_ > kRanks) {
      Send(0, 1, Line(line), total);
      if (Group() == 1 && rank_ == 0) Send(0, 1, kLines, of_square);
    }
  }

  __device__ void RunRest(bool fetches) {
    const OutputScale output(enter_);
    __syncwarp();
    ClusterWait();
    if (fetches) {
      FenceBulk();
      for (int piece = 0; piece < pieces_; ++piece) {
        if (piece >= kStages) {
          BarrierWait(SharedAddress(&s_.used[piece % kStages]), (piece / kStages + 1) % 2);
          FetchFn(piece);
        }
        FetchRows(piece);
      }
    }
    __syncwarp();
    float logits[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!HasRow(i)) continue;
      BarrierWait(SharedAddress(&s_.products_come[i]), 0);
      logits[i] = SplitRow(enter_, output, s_.products[i], s_.pre[i]);
    }
    if (OwnPart() != kShare - 1) return;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (HasRow(i)) FinishRow(enter_, first_row_ + OwnRow(i), output, logits[i]);
    }
  }

  const LeaveSiteArgs& leave_;
  const EnterSiteArgs& enter_;
  const float* fn_;
  Shared& s_;
  const int hidden_, width_, pieces_, rank_, first_row_;
  int rows_ = 0;
};

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    BoundaryKernel(const __grid_constant__ LeaveSiteArgs leave,
                   const __grid_constant__ MatrixView fn,
                   const __grid_constant__ EnterSiteArgs enter) {
  extern __shared__ __align__(128) uint8_t raw_shared[];
  BoundaryCluster<kRows>(leave, fn, enter,
                         *reinterpret_cast<typename Boundary<kRows>::Shared*>(raw_shared))
      .Run();
}

template <int kRows>
cudaError_t LaunchBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                           const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kBytes = sizeof(typename Boundary<kRows>::Shared);
  const auto kernel = BoundaryKernel<kRows>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>((enter.rows + kRows - 1) / kRows * kRanks));
  return EarlyLaunch(grid, kThreads, kBytes, stream, kRanks).Run(kernel, leave, fn, enter);
}

}  // namespace

bool FitsOneLaunch(const EnterSiteArgs& args) {
  const ModelShape& shape = args.shape;
  return args.rows <= kMaxFewRows && shape.streams == kFewStreams && !args.is_head &&
         args.x_rows == nullptr && args.num_rows != nullptr && args.normed8 != nullptr &&
         shape.hidden % (8 * kFp8Group) == 0 && shape.hidden <= kMaxHidden;
}

cudaError_t RunBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                        const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kFewest = 8;     // for which a cluster each is the fastest
  constexpr int kClusters = 15;  // that run at once
  if (enter.rows <= kFewest) return RunBoundaryOfOne(leave, fn, enter, stream);
  if (enter.rows <= 4 * kClusters) return LaunchBoundary<4>(leave, fn, enter, stream);
  return enter.rows <= 8 * kClusters ? LaunchBoundary<8>(leave, fn, enter, stream)
                                     : LaunchBoundary<9>(leave, fn, enter, stream);
}

}  // namespace baton::kernels::cuda
