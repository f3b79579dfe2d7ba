#pragma once

#include <cstdint>

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mma.cuh"

// Shapes and the copying side of the kernels behind linear.h. The weights are the M side of the
// instruction (64 outputs a warpgroup and instruction), the rows of x its N side (8, 32, 64 or
// 128): every weight byte is read once where there are few rows. One warpgroup fills a ring of
// stages by cp.async, K ascending, weights as they are stored; the others widen the weights to bf16
// in registers, where the instruction takes them from, and empty it.
namespace baton::kernels::cuda {

enum class LinearKind { kBf16, kFp8, kFp4 };

constexpr int kRowBytes = 128;  // of a swizzled row of x: 64 columns
constexpr int kGroupThreads = 128;
constexpr int kStepK = 16;     // of an instruction
constexpr int kUnitSteps = 4;  // instructions that are waited for together

__host__ __device__ constexpr int WeightBits(LinearKind kind) {
  return kind == LinearKind::kBf16 ? 16 : (kind == LinearKind::kFp8 ? 8 : 4);
}

// How a block of threads is laid out for tiles of kN rows of x. kOwnBlocks: blocks of 64 outputs
// that a multiplying warpgroup has. kHasBf16: some weight is bf16. kHasSegments: a block adds
// segments of a sum up, which in a cluster different ones have. Many rows' bf16 with segments have
// a launch of their own.
template <int kN, int kOwnBlocks, bool kHasBf16, bool kHasSegments>
struct RingShape {
  static constexpr int kRows = kN;
  static constexpr int kMBlocks = kOwnBlocks;
  static constexpr bool kIsSegmented = kHasSegments;
  static constexpr bool kTakesBf16 = kHasBf16;
  static constexpr bool kTakesCodes = kN < 128 || !kHasBf16 || !kHasSegments;
  static constexpr int kConsumers = kN == 128 ? 2 : 1;  // warpgroups that multiply
  static constexpr int kM = 64 * kConsumers * kMBlocks;
  static constexpr int kThreads = kGroupThreads * (kConsumers + 1);
  static constexpr bool kIsSmallest = kN == 8 && !kHasBf16;
  static constexpr int kBlocks = kN == 128 ? 1 : (kIsSmallest ? 3 : 2);  // of a multiprocessor
  // Registers of a thread that copies and of one that multiplies; what a block starts with in all.
  static constexpr int kCopyRegisters = kN == 128 ? 56 : (kIsSmallest ? 40 : 72);
  static constexpr int kMultiplyRegisters = kN == 128 ? 224 : (kIsSmallest ? 120 : 184);
  // A stage is two units of 64 outputs by 64 columns for each warpgroup.
  static constexpr int kBlockK = 128 / kMBlocks;  // its columns
  static __host__ __device__ constexpr int WeightRowBytes(LinearKind kind) {
    return kBlockK * WeightBits(kind) / 8;
  }
  static constexpr int kPanels = kBlockK / 64;
  static constexpr int kPanelBytes = kN * kRowBytes;
  static constexpr int kWeightBytes =
      kM * WeightRowBytes(kHasBf16 ? LinearKind::kBf16 : LinearKind::kFp8);
  static constexpr int kStageBytes = kWeightBytes + kPanels * kPanelBytes;
  static constexpr int NumStages() {
    if (kN == 8) return kHasBf16 ? 6 : 7;
    if (kN == 32) return kHasBf16 ? 4 : 6;
    if (kN == 64) return kHasBf16 ? 3 : 4;
    return kStageBytes > 48 * 1024 ? 3 : (kStageBytes > 32 * 1024 ? 4 : 6);
  }
  static constexpr int kStages = NumStages();
  static constexpr int kOut = kStages * kStageBytes;  // offsets
  static constexpr int kOutStride = 65;
  // Outputs of a warpgroup's block as fp32. Of 128 rows they lie where the stages were, in a
  // cluster; else they leave from registers, or as bf16, behind the stages.
  static constexpr int kFloatOutBytes = (kN * kOutStride * 4 + 127) / 128 * 128;
  static constexpr bool kHasWideTiles = kN == 128;
  static constexpr int kOutBytes = kHasWideTiles ? kN * kRowBytes : kFloatOutBytes;
  static_assert(!kHasWideTiles || kConsumers * kMBlocks * kFloatOutBytes <= kOut);
  static constexpr int kSources = kOut + kConsumers * kOutBytes;
  static constexpr int kBarriers = (kSources + kN * 4 + 7) / 8 * 8;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8;
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 * 1024);

