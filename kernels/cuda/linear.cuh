#pragma once

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/wgmma.cuh"

// The tile kernel behind linear.h. The weights are the M side of the instruction (64 output rows a
// warpgroup), the rows of x its N side (8, 32 or 128): every weight byte is read once where there
// are few rows. K goes in blocks of 128, ascending, through a ring of stages filled by cp.async;
// weights that change form (FP4 to e4m3, fp8 to bf16) are converted one block ahead, by the thread
// that copied them.
namespace baton::kernels::cuda {

enum class LinearKind { kFp8, kFp4, kBf16, kWidened };

constexpr int kBlockK = 128;
constexpr int kRowBytes = 128;  // of a swizzled row

template <LinearKind kKind, int kN>
struct LinearTile {
  static constexpr bool kIsFp8 = kKind == LinearKind::kFp8 || kKind == LinearKind::kFp4;
  static constexpr bool kIsConverted = kKind == LinearKind::kFp4 || kKind == LinearKind::kWidened;
  static constexpr int kHalves = kIsFp8 ? 1 : 2;  // swizzled rows a block of K takes
  static constexpr int kWarpgroups = kN == 128 ? 2 : 1;
  static constexpr int kM = 64 * kWarpgroups;
  static constexpr int kThreads = 128 * kWarpgroups;
  // Enough bytes in flight for a few blocks of threads on a multiprocessor.
  static constexpr int NumStages() {
    if (kN == 128) return kIsFp8 ? 4 : 3;
    return kIsFp8 ? 8 : 6;
  }
  static constexpr int kStages = NumStages();
  static constexpr int kABytes = kHalves * kM * kRowBytes;  // as the instruction reads it
  static constexpr int kRawBytes = kM * (kKind == LinearKind::kFp4 ? 64 : 128);  // before
  static constexpr int kWeightBytes = kIsConverted ? kRawBytes : kABytes;
  static constexpr int kBBytes = kHalves * kN * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kBBytes;
  static constexpr int kTiles = kStages * kStageBytes;  // offset of the two converted tiles
  static constexpr int kOutStride = kM + 1;
  static constexpr int kSharedBytes =
      kTiles + (kIsConverted ? 2 * kABytes : 0) + 1024;  // 1,024 to align
  // 16-byte pieces of a converted weight block that a thread takes care of.
  static constexpr int kPieces = kRawBytes / 16 / kThreads;
  static_assert(kN * kOutStride * 4 <= kStages * kStageBytes);
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
__device__ __forceinline__ uint32_t WidenFp4(uint32_t nibbles, uint32_t low, uint32_t high) {
  const uint32_t magnitudes = __byte_perm(low, high, nibbles & 0x7777u);
  const uint32_t signs = __byte_perm(0x8000u, 0u, (nibbles >> 3) & 0x1111u);
  return magnitudes | signs;
}

// Two e4m3 codes in the low 16 bits to two bf16, times scale (exact).
__device__ __forceinline__ uint32_t WidenFp8Pair(uint32_t codes, float scale) {
  const auto widen = [scale](uint32_t code) {
    const float value = FloatOf((code & 0x7fu) << 20) * 0x1p120f * scale;
    return (BitsOf(value) >> 16) | ((code & 0x80u) << 8);
  };
  return widen(codes & 0xffu) | (widen((codes >> 8) & 0xffu) << 16);
}

// What a block of threads works on.
struct TileJob {
  MatrixView weight;
  RowTile rows;
  int first_output;  // row of W
  int end_output;
  const uint8_t* x;  // at the group's columns
};

// Fills stages. One object per thread.
template <LinearKind kKind, int kN, bool kPer32>
class StageLoader {
 public:
  using Tile = LinearTile<kKind, kN>;

  __device__ StageLoader(const LinearArgs& args, const TileJob& job, uint8_t* shared,
                         const int32_t* sources, float* x_scales)
      : args_(args), job_(job), shared_(shared), sources_(sources), x_scales_(x_scales) {}

  // Starts the copies of block `block` of K.
  __device__ void Load(int block) {
    uint8_t* stage = shared_ + block % Tile::kStages * Tile::kStageBytes;
    if constexpr (Tile::kIsConverted) {
      LoadPieces(block, stage);
    } else {
      LoadWeights(block, stage);
    }
    LoadX(block, stage + Tile::kWeightBytes);
  }

  // Weights of a block whose copies have arrived take the form the instruction reads.
  __device__ void Convert(int block) const {
    const uint8_t* stage = shared_ + block % Tile::kStages * Tile::kStageBytes;
    uint8_t* tile = shared_ + Tile::kTiles + block % 2 * Tile::kABytes;
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i) {
      const int index = i * Tile::kThreads + static_cast<int>(threadIdx.x);
      ConvertPiece(block, index, *reinterpret_cast<const uint4*>(stage + 16 * index), tile);
    }
  }

