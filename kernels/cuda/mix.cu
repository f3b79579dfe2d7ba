#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/code_order.cuh"
#include "kernels/cuda/mix.h"
#include "kernels/cuda/mix_site.cuh"
#include "kernels/cuda/row_math.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNotFewRows = 64;        // from here on products share reads of rows among outputs,
constexpr int kSomeRows = 256;         // of fn among more rows,
constexpr int kManyRows = 4096;        // from here on among as many as fill the GPU
constexpr int kSiteThreads = 512;      // mix and normalise a row; one more warp splits its products
constexpr int kManySiteThreads = 128;  // where many rows keep the GPU busy

unsigned Unsigned(int n) { return static_cast<unsigned>(n); }
unsigned RowBytes(int width) { return Unsigned(width) * static_cast<unsigned>(sizeof(float)); }

__device__ bool IsPad(const int32_t* num_rows, int row) {
  return num_rows != nullptr && row >= *num_rows;
}

__global__ void EmbedKernel(EmbedKernelArgs args) {
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  if (IsPad(args.step.num_rows, row)) return;
  const Bf16* from = args.embed + static_cast<int64_t>(args.step.token[row]) * hidden;
  Bf16* to = args.streams + static_cast<int64_t>(row) * args.shape.streams * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    const Bf16 value = from[i];
    for (int s = 0; s < args.shape.streams; ++s) to[s * hidden + i] = value;
  }
}

// Grid: (rows, pieces of the width).
template <int kMost>
__global__ void __launch_bounds__(kThreads) LeaveSiteKernel(LeaveSiteArgs args) {
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int num_streams = args.shape.streams;
  const int column = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (IsPad(args.step.num_rows, row) || column >= hidden) return;
  Bf16* streams = args.streams + static_cast<int64_t>(row) * num_streams * hidden + column;
  LeaveEight<kMost>(args, row, column, [&](int stream, const uint4& values) {
    *reinterpret_cast<uint4*>(streams + stream * hidden) = values;
  });
}

// Where output 0, x . x, and the others lie in a row's products.
__device__ int ProductPlace(int output, int outputs) { return output == 0 ? outputs : output - 1; }

// How a block of threads is laid out for products: eight threads, each with two neighbouring lanes
// of kOutputs outputs of kRows rows, times groups of both. Columns go through shared memory in
// pieces, a few ahead.
template <int kOutputs, int kRows, int kOutputGroups, int kRowGroups, int kColumns, int kStages>
struct ProductShape {
  static constexpr int kOutputsOfThread = kOutputs, kRowsOfThread = kRows;
  static constexpr int kNumOutputs = kOutputs * kOutputGroups, kNumRows = kRows * kRowGroups;
  static constexpr int kGroups = kOutputGroups;
  static constexpr int kPiece = kColumns, kDepth = kStages;
  static constexpr int kFours = kColumns / kLanes / kStepsTogether;  // of a lane
  static constexpr int kNumThreads = kLanes / 2 * kOutputGroups * kRowGroups;

  struct Stage {
    // Even lanes, then odd ones; four words more than a multiple of 32, so that eight threads read
    // from all banks.
    static constexpr int kValues = kFours * kNumOutputs * kStepsTogether;
    float fn[2][kLanes / 2][kValues + (36 - kValues % 32) % 32];
    Bf16 x[kNumRows][kColumns + 8];

    __device__ float* Four(int lane, int four, int output) {
      return fn[lane % 2][lane / 2] + (four * kNumOutputs + output) * kStepsTogether;
    }
  };
  static constexpr int kSharedBytes = kStages * static_cast<int>(sizeof(Stage));
};
using FewRows = ProductShape<1, 1, 1, 8, 1024, 4>;
using NotFewRows = ProductShape<1, 1, 4, 8, 512, 4>;
using SomeRows = ProductShape<5, 4, 5, 4, 256, 3>;
using ManyRows = ProductShape<5, 4, 5, 16, 256, 3>;

