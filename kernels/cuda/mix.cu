#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/mix.h"
#include "kernels/cuda/row_math.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;         // of a product's sum (R11)
constexpr int kManyRows = 256;     // from here on products share reads of fn among more rows
constexpr int kSiteThreads = 512;  // mix and normalise a row; one more warp splits its products
constexpr int kFewStreams = 4;     // the usual number, unrolled

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

// Grid: (rows, pieces of the width). A thread has eight columns of all streams, at most kMost.
template <int kMost>
__global__ void __launch_bounds__(kThreads) LeaveSiteKernel(LeaveSiteArgs args) {
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int num_streams = args.shape.streams;
  const int column = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (IsPad(args.step.num_rows, row) || column >= hidden) return;
  const float* post = args.post + row * num_streams;
  const float* comb = args.comb + row * num_streams * num_streams;
  Bf16* streams = args.streams + static_cast<int64_t>(row) * num_streams * hidden + column;
  float branch[8], old[kMost][8];
  LoadEight(args.branch + static_cast<int64_t>(row) * hidden + column, branch);
#pragma unroll
  for (int j = 0; j < kMost; ++j) {
    if (j < num_streams) LoadEight(streams + j * hidden, old[j]);
  }
#pragma unroll
  for (int k = 0; k < kMost; ++k) {
    if (k >= num_streams) break;
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = post[k] * branch[i];
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= num_streams) break;
      const float share = comb[j * num_streams + k];
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += share * old[j][i];
    }
    StoreEight(sum, streams + k * hidden);
  }
}

// How a block of threads is laid out for products: kLanes threads, each with kOutputs outputs of
// kRows rows, times groups of both. Columns go through shared memory in pieces, a few ahead.
template <int kOutputs, int kRows, int kOutputGroups, int kRowGroups, int kColumns, int kStages>
struct ProductShape {
  static constexpr int kOutputsOfThread = kOutputs, kRowsOfThread = kRows;
  static constexpr int kNumOutputs = kOutputs * kOutputGroups, kNumRows = kRows * kRowGroups;
  static constexpr int kGroups = kOutputGroups;
  static constexpr int kPiece = kColumns, kDepth = kStages;
  static constexpr int kNumThreads = kLanes * kOutputGroups * kRowGroups;

