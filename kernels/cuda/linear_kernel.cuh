#pragma once

#include "kernels/cuda/linear.cuh"

// The kernel of linear.h: one block of threads computes 64 or 128 outputs of up to kN rows.
namespace baton::kernels::cuda {

// Sums of one thread: rows lane / 4 and + 8 of its warp's 16 outputs, columns 8 j + 2 (lane % 4)
// and + 1.
template <LinearKind kKind, int kN, bool kPer32>
class TileSums {
 public:
  using Tile = LinearTile<kKind, kN>;
  static constexpr int kSums = kN / 2;

  __device__ TileSums(const TileJob& job, const uint8_t* shared, const float* x_scales)
      : job_(job), shared_(shared), x_scales_(x_scales) {
    for (int i = 0; i < kSums; ++i) sums_[i] = total_[i] = 0.0f;
  }

  // One block of K from its stage. `starts`: the first of a segment.
  __device__ void Multiply(int block, bool starts) {
    if constexpr (Tile::kIsFp8) scale_ = BlockScale(block);  // on its way while products run
    const uint8_t* stage = shared_ + block % Tile::kStages * Tile::kStageBytes;
    const uint8_t* weights =
        Tile::kIsConverted ? shared_ + Tile::kTiles + block % 2 * Tile::kABytes : stage;
    const uint32_t a =
        SharedAddress(weights) + static_cast<uint32_t>(threadIdx.x / 128) * 64 * kRowBytes;
    const uint32_t b = SharedAddress(stage) + Tile::kWeightBytes;
    if constexpr (!Tile::kIsFp8) {
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        const uint32_t half = static_cast<uint32_t>(step / 4), in_row = step % 4 * 32;
        Wgmma<kN, false>(sums_, TileDescriptor(a + half * Tile::kM * kRowBytes + in_row),
                         TileDescriptor(b + half * kN * kRowBytes + in_row),
                         starts && step == 0 ? 0 : 1);
      }
      WgmmaCommit();
    } else if constexpr (!kPer32) {
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kN, true>(part_, TileDescriptor(a + step * 32), TileDescriptor(b + step * 32),
                        step == 0 ? 0 : 1);
      }
      WgmmaCommit();
    } else {
      if (starts) ClearSums();
      for (int step = 0; step < 4; ++step) {
        WgmmaFence();
        Wgmma<kN, true>(part_, TileDescriptor(a + step * 32), TileDescriptor(b + step * 32), 0);
        WgmmaCommit();
        WgmmaWait();
        PromoteGroup(block, step);
      }
    }
  }

  // Waits for the block's instructions and adds its product to the sums.
  __device__ void Promote(int block, bool starts) {
    if constexpr (kPer32) return;
    WgmmaWait();
    if constexpr (Tile::kIsFp8) {
      if (starts) ClearSums();
      PromoteBy(block, scale_, scale_);
    }
  }

  __device__ void EndSegment() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) total_[i] = total_[i] + sums_[i];
  }

  // out [kN, kOutStride] = the totals.
  __device__ void Write(float* out) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      float* column = out + (8 * j + lane % 4 * 2) * Tile::kOutStride + row;
      column[0] = total_[4 * j];
      column[Tile::kOutStride] = total_[4 * j + 1];
      column[8] = total_[4 * j + 2];
      column[Tile::kOutStride + 8] = total_[4 * j + 3];
    }
  }

 private:
  __device__ void ClearSums() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums_[i] = 0.0f;
  }

  __device__ float BlockScale(int block) const {
    const int64_t row = job_.first_output / 128;
    return job_.weight.scales[row * (job_.weight.cols / 128) + block];
  }

  // acc = fma(part, scale_a * scale_b, acc); `low` and `high` are the scales of the two outputs.
  __device__ void PromoteBy(int block, float low, float high) {
    const float* scales = x_scales_ + block % Tile::kStages * kN + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float x0 = scales[8 * j], x1 = scales[8 * j + 1];
      sums_[4 * j] = Fma(part_[4 * j], x0 * low, sums_[4 * j]);
      sums_[4 * j + 1] = Fma(part_[4 * j + 1], x1 * low, sums_[4 * j + 1]);
      sums_[4 * j + 2] = Fma(part_[4 * j + 2], x0 * high, sums_[4 * j + 2]);
      sums_[4 * j + 3] = Fma(part_[4 * j + 3], x1 * high, sums_[4 * j + 3]);
    }
  }

  __device__ void PromoteGroup(int block, int group) {
    if constexpr (kKind == LinearKind::kFp4) {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int row = job_.first_output + static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
      const uint8_t* exponents = job_.weight.exponents + block * 4 + group;
      const int64_t width = job_.weight.cols / 32;
      const int last = job_.end_output - 1;
      PromoteBy(block, DecodeE8m0(exponents[min(row, last) * width]),
                DecodeE8m0(exponents[min(row + 8, last) * width]));
    } else {
      PromoteBy(block, scale_, scale_);
    }
  }

  const TileJob& job_;
  const uint8_t* shared_;
  const float* x_scales_;
  float scale_ = 0.0f;
  float part_[Tile::kIsFp8 ? kSums : 1];
  float sums_[kSums], total_[kSums];
};

