#include "kernels/cuda/mix.h"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kProductRows = 4;  // rows that share a read of fn
constexpr int kProductOutputs = 8;
constexpr int kProductThreads = 16 * kProductOutputs;
constexpr int kProductColumns = 512;
constexpr int kProductStages = 4;

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

__global__ void LeaveSiteKernel(LeaveSiteArgs args) {
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  const int num_streams = args.shape.streams;
  if (IsPad(args.step.num_rows, row)) return;
  const float* post = args.post + row * num_streams;
  const float* comb = args.comb + row * num_streams * num_streams;
  Bf16* streams = args.streams + static_cast<int64_t>(row) * num_streams * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    float old[kMaxStreams];
    for (int j = 0; j < num_streams; ++j) old[j] = DecodeBf16(streams[j * hidden + i]);
    const float branch = DecodeBf16(args.branch[static_cast<int64_t>(row) * hidden + i]);
    for (int k = 0; k < num_streams; ++k) {
      float sum = post[k] * branch;
      for (int j = 0; j < num_streams; ++j) sum += comb[j * num_streams + k] * old[j];
      streams[k * hidden + i] = EncodeBf16(sum);
    }
  }
}

// Columns of fn and of the rows of x go through shared memory in pieces, a few ahead.
struct ProductStage {
  float fn[kProductOutputs]
          [kProductColumns + 16];  // the pad keeps half warps off each other's banks
  Bf16 x[kProductRows][kProductColumns];
};

class ProductLoader {
 public:
  __device__ ProductLoader(const MixProductsArgs& args, ProductStage* stages)
      : args_(args), stages_(stages) {
#pragma unroll
    for (int r = 0; r < kProductRows; ++r) {
      int row = min(FirstRow() + r, args.rows - 1);
      if (IsPad(args.num_rows, row)) row = 0;
      const int source = args.x_rows == nullptr ? row : args.x_rows[row];
      x_[r] = args.streams + static_cast<int64_t>(source) * args.width;
    }
  }

  __device__ int FirstRow() const { return static_cast<int>(blockIdx.x) * kProductRows; }
  __device__ int FirstOutput() const { return static_cast<int>(blockIdx.y) * kProductOutputs; }
  __device__ int Columns(int piece) const {
    return min(kProductColumns, args_.width - piece * kProductColumns);
  }

  __device__ void Load(int piece) {
    ProductStage& stage = stages_[piece % kProductStages];
    const int first = piece * kProductColumns, columns = Columns(piece);
    const float* fn = reinterpret_cast<const float*>(args_.fn.values);
    for (int i = static_cast<int>(threadIdx.x); i < kProductOutputs * kProductColumns / 4;
         i += kProductThreads) {
      const int output = i / (kProductColumns / 4), column = i % (kProductColumns / 4) * 4;
      const bool is_valid = column < columns && FirstOutput() + output < args_.fn.rows;
      const int64_t row = is_valid ? FirstOutput() + output : 0;
      CopyAsync16(SharedAddress(&stage.fn[output][column]),
                  fn + row * args_.width + (is_valid ? first + column : 0), is_valid);
    }
#pragma unroll
    for (int r = 0; r < kProductRows; ++r) {
      const int column = static_cast<int>(threadIdx.x) * 8;
      if (column >= kProductColumns) continue;
      const bool is_valid = column < columns;
      CopyAsync16(SharedAddress(&stage.x[r][column]), x_[r] + (is_valid ? first + column : 0),
                  is_valid);
    }
  }

 private:
  const MixProductsArgs& args_;
  ProductStage* stages_;
  const Bf16* x_[kProductRows];
};