__device__ void LoadFour(const float* from, float (&x)[kStepsTogether]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  x[0] = four.x;
  x[1] = four.y;
  x[2] = four.z;
  x[3] = four.w;
}

template <typename Shape>
class ProductLoader {
 public:
  using Stage = typename Shape::Stage;

  __device__ ProductLoader(const MixProductsArgs& args, Stage* stages)
      : args_(args), stages_(stages) {}

  __device__ int FirstRow() const { return static_cast<int>(blockIdx.x) * Shape::kNumRows; }
  __device__ int FirstOutput() const { return static_cast<int>(blockIdx.y) * Shape::kNumOutputs; }
  __device__ int Columns(int piece) const {
    return min(Shape::kPiece, args_.width - piece * Shape::kPiece);
  }
  // The row of streams; pads read row 0.
  __device__ const Bf16* Source(int r) const {
    int row = min(FirstRow() + r, args_.rows - 1);
    if (IsPad(args_.num_rows, row)) row = 0;
    const int source = args_.x_rows == nullptr ? row : args_.x_rows[row];
    return args_.streams + static_cast<int64_t>(source) * args_.width;
  }

  __device__ void Load(int piece, const Bf16* const* sources) {
    Stage& stage = stages_[piece % Shape::kDepth];
    const int first = piece * Shape::kPiece, columns = Columns(piece);
    const float* fn = reinterpret_cast<const float*>(args_.fn.values);
    constexpr int kOutputs = Shape::kNumOutputs, kXChunks = Shape::kPiece / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kOutputs * Shape::kFours * kLanes;
         i += Shape::kNumThreads) {
      const int output = i % kOutputs, four = i / kOutputs % Shape::kFours;
      const int lane = i / kOutputs / Shape::kFours, column = four * kStepsTogether * kLanes;
      const int line = FirstOutput() + output - 1;
      const bool is_valid = column < columns && line >= 0 && line < args_.fn.rows;
      const int64_t place = PlaceOfF32(is_valid ? line : 0, lane + (is_valid ? first + column : 0),
                                       args_.fn.rows, args_.width);
      CopyAsync16(SharedAddress(stage.Four(lane, four, output)), fn + place, is_valid);
    }
    for (int i = static_cast<int>(threadIdx.x); i < Shape::kNumRows * kXChunks;
         i += Shape::kNumThreads) {
      const int r = i / kXChunks, column = i % kXChunks * 8;
      const bool is_valid = column < columns;
      CopyAsync16(SharedAddress(&stage.x[r][column]), sources[r] + (is_valid ? first + column : 0),
                  is_valid);
    }
  }

 private:
  const MixProductsArgs& args_;
  Stage* stages_;
};

