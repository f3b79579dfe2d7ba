#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/route.h"

// A cluster takes eight rows. Each of its blocks has an eighth of the experts, whose lines of the
// gate stream through shared memory while two warps multiply; then each block routes one row.
namespace baton::kernels::cuda {
namespace {

constexpr int kRanks = 8;
constexpr int kRows = kRanks;  // of a cluster
constexpr int kExperts = 256;
constexpr int kOwnExperts = kExperts / kRanks;
constexpr int kThreads = kExperts;
constexpr int kMultipliers = kOwnExperts / 16;  // warps; the next one fetches
constexpr int kColumns = 256;                   // of a piece
constexpr int kStages = 8;
constexpr int kMaxHidden = 4096;
constexpr int kMaxSlots = 16;
constexpr int kPad = 8;    // bf16 values between lines, against bank conflicts
constexpr int kSteps = 8;  // products of K 16 whose operands are read together

struct Shared {
  alignas(128) Bf16 gate[kStages][kOwnExperts][kColumns + kPad];
  alignas(16) Bf16 x[kRows][kMaxHidden + kPad];
  alignas(16) float logits[kExperts];  // of this block's row, by the whole cluster
  float scores[kExperts];
  alignas(16) float biased[kExperts];
  int32_t chosen[kMaxSlots];
  uint64_t come[kStages], used[kStages];
};

class ClusterRouter {
 public:
  __device__ ClusterRouter(const GateRouteArgs& args, Shared& shared)
      : args_(args),
        route_(args.route),
        s_(shared),
        rank_(static_cast<int>(blockIdx.x) % kRanks),
        first_row_(static_cast<int>(blockIdx.x) / kRanks * kRows),
        rows_(min(kRows, *args.route.step.num_rows - first_row_)),
        pieces_(args.route.shape.hidden / kColumns) {}

  __device__ void Run() {
    if (rows_ <= 0) return;
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : s_.come) BarrierInit(SharedAddress(&barrier), 1);
      for (uint64_t& barrier : s_.used) BarrierInit(SharedAddress(&barrier), kMultipliers);
      FenceAsyncProxy();
    }
    LoadRows();
    __syncthreads();
    ClusterSync();  // all blocks are there
    if (WarpIndex() < kMultipliers) {
      Multiply();
    } else if (WarpIndex() == kMultipliers) {
      Fetch();
    }
    ClusterSync();  // the logits are there
    if (rank_ < rows_) RouteRow(first_row_ + rank_);
  }