 private:
  static constexpr int kChunks = 8 * Tile::kHalves;  // of 16 bytes in a row's block of K
  static constexpr int kValueBytes = Tile::kHalves;
  static constexpr int kPiecesPerRow = kKind == LinearKind::kFp4 ? 4 : 8;

  __device__ void LoadWeights(int block, uint8_t* stage) const {
    const int64_t row_bytes = static_cast<int64_t>(job_.weight.cols) * kValueBytes;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int output = job_.first_output + row;
      const bool is_valid = output < job_.end_output;
      const uint8_t* from = job_.weight.values + (is_valid ? output : 0) * row_bytes +
                            static_cast<int64_t>(block) * kBlockK * kValueBytes + chunk * 16;
      uint8_t* half = stage + chunk / 8 * Tile::kM * kRowBytes;
      CopyAsync16(SharedAddress(half + Swizzled(row, chunk % 8)), from, is_valid);
    }
  }

  __device__ void LoadX(int block, uint8_t* stage) const {
    const int64_t row_bytes = args_.x_stride * kValueBytes;
    for (int i = static_cast<int>(threadIdx.x); i < kN * kChunks; i += Tile::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int32_t source = sources_[row];
      const uint8_t* from = job_.x + static_cast<int64_t>(source < 0 ? 0 : source) * row_bytes +
                            static_cast<int64_t>(block) * kBlockK * kValueBytes + chunk * 16;
      uint8_t* half = stage + chunk / 8 * kN * kRowBytes;
      CopyAsync16(SharedAddress(half + Swizzled(row, chunk % 8)), from, source >= 0);
    }
    if constexpr (Tile::kIsFp8) {
      float* scales = x_scales_ + block % Tile::kStages * kN;
      for (int row = static_cast<int>(threadIdx.x); row < kN; row += Tile::kThreads) {
        const int32_t source = sources_[row];
        const int64_t at = (source < 0 ? 0 : source) * (args_.x_stride / kFp8Group) + block;
        CopyAsync4(SharedAddress(scales + row), args_.x_scales + at, source >= 0);
      }
    }
  }

  __device__ void LoadPieces(int block, uint8_t* stage) const {
    const int64_t row_bytes = static_cast<int64_t>(job_.weight.cols) * kPiecesPerRow / 8;
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i) {
      const int index = i * Tile::kThreads + static_cast<int>(threadIdx.x);
      const int output = job_.first_output + index / kPiecesPerRow;
      const bool is_valid = output < job_.end_output;
      const uint8_t* from =
          job_.weight.values + (is_valid ? output : 0) * row_bytes +
          (static_cast<int64_t>(block) * kPiecesPerRow + index % kPiecesPerRow) * 16;
      CopyAsync16(SharedAddress(stage + 16 * index), from, is_valid);
    }
  }

  __device__ void ConvertPiece(int block, int index, const uint4& raw, uint8_t* tile) const {
    const int row = index / kPiecesPerRow, piece = index % kPiecesPerRow;
    const int output = min(job_.first_output + row, job_.end_output - 1);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    uint32_t out[8];
    const float scale =
        job_.weight.scales[static_cast<int64_t>(output / 128) * (job_.weight.cols / 128) + block];
    if constexpr (kKind == LinearKind::kFp4) {
      const int k = kPer32 ? 8 : FoldOf(output, block * 4 + piece, scale);
      const uint32_t low = kFp4Table.low[k], high = kFp4Table.high[k];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        out[2 * w] = WidenFp4(words[w], low, high);
        out[2 * w + 1] = WidenFp4(words[w] >> 16, low, high);
      }
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        out[2 * w] = WidenFp8Pair(words[w], scale);
        out[2 * w + 1] = WidenFp8Pair(words[w] >> 16, scale);
      }
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int chunk = 2 * piece + part;
      uint8_t* half = tile + chunk / 8 * Tile::kM * kRowBytes;
      *reinterpret_cast<uint4*>(half + Swizzled(row, chunk % 8)) =
          make_uint4(out[4 * part], out[4 * part + 1], out[4 * part + 2], out[4 * part + 3]);
    }
  }

  // Table row of a group: its scale over S, 2^-8 .. 2^6. Groups of zeros may have any scale.
  __device__ int FoldOf(int output, int group, float scale) const {
    const int exponent =
        job_.weight.exponents[static_cast<int64_t>(output) * (job_.weight.cols / 32) + group];
    const int k = exponent - static_cast<int>(EncodeE8m0(scale)) + 8;
    return k < 0 || k > 14 ? 8 : k;
  }

  const LinearArgs& args_;
  const TileJob& job_;
  uint8_t* shared_;
  const int32_t* sources_;
  float* x_scales_;
};

}  // namespace baton::kernels::cuda
