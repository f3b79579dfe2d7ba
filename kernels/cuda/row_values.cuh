#pragma once

#include "kernels/cuda/row_math.cuh"

// What half a warp does to one row that it holds in registers: the same as row_math.cuh's
// functions, without barriers.
namespace baton::kernels::cuda {

// One row's values in half a warp: lane l of it holds values l, l + 16, .. (the lanes of R11), at
// most kMost of them. On its way in and out a row passes through shared memory. Whole warps call.
constexpr int kHalf = 16;
constexpr int kMaxRowScales = 8;  // of a cached row, with its pad
template <int kMost, bool kIsFull>
struct RowValues {
  static constexpr int kRow = kMost * kHalf + kHalf;  // bf16 values: halves on banks of their own
  static constexpr int kUsualRope = 4;                // values of a lane
  float x[kMost];
  int own;  // values of a lane

  __device__ int Count() const { return kIsFull ? kMost : own; }

  __device__ static int Lane() { return LaneIndex() % kHalf; }

  __device__ void Load(const Bf16* head, Bf16* row) {
    const auto* from = reinterpret_cast<const uint4*>(head);
#pragma unroll
    for (int i = 0; i < kMost / 8; ++i) {
      const int chunk = i * kHalf + Lane();
      if (chunk < 2 * Count()) reinterpret_cast<uint4*>(row)[chunk] = from[chunk];
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = DecodeBf16(row[j * kHalf + Lane()]);
    }
  }
  // The values are bf16 already.
  __device__ void Store(Bf16* head, Bf16* row, bool is_wanted) const {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) row[j * kHalf + Lane()] = static_cast<Bf16>(BitsOf(x[j]) >> 16);
    }
    __syncwarp();
    auto* to = reinterpret_cast<uint4*>(head);
#pragma unroll
    for (int i = 0; i < kMost / 8; ++i) {
      const int chunk = i * kHalf + Lane();
      if (is_wanted && chunk < 2 * Count()) to[chunk] = reinterpret_cast<const uint4*>(row)[chunk];
    }
  }

  // What the row's place in shared memory, or another, has as fp32, rounded.
  __device__ void Take(const float* from) {
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = RoundBf16(from[j * kHalf + Lane()]);
    }
  }

  // r(weight * (x * rsqrt(mean(x^2) + epsilon))); null weight: none.
  __device__ void Norm(float epsilon, const float* weight = nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) sum = Fma(x[j], x[j], sum);
    }
    for (int d = kHalf / 2; d > 0; d /= 2) sum = sum + __shfl_down_sync(kFullWarp, sum, d, kHalf);
    sum = __shfl_sync(kFullWarp, sum, 0, kHalf);
    const float inverse = InverseRms(sum, Count() * kHalf, epsilon);
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= Count()) continue;
      const float scaled = x[j] * inverse;
      x[j] = RoundBf16(weight == nullptr ? scaled : weight[j * kHalf + Lane()] * scaled);
    }
  }

  // Rotates the last values by the angles of their pairs.
  __device__ void Rope(const SinCos* angles, int rope) {
    if (kIsFull && rope == kUsualRope * kHalf) {
      RopeFrom(angles, kMost - kUsualRope);
    } else {
      RopeFrom(angles, Count() - rope / kHalf);
    }
  }
  __device__ __forceinline__ void RopeFrom(const SinCos* angles, int first) {
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < first || j >= Count()) continue;
      const float other = __shfl_xor_sync(kFullWarp, x[j], 1);
      const SinCos angle = angles[((j - first) * kHalf + Lane()) / 2];
      const bool is_first = Lane() % 2 == 0;
      const Pair r = Rotate(is_first ? Pair{x[j], other} : Pair{other, x[j]}, angle);
      x[j] = RoundBf16(is_first ? r.a : r.b);
    }
  }

  // As HadamardRow.
  __device__ void Hadamard(float norm) {
#pragma unroll
    for (int distance = 1; distance < kHalf; distance *= 2) {
#pragma unroll
      for (int j = 0; j < kMost; ++j) {
        if (j >= Count()) continue;
        const float other = __shfl_xor_sync(kFullWarp, x[j], distance);
        x[j] = (Lane() & distance) == 0 ? x[j] + other : other - x[j];
      }
    }
#pragma unroll
    for (int distance = 1; distance < kMost; distance *= 2) {
      if (distance >= Count()) break;
#pragma unroll
      for (int j = 0; j < kMost; ++j) {
        if ((j & distance) != 0 || j >= Count()) continue;
        const float a = x[j], b = x[j | distance];
        x[j] = a + b;
        x[j | distance] = a - b;
      }
    }
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) x[j] = RoundBf16(x[j] * norm);
    }
  }

  // As SimulateFp4Row: a group of 32 is two values of every lane.
  __device__ void SimulateFp4() {
#pragma unroll
    for (int j = 0; j < kMost; j += 2) {
      if (j >= Count()) continue;
      const float amax = Larger(Abs(x[j]), Abs(x[j + 1]));
      const float scale = Fp4ScaleOf(GroupMax(amax, kHalf));
      const float inverse = 1.0f / scale;
      x[j] = RoundE2m1InRange(Clamp(x[j] * inverse, kFp4Max)) * scale;
      x[j + 1] = RoundE2m1InRange(Clamp(x[j + 1] * inverse, kFp4Max)) * scale;
    }
  }

  // As QuantiseRow: a group of 128 is eight values of every lane.
  __device__ void Quantise() {
#pragma unroll
    for (int first = 0; first < kMost; first += 8) {
      if (first >= Count()) break;
      RoundGroup<8>(first);
    }
  }

  // As EncodeCacheRow: what a reader gets; the stored form in `bytes`, then the scales, in shared
  // memory.
  __device__ void Cache(int rope, uint8_t* bytes, uint8_t* scales) {
    const int rope_first = Count() - rope / kHalf;
#pragma unroll
    for (int first = 0; first < kMost; first += 4) {
      if (first >= rope_first) break;
      const float scale = RoundGroup<4>(first);
#pragma unroll
      for (int j = first; j < first + 4; ++j) {
        bytes[j * kHalf + Lane()] = CodeOfE4m3(x[j] / scale);
      }
      if (Lane() == 0) scales[first / 4] = EncodeE8m0(scale);
    }
    auto* rest = reinterpret_cast<Bf16*>(bytes + rope_first * kHalf);
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < rope_first || j >= Count()) continue;
      rest[(j - rope_first) * kHalf + Lane()] = static_cast<Bf16>(BitsOf(x[j]) >> 16);
    }
    if (Lane() < kMaxRowScales && Lane() >= rope_first / 4) scales[Lane()] = 0;
    __syncwarp();
  }

  // As EncodeIndexFp8 and EncodeIndexFp4, to the index row's place.
  __device__ void StoreIndexFp8(uint8_t* data, uint8_t* scales, bool is_wanted) {
    SimulateFp4();
    float amax = 0.0f;
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) amax = Larger(amax, Abs(x[j]));
    }
    const float scale = Fp8ScaleOf(GroupMax(amax, kHalf));
    if (!is_wanted) return;
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j < Count()) data[j * kHalf + Lane()] = EncodeE4m3(x[j] / scale);
    }
    if (Lane() == 0) *reinterpret_cast<float*>(scales) = scale;
  }
  __device__ void StoreIndexFp4(uint8_t* data, uint8_t* scales, bool is_wanted) {
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= Count()) continue;
      const float amax = Larger(Abs(x[j & ~1]), Abs(x[j | 1]));
      const float scale = Fp4ScaleOf(GroupMax(amax, kHalf));
      const uint32_t code = EncodeE2m1(x[j] / scale);
      const uint32_t next = __shfl_down_sync(kFullWarp, code, 1);
      if (!is_wanted) continue;
      if (Lane() % 2 == 0) {
        data[(j * kHalf + Lane()) / 2] = static_cast<uint8_t>(code | next << 4);
      }
      if (Lane() == 0 && j % 2 == 0) scales[j / 2] = EncodeE8m0(scale);
    }
  }

 private:
  // An fp8 group, kCount values of every lane: codes times the scale, which is returned.
  template <int kCount>
  __device__ float RoundGroup(int first) {
    float amax = 0.0f;
#pragma unroll
    for (int j = first; j < first + kCount; ++j) amax = Larger(amax, Abs(x[j]));
    const float scale = Fp8ScaleOf(GroupMax(amax, kHalf)), inverse = 1.0f / scale;
#pragma unroll
    for (int j = first; j < first + kCount; ++j) {
      x[j] = RoundE4m3InRange(Clamp(x[j] * inverse, kFp8Max)) * scale;
    }
    return scale;
  }
};

}  // namespace baton::kernels::cuda
