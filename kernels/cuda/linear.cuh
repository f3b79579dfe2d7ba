#pragma once

#include <cstdint>

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mma.cuh"

// Shapes and the copying side of the kernels behind linear.h. The weights are
// the M side of the instruction (64 output rows a warpgroup), the rows of x its
// N side (8, 32 or 128): every weight byte is read once where there are few
// rows. K goes in blocks of 128 bytes of x (128 fp8 or 64 bf16 values),
// ascending, through a ring of stages that one warpgroup fills by cp.async and
// the others empty. Weights that change form (FP4 to e4m3, fp8 to bf16) pass
// through a second, short ring, converted by the thread that copied them.
namespace baton::kernels::cuda {

enum class LinearKind { kFp8, kFp4, kBf16, kWidened };

constexpr int kRowBytes = 128;  // of a swizzled row: a block of K
constexpr int kGroupThreads = 128;
constexpr int kConvertedTiles = 2;

__host__ __device__ constexpr bool IsFp8Input(LinearKind kind) {
  return kind == LinearKind::kFp8 || kind == LinearKind::kFp4;
}
__host__ __device__ constexpr bool IsConverted(LinearKind kind) {
  return kind == LinearKind::kFp4 || kind == LinearKind::kWidened;
}
__host__ __device__ constexpr int BlockK(LinearKind kind) { return IsFp8Input(kind) ? 128 : 64; }

// How a block of threads is laid out for tiles of kN rows of x. kHasConverted:
// some kind it takes is converted; kHasPlain: some is not.
template <int kN, bool kHasPlain, bool kHasConverted>
struct RingShape {
  static constexpr int kRows = kN;
  static constexpr int kConsumers = kN == 128 ? 2 : 1;  // warpgroups that multiply
  static constexpr int kM = 64 * kConsumers;
  static constexpr int kThreads = kGroupThreads * (kConsumers + 1);
  static constexpr int kBlocks = kN == 128 ? 1 : (kN == 32 ? 2 : 3);  // a multiprocessor can have
  static constexpr int kABytes = kM * kRowBytes;
  static constexpr int kBBytes = kN * kRowBytes;
  // A stage holds weights as they are stored: of a converted kind half the
  // bytes.
  static constexpr int kWeightBytes = kHasPlain ? kABytes : kABytes / 2;
  static constexpr int kStageBytes = kWeightBytes + kBBytes;
  static constexpr int NumStages() {
    if (kN == 128) return kHasPlain ? 4 : 5;
    if (kHasConverted) return kN == 8 && !kHasPlain ? 8 : 6;
    return kN == 8 ? 12 : 8;
  }
  static constexpr int kStages = NumStages();
  static constexpr int kConverted = kStages * kStageBytes;  // offsets
  static constexpr int kOut = kConverted + (kHasConverted ? kConvertedTiles * kABytes : 0);
  static constexpr int kOutStride = 65;
  static constexpr int kOutBytes = kN * kOutStride * 4;  // of a warpgroup
  static constexpr int kScales = kOut + kConsumers * kOutBytes;
  static constexpr int kSources = kScales + kStages * kN * 4;
  static constexpr int kTable = kSources + kN * 4;
  static constexpr int kBarriers = (kTable + 15 * 8 + 7) / 8 * 8;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8 + 1024;  // 1,024 to align
  static_assert(kSharedBytes <= 227 * 1024);

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

// Codes of the eight e2m1 magnitudes times 2^k as e4m3, k = -8 .. 6.
struct Fp4Table {
  uint32_t low[15], high[15];
};
constexpr uint32_t CodeOfUnits(uint32_t n) {  // n * 2^-9
  if (n < 8) return n;
  uint32_t e = 0;
  while ((n >> e) > 1) ++e;
  return ((e - 2) << 3) | ((n >> (e - 3)) & 7u);
}
constexpr Fp4Table MakeFp4Table() {
  constexpr uint32_t kHalfUnits[8] = {0, 1, 2, 3, 4, 6, 8, 12};  // of 0.5 * 2^-8
  Fp4Table table{};
  for (uint32_t k = 0; k < 15; ++k) {
    for (uint32_t i = 0; i < 4; ++i) {
      table.low[k] |= CodeOfUnits(kHalfUnits[i] << k) << (8 * i);
      table.high[k] |= CodeOfUnits(kHalfUnits[i + 4] << k) << (8 * i);
    }
  }
  return table;
}
__constant__ const Fp4Table kFp4Table = MakeFp4Table();

// Four e2m1 codes in the low 16 bits of `nibbles` to four e4m3 codes.
__device__ __forceinline__ uint32_t WidenFp4(uint32_t nibbles, const uint2& table) {
  const uint32_t magnitudes = __byte_perm(table.x, table.y, nibbles & 0x7777u);
  const uint32_t signs = __byte_perm(0x8000u, 0u, (nibbles >> 3) & 0x1111u);
  return magnitudes | signs;
}

// What a block of threads works on: outputs first_output .. end_output - 1 (kM
// at most) of rows, over blocks first_block .. end_block - 1 of K.
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
template <LinearKind kKind, typename Ring, bool kPer32>
class StageLoader {
 public:
  // Loads that may be under way before the first of them has to have arrived. A
  // bf16 block is given back only behind the next one's instructions, so its
  // successor must not wait for it.
  static constexpr int kDepth = Ring::kStages - (kKind == LinearKind::kFp8 ? 1 : 2);
  static_assert(kConvertedTiles == 2);

