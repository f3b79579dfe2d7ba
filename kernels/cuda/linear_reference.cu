#include "kernels/cuda/code_order.cuh"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"

// The linears of linear.h in the CPU back end's order of sums (R11 of contracts.md 1.3): 16 lanes
// by fma over a block of K, their tree, one promotion by the weight's scale; that of the activation
// is in its values, a power of two, which gives the same bits. Bit-equal to the CPU; one half warp
// an output, no tensor cores, no tiling: it is there to be compared with.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;
constexpr int kOutputs = kThreads / kLanes;  // of a block of threads
constexpr int kBlockK = 128;

// Where R1 puts the scales of a weight.
enum class Promotion { kNone, kPer128, kPer32 };

struct Dot {
  MatrixView weight;
  Promotion promotion;
  int output;
  const Bf16* x;  // row

  __device__ float X(int k) const { return DecodeBf16(x[k]); }

  __device__ float BlockScale(int k) const {
    return weight.scales[static_cast<int64_t>(output / 128) * (weight.cols / 128) + k / 128];
  }

  __device__ float GroupScale(int k) const {
    return DecodeE8m0(
        weight.exponents[static_cast<int64_t>(output) * (weight.cols / kFp4Group) + k / kFp4Group]);
  }

  // The operand of the product.
  __device__ float W(int k) const {
    const int64_t row = static_cast<int64_t>(output) * weight.cols;
    switch (weight.format) {
      case ValueFormat::kF32:
        return reinterpret_cast<const float*>(weight.values)[row + k];
      case ValueFormat::kBf16:
        return DecodeBf16(reinterpret_cast<const Bf16*>(weight.values)[row + k]);
      case ValueFormat::kFp8: {
        const float value = DecodeE4m3(weight.values[row + PlaceOfFp8(k)]);
        return promotion == Promotion::kNone ? value * BlockScale(k) : value;
      }
      case ValueFormat::kFp4: {
        const int64_t at = row + PlaceOfFp4(k);
        const uint8_t pair = weight.values[at / 2];
        const float value = DecodeE2m1(at % 2 == 0 ? pair & 15 : pair >> 4);
        if (promotion == Promotion::kPer32 || value == 0.0f) return value;
        return value * (GroupScale(k) / BlockScale(k));
      }
    }
    return 0.0f;
  }

  __device__ float Scale(int k) const {
    const bool has_groups = promotion == Promotion::kPer32 && weight.format == ValueFormat::kFp4;
    return has_groups ? GroupScale(k) : BlockScale(k);
  }

  // Lanes over columns first .. last - 1, then their tree; lane 0 has the sum.
  __device__ float Sum(int first, int last) const {
    float sum = 0.0f;
    for (int k = first + static_cast<int>(threadIdx.x % kLanes); k < last; k += kLanes) {
      sum = Fma(X(k), W(k), sum);
    }
    for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_down_sync(kFullWarp, sum, d, kLanes);
    return sum;
  }

  __device__ float Run() const {
    if (promotion == Promotion::kNone) return Sum(0, weight.cols);
    const int step = promotion == Promotion::kPer32 ? kFp4Group : kBlockK;
    float acc = 0.0f;
    for (int k = 0; k < weight.cols; k += step) {
      acc = Fma(Sum(k, k + step), Scale(k), acc);
    }
    return acc;
  }
};

__device__ void Store(const LinearArgs& args, int64_t row, int output, float value) {
  const int64_t at = row * args.y_stride + output;
  switch (args.output) {
    case OutputFormat::kF32:
      static_cast<float*>(args.y)[at] = value;
      break;
    case OutputFormat::kBf16:
      static_cast<Bf16*>(args.y)[at] = EncodeBf16(value);
      break;
    case OutputFormat::kScaledF32:
      static_cast<float*>(args.y)[at] = RoundBf16(value) * args.output_scale;
      break;
  }
}

