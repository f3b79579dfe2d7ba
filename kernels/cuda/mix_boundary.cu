#include "kernels/cuda/mix_boundary.cuh"

// A boundary of some rows in one launch, kRows a cluster. A block leaves the site for a slice of
// the rows' columns and sends every block its lanes; multiplies and mixes two lanes of all columns;
// sends what it mixed back, and normalises its slice.
namespace baton::kernels::cuda {
namespace {

constexpr int kLinesOfThread = 2;
constexpr int kRowGroups = 3;      // of rows that threads have
constexpr int kMultiplyWarps = 3;  // six threads, groups and lanes, for each of four pairs of lines
constexpr int kProductWarps = kMultiplyWarps + 1;  // x . x
constexpr int kThreadsOfPair = kRowGroups * kLanesOfRank;
constexpr int kMultipliers = kThreadsOfPair * kLines / kLinesOfThread / kMultiplyWarps;
constexpr int kRowsOfPre = 6;                               // by a warp
constexpr int kOctets = kMaxHidden / kRanks / 8;            // of columns of a slice of a row
constexpr int kRounds = kOctets / kWarp;                    // a warp a row
constexpr int kRowValues = kLanesOfRank * (kMaxSteps + 8);  // the pad: lanes on banks of their own
constexpr int kEarlyPieces = 2;                             // of fn; there are as many always
// Barriers of threads.
constexpr int kPreIsThere = 1, kMixedIsThere = 2, kInverseIsThere = 3;

template <int kRows>
struct Boundary {
  static constexpr int kRowsOfThread = kRows / kRowGroups;
  static constexpr int kOwn = (kRows + kRanks - 1) / kRanks;  // rows whose comb a block finishes
  static constexpr int kThreads = (kRows + kProductWarps + 1) * kWarp;
  static constexpr int kPreWarps = (kRows + kRowsOfPre - 1) / kRowsOfPre;
  static constexpr int kStages = kRows > 6 ? 6 : (kRows > 3 ? 7 : 8);

  struct Shared {
    alignas(128) float fn[kStages][kLanesOfRank][kPieceValues + 16];
    Bf16 x[kRows][kLanesOfRank][kMaxSteps + 8];
    Bf16 mixed[kRows][kLanesOfRank][kMaxRowSteps + 8];
    Bf16 slices[kRows][kLanes][kMaxRowSteps / kRanks];
    // Of products: of pre's lines, two together, for all rows, of the others for the block's own.
    float2 pre_sums[kRows][kFewStreams / 2][kLanes];
    float2 own_sums[kOwn][(kLines - kFewStreams) / 2][kLanes];
    float squares[kRows][kLanes], mixed_squares[kRows][kLanes];
    float4 pre[kRows];
    float inverse[kRows];
    uint64_t come[kStages], used[kStages];
    uint64_t x_come[kFewStreams], sums_come, mixed_come, squares_come;
  };
  static_assert(sizeof(Shared) <= 232448);
};

// To an address of another block: values come for its barrier.
__device__ __forceinline__ void SendTwo(uint32_t to, float2 x, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, "
      "[%3];" ::"r"(to),
      "r"(BitsOf(x.x)), "r"(BitsOf(x.y)), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void SendFour(uint32_t to, const uint4& x, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
      : "memory");
}

// Four steps of two neighbouring lanes.
__device__ __forceinline__ uint32_t LoadPairNow(const Bf16* from) {
  uint32_t x;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(from));
  return x;
}
__device__ __forceinline__ uint4 LoadPairsNow(const Bf16* from) {
  return make_uint4(LoadPairNow(from), LoadPairNow(from + kLanes), LoadPairNow(from + 2 * kLanes),
                    LoadPairNow(from + 3 * kLanes));
}
__device__ __forceinline__ void StorePairs(const uint4& pairs, Bf16* to) {
  *reinterpret_cast<uint32_t*>(to) = pairs.x;
  *reinterpret_cast<uint32_t*>(to + kLanes) = pairs.y;
  *reinterpret_cast<uint32_t*>(to + 2 * kLanes) = pairs.z;
  *reinterpret_cast<uint32_t*>(to + 3 * kLanes) = pairs.w;
}
// One lane of eight.
__device__ __forceinline__ uint4 LaneOf(const uint4& a, const uint4& b, bool is_second) {
  const uint32_t halves = is_second ? 0x7632 : 0x5410;
  return make_uint4(__byte_perm(a.x, a.y, halves), __byte_perm(a.z, a.w, halves),
                    __byte_perm(b.x, b.y, halves), __byte_perm(b.z, b.w, halves));
}

template <int kRows>
class BoundaryCluster {
 public:
  using B = Boundary<kRows>;
  using Shared = typename B::Shared;