  static __device__ uint32_t Full(uint32_t shared, uint32_t stage) {
    return shared + kBarriers + 8 * stage;
  }
  static __device__ uint32_t Empty(uint32_t shared, uint32_t stage) {
    return shared + kBarriers + 8 * (kStages + stage);
  }
};

// Byte offset of 16-byte chunk `chunk` of a row in the 128-byte swizzle.
__device__ __forceinline__ int Swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// The same in a tile of weights, rows of kBytes bytes: eight neighbouring rows' pieces of one
// column lie in different banks.
template <int kBytes>
__device__ __forceinline__ int WeightOffset(int row, int chunk) {
  constexpr int kSpan = kBytes < 128 ? 128 / kBytes : 1;  // rows that share all banks
  constexpr int kMask = kBytes < 128 ? kBytes / 16 - 1 : 7;
  return row * kBytes + ((chunk ^ (row / kSpan & kMask)) << 4);
}

// What a block of threads works on: outputs first_output .. end_output - 1 (kM at most) of rows,
// over blocks first_block .. end_block - 1 of 128 columns.
struct TileJob {
  MatrixView weight;
  RowTile rows;
  int first_output;
  int end_output;
  int first_block, end_block;
  const uint8_t* x;  // at the group's columns
  void* y;
};

// The copying warpgroup's view of one job.
template <LinearKind kKind, typename Ring>
class StageLoader {
 public:
  static constexpr int kBlockK = Ring::kBlockK;

  __device__ StageLoader(const LinearArgs& args, const TileJob& job, uint8_t* shared)
      : args_(args),
        job_(job),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x % kGroupThreads)),
        row_(thread_ / kChunks),
        piece_(thread_ % kChunks),
        num_outputs_(job.end_output - job.first_output),
        row_bytes_(static_cast<int64_t>(job.weight.cols) * WeightBits(kKind) / 8),
        from_(job.weight.values + (job.first_output + row_) * row_bytes_ + piece_ * 16) {}

  // Starts the copies of block `block` of kBlockK columns.
  __device__ void Load(int block, int stage) const {
    uint8_t* to = shared_ + stage * Ring::kStageBytes;
    const uint8_t* from = from_ + static_cast<int64_t>(block) * kWidth;
    const uint32_t at = SharedAddress(to) + WeightOffset<kWidth>(row_, piece_);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const bool is_valid = row_ + i * kRowStep < num_outputs_;
      CopyAsync16(at + i * kRowStep * kWidth, is_valid ? from : job_.weight.values, is_valid);
      from += kRowStep * row_bytes_;
    }
    LoadX(block, to + Ring::kWeightBytes);
  }

 private:
  static constexpr int kWidth = Ring::WeightRowBytes(kKind);
  static constexpr int kChunks = kWidth / 16;
  static constexpr int kRowStep = kGroupThreads / kChunks;
  static constexpr int kPieces = Ring::kM / kRowStep;
  static_assert(kPieces >= 1 && kRowStep % 8 == 0);  // the swizzle repeats every 8 rows

  __device__ void LoadX(int block, uint8_t* to) const {
    constexpr int kPerPanel = Ring::kRows * 8;
    constexpr int kAll = kPerPanel * (kBlockK / 64);
    const auto* sources = reinterpret_cast<const int32_t*>(shared_ + Ring::kSources);
    const int64_t row_bytes = args_.x_stride * 2;
    const uint8_t* x = job_.x + static_cast<int64_t>(block) * kBlockK * 2;
#pragma unroll
    for (int i = 0; i < (kAll + kGroupThreads - 1) / kGroupThreads; ++i) {
      const int piece = thread_ + i * kGroupThreads;
      if (kAll % kGroupThreads != 0 && piece >= kAll) break;
      const int panel = piece / kPerPanel, row = piece / 8 % Ring::kRows, chunk = piece % 8;
      const int32_t source = sources[row];
      CopyAsync16(SharedAddress(to) + panel * Ring::kPanelBytes + Swizzled(row, chunk),
                  x + panel * kRowBytes + chunk * 16 + (source < 0 ? 0 : source) * row_bytes,
                  source >= 0);
    }
  }

  const LinearArgs& args_;
  const TileJob& job_;
  uint8_t* shared_;
  const int thread_, row_, piece_, num_outputs_;
  const int64_t row_bytes_;
  const uint8_t* from_;
};

}  // namespace baton::kernels::cuda