// Grid: (groups of rows, groups of outputs). Output 0 is x . x, the others are fn's.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kNumThreads) MixProductsKernel(MixProductsArgs args) {
  extern __shared__ __align__(16) uint8_t raw_stages[];
  __shared__ const Bf16* sources[Shape::kNumRows];
  constexpr int kOutputs = Shape::kOutputsOfThread, kRows = Shape::kRowsOfThread;
  constexpr int kFourColumns = kStepsTogether * kLanes;
  auto* stages = reinterpret_cast<typename Shape::Stage*>(raw_stages);
  ProductLoader<Shape> loader(args, stages);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % (kLanes / 2);
  const int output_group = thread / (kLanes / 2) % Shape::kGroups;
  const int first_row = thread / (kLanes / 2) / Shape::kGroups * kRows;
  const int outputs = args.fn.rows, own = output_group * kOutputs;
  const bool has_square = loader.FirstOutput() + own == 0;
  const int pieces = (args.width + Shape::kPiece - 1) / Shape::kPiece;
  for (int r = thread; r < Shape::kNumRows; r += Shape::kNumThreads) sources[r] = loader.Source(r);
  __syncthreads();
  float2 sums[kOutputs][kRows] = {};
  for (int piece = 0; piece < Shape::kDepth - 1; ++piece) {
    if (piece < pieces) loader.Load(piece, sources);
    CopyAsyncCommit();
  }
  for (int piece = 0; piece < pieces; ++piece) {
    CopyAsyncWait<Shape::kDepth - 2>();
    __syncthreads();
    const int next = piece + Shape::kDepth - 1;
    if (next < pieces) loader.Load(next, sources);
    CopyAsyncCommit();
    auto& stage = stages[piece % Shape::kDepth];
    for (int four = 0; four < loader.Columns(piece) / kFourColumns; ++four) {
      float2 x[kRows][kStepsTogether];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Bf16* from = &stage.x[first_row + r][four * kFourColumns + 2 * lane];
#pragma unroll
        for (int i = 0; i < kStepsTogether; ++i) x[r][i] = LoadTwo(from + i * kLanes);
      }
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const bool is_square = o == 0 && has_square;
        float even[kStepsTogether], odd[kStepsTogether];
        LoadFour(stage.Four(2 * lane, four, own + o), even);
        LoadFour(stage.Four(2 * lane + 1, four, own + o), odd);
#pragma unroll
        for (int i = 0; i < kStepsTogether; ++i) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[o][r].x = Fma(x[r][i].x, is_square ? x[r][i].x : even[i], sums[o][r].x);
            sums[o][r].y = Fma(x[r][i].y, is_square ? x[r][i].y : odd[i], sums[o][r].y);
          }
        }
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = SumOfLanes(sums[o][r]);
      const int output = loader.FirstOutput() + own + o, row = loader.FirstRow() + first_row + r;
      if (lane != 0 || output > outputs || row >= args.rows || IsPad(args.num_rows, row)) continue;
      args.products[static_cast<int64_t>(row) * (outputs + 1) + ProductPlace(output, outputs)] =
          sum;
    }
  }
}

template <typename Shape>
cudaError_t LaunchProducts(const MixProductsArgs& args, cudaStream_t stream) {
  const auto kernel = MixProductsKernel<Shape>;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes)) {
    return error;
  }
  const dim3 grid(Unsigned((args.rows + Shape::kNumRows - 1) / Shape::kNumRows),
                  Unsigned(args.fn.rows / Shape::kNumOutputs + 1));
  kernel<<<grid, Shape::kNumThreads, Shape::kSharedBytes, stream>>>(args);
  return cudaPeekAtLastError();
}

// A row; the last warp splits the products and then normalises comb, which nothing here waits for.
template <int kMost, int kSite>
__global__ void __launch_bounds__(kSite + kWarp) EnterSiteKernel(EnterSiteArgs args) {
  extern __shared__ __align__(16) float x[];
  __shared__ float pre[kMaxStreams], comb[kMaxStreams * kMaxStreams];
  __shared__ float inverse;
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int thread = static_cast<int>(threadIdx.x);
  if (IsPad(args.num_rows, row)) return;
  if (thread >= kSite) {
    SplitMix(args, row, args.products + static_cast<int64_t>(row) * (NumOutputs(args) + 1), pre,
             comb);
    __syncthreads();
    if (!args.is_head) FinishComb(args, row, comb);
    return;
  }
  const int source = args.x_rows == nullptr ? row : args.x_rows[row];
  const Bf16* streams = args.streams + static_cast<int64_t>(source) * args.shape.streams * hidden;
  __syncthreads();  // pre is there
  for (int column = 8 * thread; column < hidden; column += 8 * kSite) {
    float sum[8];
    MixEight<kMost>(streams + column, args.shape, pre, sum);
    *reinterpret_cast<float4*>(x + column) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    *reinterpret_cast<float4*>(x + column + 4) = make_float4(sum[4], sum[5], sum[6], sum[7]);
  }
  MeetAt(1, kSite);
  if (WarpIndex() == 0) {
    const float value = InverseRms(SquareSum(x, hidden), hidden, args.shape.norm_epsilon);
    if (LaneIndex() == 0) inverse = value;
  }
  MeetAt(1, kSite);
  for (int base = 0; base < hidden; base += 8 * kSite) {
    const int column = base + 8 * thread;
    StoreNormed(args, row, column, column < hidden, x, inverse);
  }
}