 private:
  __device__ void LoadRows() {
    const int hidden = route_.shape.hidden, chunks = hidden / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * chunks; i += kThreads) {
      const int r = i / chunks, column = i % chunks * 8;
      const bool is_live = r < rows_;
      const int64_t row = first_row_ + (is_live ? r : 0);
      CopyAsync16(SharedAddress(&s_.x[r][column]), args_.x + row * hidden + column, is_live);
    }
    CopyAsyncCommit();
    CopyAsyncWait<0>();
  }

  // By one warp, a line a lane.
  __device__ void Fetch() {
    constexpr uint32_t kBytes = kColumns * sizeof(Bf16);
    static_assert(kOwnExperts == kWarp);
    const Bf16* line =
        args_.gate + static_cast<int64_t>(rank_ * kOwnExperts + LaneIndex()) * route_.shape.hidden;
    for (int piece = 0; piece < pieces_; ++piece) {
      const int stage = piece % kStages;
      const uint32_t come = SharedAddress(&s_.come[stage]);
      BarrierWait(SharedAddress(&s_.used[stage]), (piece / kStages + 1) % 2);
      if (LaneIndex() == 0) BarrierExpect(come, kOwnExperts * kBytes);
      __syncwarp();
      CopyBulk(SharedAddress(s_.gate[stage][LaneIndex()]), line + piece * kColumns, kBytes, come);
    }
  }

  // Sixteen experts a warp; K ascending into one sum, as in RunLinear (R1).
  __device__ void Multiply() {
    const int warp = WarpIndex(), lane = LaneIndex();
    float d[4] = {};
    for (int piece = 0; piece < pieces_; ++piece) {
      const int stage = piece % kStages;
      BarrierWait(SharedAddress(&s_.come[stage]), piece / kStages % 2);
      const uint32_t gate = SharedAddress(&s_.gate[stage][16 * warp + lane % 16][lane / 16 * 8]);
      const uint32_t x = SharedAddress(&s_.x[lane % 8][piece * kColumns + lane / 8 * 8]);
#pragma unroll
      for (int step = 0; step < kColumns / 16; step += kSteps) {
        uint32_t a[kSteps][4], b[kSteps / 2][4];
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          LoadMatrices(gate + static_cast<uint32_t>((step + k) * 32), a[k]);
          if (k % 2 == 0) LoadMatrices(x + static_cast<uint32_t>((step + k) * 32), b[k / 2]);
        }
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          Mma(d, a[k], b[k / 2][k % 2 * 2], b[k / 2][k % 2 * 2 + 1]);
        }
      }
      WarpArrive(SharedAddress(&s_.used[stage]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int expert = rank_ * kOwnExperts + 16 * warp + lane / 4 + i / 2 * 8;
      float* to = static_cast<float*>(__cluster_map_shared_rank(
          &s_.logits[expert], static_cast<unsigned>(lane % 4 * 2 + i % 2)));
      *to = d[i];
    }
  }

  // An expert a thread; its place is the number of better ones, ties to the lower (R7).
  __device__ void RouteRow(int row) {
    const int expert = static_cast<int>(threadIdx.x), slots = route_.shape.experts_per_token;
    const bool is_hashed = route_.token_experts != nullptr;
    const float score = Sqrt(Softplus(s_.logits[expert]));
    s_.scores[expert] = score;
    const float own = is_hashed ? score : score + route_.bias[expert];
    s_.biased[expert] = own;
    if (expert < slots) {
      const int64_t at = is_hashed ? int64_t{route_.step.token[row]} * slots + expert : 0;
      s_.chosen[expert] = is_hashed ? route_.token_experts[at] : expert;
    }
    __syncthreads();
    if (!is_hashed) {
      int better = 0;
#pragma unroll 8
      for (int e = 0; e < kExperts; e += 4) {
        const float4 four = *reinterpret_cast<const float4*>(&s_.biased[e]);
        const float others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          better += others[i] > own || (others[i] == own && e + i < expert) ? 1 : 0;
        }
      }
      if (better < slots) s_.chosen[better] = expert;
      __syncthreads();
    }
    if (expert >= slots) return;
    float sum = 0.0f;
    for (int i = 0; i < slots; ++i) sum += s_.scores[s_.chosen[i]];
    const int64_t at = int64_t{row} * slots + expert;
    route_.ids[at] = s_.chosen[expert];
    route_.weights[at] = s_.scores[s_.chosen[expert]] / sum * route_.shape.routed_scaling;
  }

  const GateRouteArgs& args_;
  const RouteArgs& route_;
  Shared& s_;
  const int rank_, first_row_, rows_, pieces_;
};

__global__ void __launch_bounds__(kThreads)
    GateRouteKernel(const __grid_constant__ GateRouteArgs args) {
  extern __shared__ __align__(128) uint8_t raw_shared[];
  ClusterRouter(args, *reinterpret_cast<Shared*>(raw_shared)).Run();
}

}  // namespace

bool FitsGateRoute(const MatrixView& gate, const RouteArgs& route) {
  return gate.format == ValueFormat::kBf16 && gate.rows == kExperts && gate.cols <= kMaxHidden &&
         gate.cols % kColumns == 0 && route.shape.experts_per_token <= kMaxSlots &&
         route.step.rows <= kMaxGateRouteRows;
}

cudaError_t RunGateRoute(const GateRouteArgs& args, cudaStream_t stream) {
  if (const cudaError_t error =
          cudaFuncSetAttribute(GateRouteKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(sizeof(Shared)))) {
    return error;
  }
  cudaLaunchConfig_t config = {};
  const int clusters = (args.route.step.rows + kRows - 1) / kRows;
  config.gridDim = dim3(static_cast<unsigned>(clusters * kRanks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kRanks, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, GateRouteKernel, args);
}

}  // namespace baton::kernels::cuda