  __device__ BoundaryCluster(const LeaveSiteArgs& leave, const MatrixView& fn,
                             const EnterSiteArgs& enter, Shared& shared)
      : leave_(leave),
        enter_(enter),
        fn_(reinterpret_cast<const float*>(fn.values)),
        s_(shared),
        hidden_(enter.shape.hidden),
        slice_(hidden_ / kRanks),
        row_steps_(hidden_ / kLanes),
        pieces_(kFewStreams * row_steps_ / kPieceSteps),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        first_row_(static_cast<int>(blockIdx.x) / kRanks * kRows) {}

  // fn needs no earlier kernel.
  __device__ void Run() {
    const int warp = WarpIndex() - kRows;  // of those without a row
    const bool fetches = warp == kProductWarps && LaneIndex() == 0;
    if (fetches) {
      InitBarriers();
      for (int piece = 0; piece < kEarlyPieces; ++piece) Fetch(piece);
    }
    __syncwarp();
    ClusterArriveRelaxed();
    StartAfterEarlier();
    rows_ = min(*enter_.num_rows - first_row_, kRows);
    if (warp < 0) {
      RunRow(WarpIndex());
    } else if (warp < kProductWarps) {
      RunProducts(warp);
    } else {
      RunFetch(fetches);
    }
  }

 private:
  static constexpr int kOwn = B::kOwn, kRowsOfThread = B::kRowsOfThread;

  // Rows whose comb the block finishes.
  __device__ int Owned() const {
    return rows_ <= rank_ ? 0 : (rows_ - rank_ + kRanks - 1) / kRanks;
  }
  __device__ int OwnRow(int i) const { return rank_ + i * kRanks; }
  __device__ int RowThreads() const { return rows_ * kWarp; }

  __device__ void InitBarriers() {
    for (int i = 0; i < B::kStages; ++i) {
      BarrierInit(SharedAddress(&s_.come[i]), 1);
      BarrierInit(SharedAddress(&s_.used[i]), kMultiplyWarps);
    }
    for (uint64_t& barrier : s_.x_come) BarrierInit(SharedAddress(&barrier), 1);
    for (uint64_t* barrier : {&s_.sums_come, &s_.mixed_come, &s_.squares_come}) {
      BarrierInit(SharedAddress(barrier), 1);
    }
    FenceBarrierInit();
  }
  __device__ void Fetch(int piece) {
    const int stage = piece % B::kStages;
    FetchPiece(fn_, rank_, kFewStreams * row_steps_, piece, s_.fn[stage][0], s_.fn[stage][1],
               SharedAddress(&s_.come[stage]));
  }
  // What other blocks will send.
  __device__ void Expect() {
    const auto rows = static_cast<uint32_t>(rows_), owned = static_cast<uint32_t>(Owned());
    const auto of_row = static_cast<uint32_t>(slice_) * sizeof(Bf16);
    for (uint64_t& barrier : s_.x_come) BarrierExpect(SharedAddress(&barrier), rows * of_row);
    BarrierExpect(SharedAddress(&s_.mixed_come), rows * of_row);
    BarrierExpect(SharedAddress(&s_.squares_come), rows * kLanes * sizeof(float));
    BarrierExpect(SharedAddress(&s_.sums_come),
                  (rows * kPreOutputs + owned * (kLines - kFewStreams)) * kLanes * sizeof(float));
  }
  // Behind the rows, which are waited for first.
  __device__ void FetchRest() {
    BarrierWait(SharedAddress(&s_.x_come[0]), 0);
    for (int piece = kEarlyPieces; piece < pieces_; ++piece) {
      if (piece >= B::kStages) {
        BarrierWait(SharedAddress(&s_.used[piece % B::kStages]), (piece / B::kStages + 1) % 2);
      }
      Fetch(piece);
    }
  }
  __device__ void RunFetch(bool fetches) {
    const OutputScale output(enter_, kFewStreams + LaneIndex() % kFewStreams);
    if (fetches && rows_ > 0) Expect();
    __syncwarp();
    ClusterWait();
    if (rows_ <= 0) {
      for (int piece = 0; fetches && piece < kEarlyPieces; ++piece) {
        BarrierWait(SharedAddress(&s_.come[piece]), 0);
      }
      return;  // nothing is on its way any more
    }
    if (fetches) FetchRest();
    __syncwarp();
    StorePost(output);
  }