// Row `row` of y, outputs of this block of threads.
__device__ void RunRow(const LinearArgs& args, const MatrixView& weight, int row,
                       Promotion promotion) {
  const int output = static_cast<int>(blockIdx.x * kOutputs + threadIdx.x / kLanes);
  const int last = min(output, weight.rows - 1);  // whole warps take part in the shuffles
  const int64_t source = args.x_rows == nullptr ? row : args.x_rows[row];
  const int64_t first = source * args.x_stride + last / (weight.rows / args.groups) * weight.cols;
  const Dot dot = {weight, promotion, last, args.x + first};
  const float value = dot.Run();
  if (output < weight.rows && threadIdx.x % kLanes == 0) Store(args, row, output, value);
}

__global__ void LinearKernel(const __grid_constant__ LinearArgs args) {
  const int live = args.num_rows == nullptr ? args.rows : *args.num_rows * args.row_factor;
  const int row = static_cast<int>(blockIdx.y);
  if (row >= live) return;
  RunRow(args, args.weight, row, args.has_fp8_input ? Promotion::kPer128 : Promotion::kNone);
}

__global__ void ExpertLinearKernel(const __grid_constant__ ExpertLinearArgs args) {
  if (static_cast<int>(blockIdx.y) >= *args.num_tiles) return;
  const RowTile tile = args.tiles[blockIdx.y];
  const bool is_promoted = args.is_promoted[tile.expert] != 0;
  const bool is_second = blockIdx.z == 1;
  LinearArgs linear = args.linear;
  if (is_second) linear.y = args.second_y;
  const MatrixView* matrices = is_second ? args.second_matrices : args.matrices;
  for (int i = 0; i < tile.count; ++i) {
    RunRow(linear, matrices[tile.expert], tile.first + i,
           is_promoted ? Promotion::kPer32 : Promotion::kPer128);
  }
}

unsigned Blocks(int outputs) { return static_cast<unsigned>((outputs + kOutputs - 1) / kOutputs); }

// A thread per 16 bytes.
template <bool kIsFp4>
__global__ void OrderKernel(uint4* codes, size_t pieces) {
  const size_t i = blockIdx.x * static_cast<size_t>(kThreads) + threadIdx.x;
  if (i >= pieces) return;
  constexpr int kBits = kIsFp4 ? 4 : 8, kInWord = 32 / kBits;
  const uint4 piece = codes[i];
  const uint32_t in[4] = {piece.x, piece.y, piece.z, piece.w};
  uint32_t out[4] = {};
#pragma unroll
  for (int k = 0; k < 4 * kInWord; ++k) {
    const uint32_t code = in[k / kInWord] >> (k % kInWord * kBits) & ((1u << kBits) - 1u);
    const int place = kIsFp4 ? PlaceOfFp4(k) : PlaceOfFp8(k);
    out[place / kInWord] |= code << (place % kInWord * kBits);
  }
  codes[i] = make_uint4(out[0], out[1], out[2], out[3]);
}

}  // namespace

cudaError_t OrderCodes(uint8_t* codes, size_t bytes, ValueFormat format, cudaStream_t stream) {
  if (format != ValueFormat::kFp8 && format != ValueFormat::kFp4) return cudaSuccess;
  const size_t pieces = bytes / 16;
  const auto blocks = static_cast<unsigned>((pieces + kThreads - 1) / kThreads);
  const auto kernel = format == ValueFormat::kFp4 ? OrderKernel<true> : OrderKernel<false>;
  kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<uint4*>(codes), pieces);
  return cudaPeekAtLastError();
}

cudaError_t RunReferenceLinear(const LinearArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const dim3 grid(Blocks(args.weight.rows), static_cast<unsigned>(args.rows));
  LinearKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunReferenceExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream) {
  if (args.max_tiles == 0) return cudaSuccess;
  const dim3 grid(Blocks(args.linear.weight.rows), static_cast<unsigned>(args.max_tiles),
                  args.second_matrices == nullptr ? 1 : 2);
  ExpertLinearKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