template <int kN>
__device__ __forceinline__ void StoreOutputs(const LinearArgs& args, const TileJob& job,
                                             const float* out, int stride) {
  const int outputs = job.end_output - job.first_output;
  const int width = min(stride - 1, outputs);
  for (int i = static_cast<int>(threadIdx.x); i < kN * (stride - 1);
       i += static_cast<int>(blockDim.x)) {
    const int row = i / (stride - 1), column = i % (stride - 1);
    if (row >= job.rows.count || column >= width) continue;
    const int64_t at = (job.rows.first + row) * args.y_stride + job.first_output + column;
    const float value = out[row * stride + column];
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
}

template <LinearKind kKind, int kN, bool kPer32>
__device__ __forceinline__ void RunTile(const LinearArgs& args, const TileJob& job) {
  using Tile = LinearTile<kKind, kN>;
  extern __shared__ uint8_t raw_shared[];
  uint8_t* shared = raw_shared + (1024 - (SharedAddress(raw_shared) & 1023u)) % 1024;
  __shared__ int32_t sources[kN];
  __shared__ float x_scales[Tile::kStages * kN];
  for (int row = static_cast<int>(threadIdx.x); row < kN; row += Tile::kThreads) {
    const int index = job.rows.first + row;
    const bool is_live = row < job.rows.count;
    sources[row] = !is_live ? -1 : (args.x_rows == nullptr ? index : args.x_rows[index]);
  }
  __syncthreads();

  StageLoader<kKind, kN, kPer32> loader(args, job, shared, sources, x_scales);
  TileSums<kKind, kN, kPer32> sums(job, shared, x_scales);
  const int blocks = job.weight.cols / kBlockK;
  const int per_segment = (blocks + args.k_segments - 1) / args.k_segments;
  for (int block = 0; block < Tile::kStages - 1; ++block) {
    if (block < blocks) loader.Load(block);
    CopyAsyncCommit();
  }
  if constexpr (Tile::kIsConverted) {
    CopyAsyncWait<Tile::kStages - 2>();
    loader.Convert(0);
  }
  for (int block = 0; block < blocks; ++block) {
    // A thread converts what it copied itself: the block after this one has to have arrived.
    CopyAsyncWait<Tile::kIsConverted ? Tile::kStages - 3 : Tile::kStages - 2>();
    FenceAsyncProxy();
    __syncthreads();
    const int next = block + Tile::kStages - 1;
    if (next < blocks) loader.Load(next);
    CopyAsyncCommit();
    const bool starts = block % per_segment == 0;
    sums.Multiply(block, starts);
    if constexpr (Tile::kIsConverted) {
      if (block + 1 < blocks) loader.Convert(block + 1);
    }
    sums.Promote(block, starts);
    if ((block + 1) % per_segment == 0 || block + 1 == blocks) sums.EndSegment();
  }
  __syncthreads();
  float* out = reinterpret_cast<float*>(shared);
  sums.Write(out);
  __syncthreads();
  StoreOutputs<kN>(args, job, out, Tile::kOutStride);
}

// Grid: (output tiles, row tiles, groups).
template <LinearKind kKind, int kN>
__global__ void __launch_bounds__(LinearTile<kKind, kN>::kThreads)
    LinearKernel(const __grid_constant__ LinearArgs args) {
  using Tile = LinearTile<kKind, kN>;
  const int live = args.num_rows == nullptr ? args.rows : *args.num_rows * args.row_factor;
  const int first = static_cast<int>(blockIdx.y) * kN;
  if (first >= live) return;
  const int per_group = args.weight.rows / args.groups;
  const int group = static_cast<int>(blockIdx.z);
  TileJob job{.weight = args.weight};
  job.rows = {0, first, min(kN, live - first)};
  job.first_output = group * per_group + static_cast<int>(blockIdx.x) * Tile::kM;
  job.end_output = (group + 1) * per_group;
  job.x = static_cast<const uint8_t*>(args.x) +
          static_cast<int64_t>(group) * args.weight.cols * Tile::kHalves;
  RunTile<kKind, kN, false>(args, job);
}

// Grid: (output tiles, row tiles of all experts).
template <LinearKind kKind, int kN, bool kPer32>
__global__ void __launch_bounds__(LinearTile<kKind, kN>::kThreads)
    ExpertLinearKernel(const __grid_constant__ ExpertLinearArgs args) {
  using Tile = LinearTile<kKind, kN>;
  if (static_cast<int>(blockIdx.y) >= *args.num_tiles) return;
  TileJob job{.rows = args.tiles[blockIdx.y]};
  if ((args.is_promoted[job.rows.expert] != 0) != kPer32) return;
  job.weight = args.matrices[job.rows.expert];
  job.first_output = static_cast<int>(blockIdx.x) * Tile::kM;
  job.end_output = job.weight.rows;
  job.x = static_cast<const uint8_t*>(args.linear.x);
  RunTile<kKind, kN, kPer32>(args.linear, job);
}

}  // namespace baton::kernels::cuda
