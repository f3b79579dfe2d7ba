#pragma once

#include <cstdint>

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mma.cuh"

// Shapes and the copying side of the kernels behind linear.h. The weights are the M side of the
// instruction (64 outputs a warpgroup and instruction), the rows of x its N side (8, 32, 64 or
// 128): every weight byte is read once where there are few rows. One warpgroup fills a ring of
// stages by cp.async, K ascending, weights as they are stored; the others widen the weights to bf16
// in registers, where the instruction takes them from, and empty it. Where one tile has all rows
// those come by tensor copies, which one thread starts.
namespace baton::kernels::cuda {

enum class LinearKind { kBf16, kFp8, kFp4 };

constexpr int kRowBytes = 128;  // of a swizzled row of x: 64 columns
constexpr int kGroupThreads = 128;
constexpr int kStepK = 16;     // of an instruction
constexpr int kUnitSteps = 4;  // instructions that are waited for together

__host__ __device__ constexpr int WeightBits(LinearKind kind) {
  return kind == LinearKind::kBf16 ? 16 : (kind == LinearKind::kFp8 ? 8 : 4);
}

// Formats that a kernel takes.
enum class Weights { kAny, kCodes, kBf16 };

// How a block of threads is laid out for tiles of kN rows of x. kHasSegments: a block adds segments
// of a sum up, which in a cluster different ones have. kMultiplying: warpgroups that multiply.
// kOwnBlocks: blocks of 64 outputs that each has. kHasTensors: x comes by tensor copies. kResident:
// blocks of a multiprocessor.
// kIsForClusters: the blocks of a sum's segments always make a cluster.
template <int kN, Weights kTakes, bool kHasSegments, int kMultiplying = 1, int kOwnBlocks = 1,
          bool kHasTensors = false, int kResident = kN == 128 ? 1 : 2, bool kIsForClusters = false>
struct RingShape {
  static constexpr int kRows = kN;
  static constexpr int kMBlocks = kOwnBlocks;
  static constexpr bool kIsSegmented = kHasSegments;
  static constexpr bool kTakesBf16 = kTakes != Weights::kCodes;
  static constexpr bool kTakesCodes = kTakes != Weights::kBf16;  // fp8,
  static constexpr bool kTakesFp4 = kTakesCodes && !kHasTensors;
  static constexpr int kConsumers = kMultiplying;
  static constexpr bool kHasTensorX = kHasTensors;
  static constexpr int kM = 64 * kConsumers * kMBlocks;
  static constexpr int kThreads = kGroupThreads * (kConsumers + 1);
  static constexpr bool kIsSmallest = kN == 8 && !kTakesBf16;
  static constexpr int kBlocks = kIsSmallest ? 3 : kResident;
  // Registers of a thread that copies and of one that multiplies; what a block starts with, on
  // average, is what it would have with so many blocks on a multiprocessor.
  static constexpr int kRegisterBlocks = kConsumers == 1 && kBlocks < 2 ? 2 : kBlocks;
  static constexpr int kMeanRegisters = 65536 / (kThreads * kRegisterBlocks) / 8 * 8;
  static constexpr int kCopyRegisters =
      kMeanRegisters <= 80 ? 40 : (kConsumers > 1 || kN * kMBlocks == 256 ? 56 : 72);
  static constexpr int kMultiplyRegisters =
      (kMeanRegisters * (kConsumers + 1) - kCopyRegisters) / kConsumers / 8 * 8;
  // A stage is two units of 64 outputs by 64 columns for each warpgroup.
  static constexpr int kBlockK = 128 / kMBlocks;  // its columns
  static __host__ __device__ constexpr int WeightRowBytes(LinearKind kind) {
    return kBlockK * WeightBits(kind) / 8;
  }
  static constexpr int kPanels = kBlockK / 64;
  static constexpr int kPanelBytes = kN * kRowBytes;
  static constexpr int kWeightBytes =
      kM * WeightRowBytes(kTakesBf16 ? LinearKind::kBf16 : LinearKind::kFp8);
  static constexpr int kStageBytes = kWeightBytes + kPanels * kPanelBytes;
  // Outputs of a warpgroup's block as fp32. In a cluster they lie where the stages were, else
  // behind them; but those of 128 rows leave from registers, or as bf16.
  static constexpr int kFloatOutBytes = kN * 64 * 4;
  static constexpr bool kHasWideTiles = kN == 128;
  static constexpr int kOutBytes =
      kIsForClusters ? 0 : (kHasWideTiles ? kN * kRowBytes : kFloatOutBytes);
  static constexpr int kBlockBytes = 228 * 1024 / kBlocks - 1024;  // one can have at most
  static constexpr int kMostStages = kHasTensorX ? 12 : (kIsSmallest ? 7 : 6);
  static constexpr int NumStages() {
    const int fixed = kConsumers * kOutBytes + kN * 4 + 16 * kMostStages + 8;
    const int stages = (kBlockBytes - fixed) / kStageBytes;
    return stages < kMostStages ? stages : kMostStages;
  }
  static constexpr int kStages = NumStages();
  static_assert(kStages >= 2);
  static constexpr int kOut = kStages * kStageBytes;  // offsets
  static_assert(kConsumers * kMBlocks * kFloatOutBytes <= kOut);
  static constexpr int kSources = kOut + kConsumers * kOutBytes;
  static constexpr int kBarriers = (kSources + kN * 4 + 7) / 8 * 8;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8;
  static_assert(kSharedBytes <= kBlockBytes);

  static __device__ uint32_t Full(uint32_t shared, uint32_t stage) {
    return shared + kBarriers + 8 * stage;
  }
  static __device__ uint32_t Empty(uint32_t shared, uint32_t stage) {
    return shared + kBarriers + 8 * (kStages + stage);
  }
};

// As Swizzled in a tile of weights, rows of kBytes bytes: eight neighbouring rows' pieces of one
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
  const uint8_t* x;   // at the group's columns
  const void* x_map;  // of tensor copies: all of x, and the group's first column
  int x_column;
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
    if constexpr (!Ring::kHasTensorX) LoadX(block, to + Ring::kWeightBytes);
  }

  // Starts the copies of x, by one thread.
  __device__ void LoadTensorX(int block, int stage, uint32_t barrier) const {
    const uint32_t to = SharedAddress(shared_ + stage * Ring::kStageBytes + Ring::kWeightBytes);
    BarrierExpect(barrier, Ring::kPanels * Ring::kPanelBytes);
#pragma unroll
    for (int panel = 0; panel < Ring::kPanels; ++panel) {
      CopyTensor(to + panel * Ring::kPanelBytes, job_.x_map,
                 job_.x_column + block * kBlockK + panel * 64, job_.rows.first, barrier);
    }
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