  // A warp a row.
  __device__ void RunRow(int row) {
    // A thread has eight steps of two lanes, which are one block's.
    const int to = LaneIndex() % kRanks, step = LaneIndex() / kRanks * 8;
    const bool has_steps = step * kLanes < slice_;
    const int column = rank_ * slice_ + (has_steps ? step : 0) * kLanes + to * kLanesOfRank;
    const int64_t from = min(first_row_ + row, enter_.rows - 1);
    Bf16* streams = leave_.streams + from * kFewStreams * hidden_ + column;
    LeaveInput in[2];
    in[0].post = in[1].post = LoadFourNow(leave_.post + from * kFewStreams);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = h * kStepsTogether * kLanes;
      in[h].branch = LoadPairsNow(leave_.branch + from * hidden_ + column + first);
#pragma unroll
      for (int j = 0; j < kFewStreams; ++j) {
        in[h].old[j] = LoadPairsNow(streams + j * hidden_ + first);
      }
    }
#pragma unroll
    for (int j = 0; j < kFewStreams; ++j) {
      in[0].comb[j] = in[1].comb[j] =
          LoadFourNow(leave_.comb + (from * kFewStreams + j) * kFewStreams);
    }
    ClusterWait();
    if (row >= rows_) return;
    if (has_steps) {
      Leave(in, streams, &s_.x[row][0][rank_ * (slice_ / kLanes) + step],
            static_cast<uint32_t>(to));
    }
    MeetAt(kPreIsThere, RowThreads() + B::kPreWarps * kWarp);
    Mix(row);
    ArriveAt(kMixedIsThere, RowThreads() + kWarp);
    Normalise(row);
  }
  __device__ void Leave(const LeaveInput (&in)[2], Bf16* streams, const Bf16* place, uint32_t to) {
    const uint32_t there = AddressAtRank(SharedAddress(place), to);
    const uint32_t barrier = AddressAtRank(SharedAddress(&s_.x_come[0]), to);
    uint4 early[kFewStreams];
    LeaveFour(in[0], [&](int stream, const uint4& values) { early[stream] = values; });
    LeaveFour(in[1], [&](int stream, const uint4& late) {
      const uint32_t first = there + static_cast<uint32_t>(stream * row_steps_) * sizeof(Bf16);
      const uint32_t second = first + (kMaxSteps + 8) * sizeof(Bf16);
      const uint32_t come = barrier + static_cast<uint32_t>(stream) * sizeof(uint64_t);
      SendFour(first, LaneOf(early[stream], late, false), come);
      SendFour(second, LaneOf(early[stream], late, true), come);
      StorePairs(early[stream], streams + stream * hidden_);
      StorePairs(late, streams + stream * hidden_ + kStepsTogether * kLanes);
    });
  }
  // The block's lanes; each slice of their steps also goes to the block that normalises it.
  __device__ void Mix(int row) {
    for (uint64_t& barrier : s_.x_come) BarrierWait(SharedAddress(&barrier), 0);
    const int lane = LaneIndex() % kLanesOfRank, slice_steps = slice_ / kLanes;
    const uint32_t place = SharedAddress(s_.slices[row][rank_ * kLanesOfRank + lane]);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int step = (LaneIndex() + i * kWarp) / kLanesOfRank * 8;
      if (step >= row_steps_) break;
      uint4 streams[kFewStreams];
#pragma unroll
      for (int s = 0; s < kFewStreams; ++s) {
        streams[s] = *reinterpret_cast<const uint4*>(&s_.x[row][lane][step + s * row_steps_]);
      }
      const uint4 mixed = MixFour(streams, s_.pre[row]);
      *reinterpret_cast<uint4*>(&s_.mixed[row][lane][step]) = mixed;
      const auto to = static_cast<uint32_t>(step / slice_steps);
      const auto offset = static_cast<uint32_t>(step % slice_steps) * sizeof(Bf16);
      SendFour(AddressAtRank(place + static_cast<uint32_t>(offset), to), mixed,
               AddressAtRank(SharedAddress(&s_.mixed_come), to));
    }
  }
  __device__ void Normalise(int row) {
    float norm[kRounds][8];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int column = min((LaneIndex() + i * kWarp) * 8, slice_ - 8);
      LoadNorm(enter_, rank_ * slice_ + column, norm[i]);
    }
    BarrierWait(SharedAddress(&s_.mixed_come), 0);
    MeetAt(kInverseIsThere, RowThreads() + kWarp);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int column = (LaneIndex() + i * kWarp) * 8;
      const bool has_column = column < slice_;
      float u[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        u[k] = DecodeBf16(s_.slices[row][column % kLanes + k][has_column ? column / kLanes : 0]);
      }
      StoreNormed(enter_, first_row_ + row, rank_ * slice_ + column, has_column, u, norm[i],
                  s_.inverse[row]);
    }
  }

  __device__ void RunProducts(int warp) {
    const bool is_last = warp == kMultiplyWarps;
    const OutputScale output(
        enter_, is_last ? 2 * kFewStreams + LaneIndex() % 16 : LaneIndex() % kPreOutputs);
    ClusterWait();
    if (rows_ <= 0) return;
    if (is_last) {
      Square();
      StoreCombs(output);
      return;
    }
    Multiply(warp);
    __syncwarp();
    if (warp == 0) {
      FinishNorms();
    } else if (warp <= B::kPreWarps) {
      FinishPre((warp - 1) * kRowsOfPre, output);
    }
  }

  // Eight steps of a thread's rows and lines.
  struct Eight {
    uint4 x[kRowsOfThread];
    float4 fn[2][kLinesOfThread];
  };
  __device__ __forceinline__ static void LoadEight(const uint4* x, const float4* fn, int number,
                                                   Eight& e) {
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) e.x[r] = x[number + r * kRowGroups * kRowValues / 8];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int o = 0; o < kLinesOfThread; ++o) e.fn[h][o] = fn[(2 * number + h) * kLines + o];
    }
  }
  __device__ __forceinline__ static void AddEight(const Eight& e, float2 (&sums)[kRowsOfThread]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) {
        const float x = Nth(e.x[r], i);
        sums[r].x = Fma(x, Nth(e.fn[i / 4][0], i % 4), sums[r].x);
        sums[r].y = Fma(x, Nth(e.fn[i / 4][1], i % 4), sums[r].y);
      }
    }
  }
  __device__ void Multiply(int warp) {
    const int thread = min(LaneIndex(), kMultipliers - 1);
    const int lane = thread % kLanesOfRank, group = thread / kLanesOfRank % kRowGroups;
    const int pair = warp * (kMultipliers / kThreadsOfPair) + thread / kThreadsOfPair;
    const auto* x = reinterpret_cast<const uint4*>(s_.x[group][lane]);
    float2 sums[kRowsOfThread] = {};
    int streams = 0;  // that are there
    const auto start = [&](int piece) {
      for (; streams * row_steps_ < (piece + 1) * kPieceSteps; ++streams) {
        BarrierWait(SharedAddress(&s_.x_come[streams]), 0);
      }
      const int stage = piece % B::kStages;
      BarrierWait(SharedAddress(&s_.come[stage]), piece / B::kStages % 2);
      return reinterpret_cast<const float4*>(s_.fn[stage][lane]) + pair * kLinesOfThread;
    };
    constexpr int kEights = kPieceSteps / 8;
    const float4* fn = start(0);
    Eight steps[2];
    LoadEight(x, fn, 0, steps[0]);
#pragma unroll 1
    for (int piece = 0; piece < pieces_; ++piece) {
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        if (i + 1 == kEights && piece + 1 < pieces_) {
          fn = start(piece + 1);
          x += kEights;
        }
        LoadEight(x, fn, (i + 1) % kEights, steps[(i + 1) % 2]);
        __syncwarp();  // keeps loads ahead of what they are for
        AddEight(steps[i % 2], sums);
      }
      if (piece + B::kStages >= pieces_) continue;  // nobody waits for it
      __syncwarp();
      if (LaneIndex() == 0) BarrierArrive(SharedAddress(&s_.used[piece % B::kStages]));
    }
    if (LaneIndex() < kMultipliers) SendSums(group, pair, rank_ * kLanesOfRank + lane, sums);
  }
  __device__ void SendSums(int group, int pair, int lane, const float2 (&sums)[kRowsOfThread]) {
    const uint32_t barrier = SharedAddress(&s_.sums_come);
    const auto send = [barrier](int rank, const float2* place, float2 sum) {
      const auto to = static_cast<uint32_t>(rank);
      SendTwo(AddressAtRank(SharedAddress(place), to), sum, AddressAtRank(barrier, to));
    };
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      const int row = group + r * kRowGroups;
      if (row >= rows_) break;
      if (pair >= kFewStreams / 2) {
        send(row % kRanks, &s_.own_sums[row / kRanks][pair - kFewStreams / 2][lane], sums[r]);
        continue;
      }
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) send(rank, &s_.pre_sums[row][pair][lane], sums[r]);
    }
  }

  // The row and the block's lane whose squares a thread sums.
  __device__ static int SquareRow() { return min(LaneIndex() / kLanesOfRank, kRows - 1); }
  __device__ static int SquareLane() { return LaneIndex() % kLanesOfRank; }
  __device__ void Square() {
    float sum = 0.0f;
    for (int stream = 0; stream < kFewStreams; ++stream) {
      BarrierWait(SharedAddress(&s_.x_come[stream]), 0);
      sum = SquareSteps(&s_.x[SquareRow()][SquareLane()][stream * row_steps_], row_steps_, sum);
    }
    SendSquare(sum, s_.squares[SquareRow()], SharedAddress(&s_.sums_come));
  }
  __device__ void SendSquare(float sum, const float* lanes, uint32_t barrier) {
    if (LaneIndex() < kLanesOfRank * rows_) {
      const float* place = lanes + rank_ * kLanesOfRank + SquareLane();
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) SendTo(rank, SharedAddress(place), sum, barrier);
    }
    __syncwarp();
  }
  // The norms of the mixed rows: the block's lanes' squares to all blocks, then a row a thread.
  __device__ void FinishNorms() {
    MeetAt(kMixedIsThere, RowThreads() + kWarp);
    const float sum = SquareSteps(s_.mixed[SquareRow()][SquareLane()], row_steps_, 0.0f);
    SendSquare(sum, s_.mixed_squares[SquareRow()], SharedAddress(&s_.squares_come));
    BarrierWait(SharedAddress(&s_.squares_come), 0);
    const int row = min(LaneIndex(), kRows - 1);
    s_.inverse[row] =
        InverseRms(TreeOfLanes(s_.mixed_squares[row]), hidden_, enter_.shape.norm_epsilon);
    __syncwarp();
    ArriveAt(kInverseIsThere, RowThreads() + kWarp);
  }

  __device__ float LogitOf(int row, const float2* sums, bool is_second,
                           const OutputScale& output) const {
    const float inverse =
        InverseRms(TreeOfLanes(s_.squares[row]), kFewStreams * hidden_, enter_.shape.norm_epsilon);
    return output.Logit(TreeOfLanes(sums, is_second), inverse);
  }
  // Of six rows at most, an output a lane, and one that has none.
  __device__ void FinishPre(int first, const OutputScale& output) {
    const int row = min(first + LaneIndex() / kPreOutputs, kRows - 1);
    const int k = LaneIndex() % kPreOutputs;
    BarrierWait(SharedAddress(&s_.sums_come), 0);
    const float logit =
        LogitOf(row, s_.pre_sums[row][min(k, kFewStreams - 1) / 2], k % 2 != 0, output);
    const float pre = Sigmoid(logit) + enter_.shape.mix_epsilon;
    if (k < kFewStreams && LaneIndex() < kRowsOfPre * kPreOutputs) {
      reinterpret_cast<float*>(&s_.pre[row])[k] = pre;
    }
    __syncwarp();
    ArriveAt(kPreIsThere, RowThreads() + B::kPreWarps * kWarp);
  }
  // Of the block's own rows, a value a lane.
  __device__ void StorePost(const OutputScale& output) {
    const int i = LaneIndex() / kFewStreams, k = LaneIndex() % kFewStreams;
    BarrierWait(SharedAddress(&s_.sums_come), 0);
    if (i >= Owned()) return;
    const float logit = LogitOf(OwnRow(i), s_.own_sums[i][k / 2], k % 2 != 0, output);
    enter_.post[(first_row_ + OwnRow(i)) * kFewStreams + k] = 2.0f * Sigmoid(logit);
  }
  __device__ void StoreCombs(const OutputScale& output) {
    const int i = min(LaneIndex() / 16, kOwn - 1), element = LaneIndex() % 16;
    BarrierWait(SharedAddress(&s_.sums_come), 0);
    if (Owned() == 0) return;
    const float logit =
        LogitOf(min(OwnRow(i), kRows - 1), s_.own_sums[i][(kFewStreams + element) / 2],
                element % 2 != 0, output);
    const float x = SinkhornOfFour(logit, enter_.shape);
    if (LaneIndex() / 16 >= Owned()) return;
    enter_.comb[(first_row_ + OwnRow(i)) * 16 + element] = x;
  }

  const LeaveSiteArgs& leave_;
  const EnterSiteArgs& enter_;
  const float* fn_;
  Shared& s_;
  const int hidden_, slice_, row_steps_, pieces_, rank_, first_row_;
  int rows_ = 0;
};