  __device__ StageLoader(const LinearArgs& args, const TileJob& job, uint8_t* shared)
      : args_(args),
        job_(job),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x % kGroupThreads)),
        row_(thread_ / (IsConverted(kKind) ? 4 : 8)),
        piece_(thread_ % (IsConverted(kKind) ? 4 : 8)),
        num_outputs_(job.end_output - job.first_output),
        row_bytes_(static_cast<int64_t>(job.weight.cols) * kWeightBits / 8),
        from_(job.weight.values + (job.first_output + row_) * row_bytes_ + piece_ * 16) {
    if constexpr (kKind == LinearKind::kFp4 && !kPer32) PrefetchFolds(job.first_block);
  }

  // Starts the copies of block `block` of K.
  __device__ void Load(int block, int stage) const {
    uint8_t* to = shared_ + stage * Ring::kStageBytes;
    const uint8_t* from = from_ + static_cast<int64_t>(block) * kBlockBytes;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const bool is_valid = row_ + i * kRowStep < num_outputs_;
      const int at = IsConverted(kKind) ? 16 * (i * kGroupThreads + thread_)
                                        : Swizzled(row_, piece_) + i * kRowStep * kRowBytes;
      CopyAsync16(SharedAddress(to + at), is_valid ? from : job_.weight.values, is_valid);
      from += kRowStep * row_bytes_;
    }
    LoadX(block, stage, to + Ring::kWeightBytes);
  }

  // Weights of a block whose copies have arrived take the form the instruction
  // reads.
  __device__ void Convert(int block, int stage, int tile) {
    const uint8_t* raw = shared_ + stage * Ring::kStageBytes;
    uint8_t* to = shared_ + Ring::kConverted + tile * Ring::kABytes;
    [[maybe_unused]] int folds[kPieces];
    if constexpr (kKind == LinearKind::kFp4) {
      for (int i = 0; i < kPieces; ++i) folds[i] = kPer32 ? 8 : Fold(i);
      if constexpr (!kPer32) PrefetchFolds(min(block + 1, job_.end_block - 1));
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint4 codes = *reinterpret_cast<const uint4*>(raw + 16 * (i * kGroupThreads + thread_));
      uint8_t* row = to + (row_ + i * kRowStep) * kRowBytes;
      uint32_t out[8];
      if constexpr (kKind == LinearKind::kFp4) {
        WidenFp4Piece(codes, folds[i], out);
      } else {
        WidenFp8Piece(codes, PairOfScale(BlockScale(row_ + i * kRowStep, block)), out);
      }
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int chunk = (2 * piece_ + part) ^ (row_ & 7);
        *reinterpret_cast<uint4*>(row + 16 * chunk) =
            make_uint4(out[4 * part], out[4 * part + 1], out[4 * part + 2], out[4 * part + 3]);
      }
    }
  }

 private:
  static constexpr int kWeightBits =
      kKind == LinearKind::kFp4 ? 4 : (kKind == LinearKind::kBf16 ? 16 : 8);
  static constexpr int kBlockBytes = BlockK(kKind) * kWeightBits / 8;  // of a row of W
  static constexpr int kRowStep = kGroupThreads / (kBlockBytes / 16);
  static constexpr int kPieces = Ring::kM / kRowStep;
  static constexpr int kValueBytes = IsFp8Input(kKind) ? 1 : 2;
  static_assert(kBlockBytes == (IsConverted(kKind) ? 64 : 128));

  __device__ void LoadX(int block, int stage, uint8_t* to) const {
    const auto* sources = reinterpret_cast<const int32_t*>(shared_ + Ring::kSources);
    const int64_t row_bytes = args_.x_stride * kValueBytes;
    const int chunk = thread_ % 8;
    const uint8_t* from = job_.x + static_cast<int64_t>(block) * kRowBytes + chunk * 16;
#pragma unroll
    for (int i = 0; i < (Ring::kRows + 15) / 16; ++i) {
      const int row = thread_ / 8 + 16 * i;
      if (Ring::kRows < 16 && row >= Ring::kRows) break;
      const int32_t source = sources[row];
      CopyAsync16(SharedAddress(to + Swizzled(row, chunk)),
                  from + (source < 0 ? 0 : source) * row_bytes, source >= 0);
    }
    if constexpr (IsFp8Input(kKind)) {
      if (thread_ >= Ring::kRows) return;
      const int32_t source = sources[thread_];
      const int64_t at = (source < 0 ? 0 : source) * (args_.x_stride / kFp8Group) + block;
      CopyAsync4(SharedAddress(shared_ + Ring::kScales) + (stage * Ring::kRows + thread_) * 4,
                 args_.x_scales + at, source >= 0);
    }
  }

  __device__ int OutputOf(int row) const {
    return min(job_.first_output + row, job_.end_output - 1);
  }

  __device__ float BlockScale(int row, int block) const {
    const int64_t line = OutputOf(row) / 128;
    return job_.weight.scales[line * (job_.weight.cols / 128) + block * BlockK(kKind) / 128];
  }

  __device__ void WidenFp4Piece(const uint4& codes, int fold, uint32_t (&out)[8]) const {
    const uint2 table = reinterpret_cast<const uint2*>(shared_ + Ring::kTable)[fold];
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      out[2 * w] = WidenFp4(words[w], table);
      out[2 * w + 1] = WidenFp4(words[w] >> 16, table);
    }
  }

  // What the next block's groups need, on its way while this one is converted.
  __device__ void PrefetchFolds(int block) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int64_t output = OutputOf(row_ + i * kRowStep);
      exponents_[i] = job_.weight.exponents[output * (job_.weight.cols / 32) + block * 4 + piece_];
    }
    scale_ = BlockScale(0, block);
  }

  // Table row of a group: its scale over S, 2^-8 .. 2^6. Groups of zeros may
  // have any scale.
  __device__ int Fold(int i) const {
    const int k = exponents_[i] - static_cast<int>(EncodeE8m0(scale_)) + 8;
    return k < 0 || k > 14 ? 8 : k;
  }

  const LinearArgs& args_;
  const TileJob& job_;
  uint8_t* shared_;
  const int thread_, row_, piece_, num_outputs_;
  const int64_t row_bytes_;
  const uint8_t* from_;
  int exponents_[kPieces];
  float scale_ = 0.0f;
};

}  // namespace baton::kernels::cuda