// Grid: (groups of rows, groups of outputs). 16 threads an output; the last output is x . x.
__global__ void __launch_bounds__(kProductThreads) MixProductsKernel(MixProductsArgs args) {
  extern __shared__ __align__(16) uint8_t raw_stages[];
  auto* stages = reinterpret_cast<ProductStage*>(raw_stages);
  ProductLoader loader(args, stages);
  const int lane = static_cast<int>(threadIdx.x % 16), mine = static_cast<int>(threadIdx.x / 16);
  const int output = loader.FirstOutput() + mine, outputs = args.fn.rows;
  const int pieces = (args.width + kProductColumns - 1) / kProductColumns;
  const bool is_square = output >= outputs;
  float sums[kProductRows] = {};
  for (int piece = 0; piece < kProductStages - 1; ++piece) {
    if (piece < pieces) loader.Load(piece);
    CopyAsyncCommit();
  }
  for (int piece = 0; piece < pieces; ++piece) {
    CopyAsyncWait<kProductStages - 2>();
    __syncthreads();
    if (piece + kProductStages - 1 < pieces) loader.Load(piece + kProductStages - 1);
    CopyAsyncCommit();
    const ProductStage& stage = stages[piece % kProductStages];
#pragma unroll 8
    for (int i = lane; i < loader.Columns(piece); i += 16) {
      const float w = stage.fn[mine][i];
#pragma unroll
      for (int r = 0; r < kProductRows; ++r) {
        const float value = DecodeBf16(stage.x[r][i]);
        sums[r] = Fma(value, is_square ? value : w, sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kProductRows; ++r) {
    for (int d = 8; d > 0; d /= 2) sums[r] += __shfl_down_sync(kFullWarp, sums[r], d, 16);
    const int row = loader.FirstRow() + r;
    if (lane != 0 || output > outputs || row >= args.rows || IsPad(args.num_rows, row)) continue;
    args.products[static_cast<int64_t>(row) * (outputs + 1) + output] = sums[r];
  }
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

// By one warp: pre into shared memory, post and comb to the row's place.
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
  if (args.is_head) return;
  Sinkhorn(comb, args.shape);
  for (int i = LaneIndex(); i < n * n; i += kWarp) args.comb[row * n * n + i] = comb[i];
}

__global__ void EnterSiteKernel(EnterSiteArgs args) {
  extern __shared__ float x[];
  __shared__ float pre[kMaxStreams], comb[kMaxStreams * kMaxStreams];
  const int row = static_cast<int>(blockIdx.x), hidden = args.shape.hidden;
  if (IsPad(args.num_rows, row)) return;
  if (WarpIndex() == 0) SplitMix(args, row, pre, comb);
  __syncthreads();
  const int source = args.x_rows == nullptr ? row : args.x_rows[row];
  const Bf16* streams = args.streams + static_cast<int64_t>(source) * args.shape.streams * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    float sum = pre[0] * DecodeBf16(streams[i]);
    for (int s = 1; s < args.shape.streams; ++s) {
      sum += pre[s] * DecodeBf16(streams[s * hidden + i]);
    }
    x[i] = RoundBf16(sum);
  }
  __syncthreads();
  NormRow(x, hidden, args.norm, args.shape.norm_epsilon);
  Bf16* normed = args.normed + static_cast<int64_t>(row) * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    normed[i] = EncodeBf16(x[i]);
  }
  if (args.codes == nullptr) return;
  QuantiseRow(x, hidden, args.codes + static_cast<int64_t>(row) * hidden,
              args.scales + static_cast<int64_t>(row) * (hidden / kFp8Group));
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
  QuantiseRow(x, hidden, (is_embed ? args.embed_codes : args.stream_codes) + line * hidden,
              (is_embed ? args.embed_scales : args.stream_scales) + line * (hidden / kFp8Group));
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
  LeaveSiteKernel<<<Unsigned(args.step.rows), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunMixProducts(const MixProductsArgs& args, cudaStream_t stream) {
  constexpr int kBytes = kProductStages * sizeof(ProductStage);
  if (const cudaError_t error = cudaFuncSetAttribute(
          MixProductsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const dim3 grid(Unsigned((args.rows + kProductRows - 1) / kProductRows),
                  Unsigned((args.fn.rows + kProductOutputs) / kProductOutputs));
  MixProductsKernel<<<grid, kProductThreads, kBytes, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunEnterSite(const EnterSiteArgs& args, cudaStream_t stream) {
  EnterSiteKernel<<<Unsigned(args.rows), kThreads, RowBytes(args.shape.hidden), stream>>>(args);
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