template <int kRows>
__global__ void __launch_bounds__(Boundary<kRows>::kThreads, 1)
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
  return EarlyLaunch(grid, Boundary<kRows>::kThreads, kBytes, stream, kRanks)
      .Run(kernel, leave, fn, enter);
}

}  // namespace

bool FitsOneLaunch(const EnterSiteArgs& args) {
  const ModelShape& shape = args.shape;
  return args.rows <= kMaxFewRows && shape.streams == kFewStreams && !args.is_head &&
         args.x_rows == nullptr && args.num_rows != nullptr && args.normed8 != nullptr &&
         shape.hidden % (8 * kFp8Group) == 0 && shape.hidden <= kMaxHidden;
}

// As few rows a cluster as let all run at once.
cudaError_t RunBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                        const EnterSiteArgs& enter, cudaStream_t stream) {
  constexpr int kClusters = 15;  // that do
  static_assert(kMaxFewRows <= 9 * kClusters);
  if (enter.rows <= kClusters) return RunBoundaryOfOne(leave, fn, enter, stream);
  if (enter.rows <= 3 * kClusters) return LaunchBoundary<3>(leave, fn, enter, stream);
  if (enter.rows <= 6 * kClusters) return LaunchBoundary<6>(leave, fn, enter, stream);
  return LaunchBoundary<9>(leave, fn, enter, stream);
}

}  // namespace baton::kernels::cuda