// Grid: (rows, S + 1): the streams, then the embedding.
__global__ void DraftNormKernel(DraftNormArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int part = static_cast<int>(blockIdx.y), num_streams = args.shape.streams;
  if (IsPad(args.step.num_rows, row)) return;
  const bool is_embed = part == num_streams;
  const uint16_t* source = args.sources != nullptr
                               ? args.sources[row]
                               : args.streams + static_cast<int64_t>(row) * num_streams * hidden;
  LoadRow(is_embed ? args.embed + static_cast<int64_t>(args.step.token[row]) * hidden
                   : source + part * hidden,
          hidden, x);
  NormRow(x, hidden, is_embed ? args.enorm : args.hnorm, args.shape.norm_epsilon);
  const int64_t line = is_embed ? row : static_cast<int64_t>(row) * num_streams + part;
  QuantiseRow(x, hidden, (is_embed ? args.embed8 : args.streams8) + line * hidden);
}

__global__ void DraftAddKernel(DraftAddArgs args) {
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  if (IsPad(args.step.num_rows, row)) return;
  Bf16* streams = args.streams + static_cast<int64_t>(row) * args.shape.streams * hidden;
  const Bf16* branch = args.branch + static_cast<int64_t>(row) * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < args.shape.streams * hidden; i += kThreads) {
    streams[i] = EncodeBf16(DecodeBf16(streams[i]) + DecodeBf16(branch[i % hidden]));
  }
}

}  // namespace

cudaError_t RunEmbed(const EmbedKernelArgs& args, cudaStream_t stream) {
  EmbedKernel<<<Unsigned(args.step.rows), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunLeaveSite(const LeaveSiteArgs& args, cudaStream_t stream) {
  const dim3 grid(Unsigned(args.step.rows),
                  Unsigned((args.shape.hidden / 8 + kThreads - 1) / kThreads));
  if (args.shape.streams <= kFewStreams) {
    LeaveSiteKernel<kFewStreams><<<grid, kThreads, 0, stream>>>(args);
  } else {
    LeaveSiteKernel<kMaxStreams><<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaPeekAtLastError();
}

cudaError_t RunMixProducts(const MixProductsArgs& args, cudaStream_t stream) {
  if (args.rows < kNotFewRows) return LaunchProducts<FewRows>(args, stream);
  if (args.rows < kSomeRows) return LaunchProducts<NotFewRows>(args, stream);
  return args.rows < kManyRows ? LaunchProducts<SomeRows>(args, stream)
                               : LaunchProducts<ManyRows>(args, stream);
}

template <int kSite>
cudaError_t LaunchEnterSite(const EnterSiteArgs& args, cudaStream_t stream) {
  const auto kernel = args.shape.streams <= kFewStreams ? EnterSiteKernel<kFewStreams, kSite>
                                                        : EnterSiteKernel<kMaxStreams, kSite>;
  kernel<<<Unsigned(args.rows), kSite + kWarp, RowBytes(args.shape.hidden), stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunEnterSite(const EnterSiteArgs& args, cudaStream_t stream) {
  return args.rows < kSomeRows ? LaunchEnterSite<kSiteThreads>(args, stream)
                               : LaunchEnterSite<kManySiteThreads>(args, stream);
}

cudaError_t RunDraftNorm(const DraftNormArgs& args, cudaStream_t stream) {
  const dim3 grid(Unsigned(args.step.rows), Unsigned(args.shape.streams + 1));
  DraftNormKernel<<<grid, kThreads, RowBytes(args.shape.hidden), stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunDraftAdd(const DraftAddArgs& args, cudaStream_t stream) {
  DraftAddKernel<<<Unsigned(args.step.rows), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