  struct Stage {
    // The pad keeps half warps off each other's banks where they have five outputs each.
    float fn[kNumOutputs][kColumns + 16];
    Bf16 x[kNumRows][kColumns + 8];
  };
  static constexpr int kSharedBytes = kStages * static_cast<int>(sizeof(Stage));
};
using FewRows = ProductShape<1, 1, 1, 8, 1024, 4>;
using ManyRows = ProductShape<5, 8, 5, 2, 256, 3>;

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
    constexpr int kFnChunks = Shape::kPiece / 4, kXChunks = Shape::kPiece / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Shape::kNumOutputs * kFnChunks;
         i += Shape::kNumThreads) {
      const int output = i / kFnChunks, column = i % kFnChunks * 4;
      const bool is_valid = column < columns && FirstOutput() + output < args_.fn.rows;
      const int64_t row = is_valid ? FirstOutput() + output : 0;
      CopyAsync16(SharedAddress(&stage.fn[output][column]),
                  fn + row * args_.width + (is_valid ? first + column : 0), is_valid);
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

// Grid: (groups of rows, groups of outputs). The output behind fn's last is x . x.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kNumThreads) MixProductsKernel(MixProductsArgs args) {
  extern __shared__ __align__(16) uint8_t raw_stages[];
  __shared__ const Bf16* sources[Shape::kNumRows];
  constexpr int kOutputs = Shape::kOutputsOfThread, kRows = Shape::kRowsOfThread;
  auto* stages = reinterpret_cast<typename Shape::Stage*>(raw_stages);
  ProductLoader<Shape> loader(args, stages);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int output_group = thread / kLanes % Shape::kGroups;
  const int first_row = thread / kLanes / Shape::kGroups * kRows;
  const int outputs = args.fn.rows, own = output_group * kOutputs;
  const int square = outputs - loader.FirstOutput() - own;  // which of this thread's is x . x
  const int pieces = (args.width + Shape::kPiece - 1) / Shape::kPiece;
  if (thread < Shape::kNumRows) sources[thread] = loader.Source(thread);
  __syncthreads();
  float sums[kOutputs][kRows] = {};
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
    const auto& stage = stages[piece % Shape::kDepth];
#pragma unroll 8
    for (int i = lane; i < loader.Columns(piece); i += kLanes) {
      float x[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[r] = DecodeBf16(stage.x[first_row + r][i]);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const float w = stage.fn[own + o][i];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[o][r] = Fma(x[r], o == square ? x[r] : w, sums[o][r]);
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = sums[o][r];
      for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFullWarp, sum, d, kLanes);
      const int output = loader.FirstOutput() + own + o, row = loader.FirstRow() + first_row + r;
      if (lane != 0 || output > outputs || row >= args.rows || IsPad(args.num_rows, row)) continue;
      args.products[static_cast<int64_t>(row) * (outputs + 1) + output] = sum;
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

// comb is square; line `line` of it, a row or a column, is divided by its sum + epsilon.
__device__ void NormaliseLine(float* comb, int size, bool is_row, float epsilon) {
  const int line = LaneIndex();
  if (line < size) {
    float sum = 0.0f;
    float* first = comb + (is_row ? line * size : line);
    const int step = is_row ? 1 : size;
    for (int i = 0; i < size; ++i) sum += first[i * step];
    const float divisor = sum + epsilon;
    for (int i = 0; i < size; ++i) first[i * step] /= divisor;
  }
  __syncwarp();
}

// comb [S, S] from its logits: row softmax + epsilon, then Sinkhorn rounds (model.md 2.3).
__device__ void Sinkhorn(float* comb, const ModelShape& shape) {
  const int n = shape.streams;
  if (LaneIndex() < n) {
    float* row = comb + LaneIndex() * n;
    float largest = row[0], sum = 0.0f;
    for (int i = 1; i < n; ++i) largest = Larger(row[i], largest);
    for (int i = 0; i < n; ++i) {
      row[i] = ExpNeg(row[i] - largest);
      sum += row[i];
    }
    for (int i = 0; i < n; ++i) row[i] = row[i] / sum + shape.mix_epsilon;
  }
  __syncwarp();
  NormaliseLine(comb, n, false, shape.mix_epsilon);
  for (int i = 1; i < shape.sinkhorn_iterations; ++i) {
    NormaliseLine(comb, n, true, shape.mix_epsilon);
    NormaliseLine(comb, n, false, shape.mix_epsilon);
  }
}

// The same for four streams, an element a lane of the first sixteen. Sums have the same order.
__device__ float SinkhornOfFour(float x, const ModelShape& shape) {
  const int lane = LaneIndex() % 16, row = lane / 4 * 4, column = lane % 4;
  float largest = __shfl_sync(kFullWarp, x, row);
#pragma unroll
  for (int i = 1; i < 4; ++i) largest = Larger(__shfl_sync(kFullWarp, x, row + i), largest);
  x = ExpNeg(x - largest);
  const auto sum_of = [&x](int first, int step) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += __shfl_sync(kFullWarp, x, first + i * step);
    return sum;
  };
  x = x / sum_of(row, 1) + shape.mix_epsilon;
  x /= sum_of(column, 4) + shape.mix_epsilon;
  for (int i = 1; i < shape.sinkhorn_iterations; ++i) {
    x /= sum_of(row, 1) + shape.mix_epsilon;
    x /= sum_of(column, 4) + shape.mix_epsilon;
  }
  return x;
}

// By one warp: pre into shared memory, post to the row's place, comb's logits into shared memory.
__device__ void SplitMix(const EnterSiteArgs& args, int row, float* pre, float* comb) {
  const int n = args.shape.streams, outputs = args.is_head ? n : (2 + n) * n;
  const float* products = args.products + static_cast<int64_t>(row) * (outputs + 1);
  const float inverse =
      InverseRms(products[outputs], n * args.shape.hidden, args.shape.norm_epsilon);
  for (int i = LaneIndex(); i < outputs; i += kWarp) {
    const float product = products[i] * inverse;
    if (i < n) {
      pre[i] = Sigmoid(product * args.scale[0] + args.base[i]) + args.shape.mix_epsilon;
    } else if (i < 2 * n) {
      args.post[row * n + i - n] = 2.0f * Sigmoid(product * args.scale[1] + args.base[i]);
    } else {
      comb[i - 2 * n] = product * args.scale[2] + args.base[i];
    }
  }
  __syncwarp();
}

__device__ void FinishComb(const EnterSiteArgs& args, int row, float* comb) {
  const int n = args.shape.streams;
  if (n == kFewStreams) {
    const float x = SinkhornOfFour(comb[LaneIndex() % 16], args.shape);
    if (LaneIndex() < 16) args.comb[row * 16 + LaneIndex()] = x;
    return;
  }
  Sinkhorn(comb, args.shape);
  for (int i = LaneIndex(); i < n * n; i += kWarp) args.comb[row * n * n + i] = comb[i];
}

// u of eight columns: sum of pre[s] * streams[s], rounded.
template <int kMost>
__device__ void MixEight(const Bf16* streams, const ModelShape& shape, const float* pre,
                         float (&sum)[8]) {
  float x[kMost][8];
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s < shape.streams) LoadEight(streams + s * shape.hidden, x[s]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = pre[0] * x[0][i];
#pragma unroll
  for (int s = 1; s < kMost; ++s) {
    if (s >= shape.streams) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += pre[s] * x[s][i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = RoundBf16(sum[i]);
}

// A row, by 16 warps; the last warp splits the products and then normalises comb, which nothing
// here waits for.
template <int kMost>
__global__ void __launch_bounds__(kSiteThreads + kWarp) EnterSiteKernel(EnterSiteArgs args) {
  extern __shared__ __align__(16) float x[];
  __shared__ float pre[kMaxStreams], comb[kMaxStreams * kMaxStreams];
  __shared__ float inverse;
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int thread = static_cast<int>(threadIdx.x);
  if (IsPad(args.num_rows, row)) return;
  if (thread >= kSiteThreads) {
    SplitMix(args, row, pre, comb);
    __syncthreads();
    if (!args.is_head) FinishComb(args, row, comb);
    return;
  }
  const int source = args.x_rows == nullptr ? row : args.x_rows[row];
  const Bf16* streams = args.streams + static_cast<int64_t>(source) * args.shape.streams * hidden;
  __syncthreads();  // pre is there
  for (int column = 8 * thread; column < hidden; column += 8 * kSiteThreads) {
    float sum[8];
    MixEight<kMost>(streams + column, args.shape, pre, sum);
    *reinterpret_cast<float4*>(x + column) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    *reinterpret_cast<float4*>(x + column + 4) = make_float4(sum[4], sum[5], sum[6], sum[7]);
  }
  MeetAt(1, kSiteThreads);
  if (WarpIndex() == 0) {
    const float value = InverseRms(SquareSum(x, hidden), hidden, args.shape.norm_epsilon);
    if (LaneIndex() == 0) inverse = value;
  }
  MeetAt(1, kSiteThreads);
  const int64_t first = static_cast<int64_t>(row) * hidden;
  for (int base = 0; base < hidden; base += 8 * kSiteThreads) {
    const int column = base + 8 * thread;
    const bool has_values = column < hidden;
    float y[8] = {};
    if (has_values) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float scaled = x[column + i] * inverse;
        y[i] = RoundBf16(args.norm == nullptr ? scaled : args.norm[column + i] * scaled);
      }
      StoreEight(y, args.normed + first + column);
    }
    if (args.normed8 == nullptr) continue;
    QuantiseEight(y, has_values, args.normed8 + first + column);
  }
}

// Grid: (rows, S + 1): the streams, then the embedding.
__global__ void DraftNormKernel(DraftNormArgs args) {
  extern __shared__ float x[];
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int part = static_cast<int>(blockIdx.y), num_streams = args.shape.streams;
  if (IsPad(args.step.num_rows, row)) return;
  const bool is_embed = part == num_streams;
  LoadRow(is_embed ? args.embed + static_cast<int64_t>(args.step.token[row]) * hidden
                   : args.sources[row] + part * hidden,
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
  return args.rows < kManyRows ? LaunchProducts<FewRows>(args, stream)
                               : LaunchProducts<ManyRows>(args, stream);
}

cudaError_t RunEnterSite(const EnterSiteArgs& args, cudaStream_t stream) {
  const auto kernel = args.shape.streams <= kFewStreams ? EnterSiteKernel<kFewStreams>
                                                        : EnterSiteKernel<kMaxStreams>;
  kernel<<<Unsigned(args.rows), kSiteThreads + kWarp, RowBytes(args.shape.hidden), stream>>>(args);
  return cudaPeekAtLastError();
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
