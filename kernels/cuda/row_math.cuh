#pragma once

#include "kernels/cuda/device_math.cuh"

// What whole blocks of threads do to one row that lies in shared memory as fp32. Every function
// ends with a barrier.
namespace baton::kernels::cuda {

__device__ __forceinline__ int WarpIndex() { return static_cast<int>(threadIdx.x / kWarp); }
__device__ __forceinline__ int LaneIndex() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int NumWarps() { return static_cast<int>(blockDim.x / kWarp); }

// Eight neighbouring values of a bf16 row, 16 bytes.
__device__ __forceinline__ void LoadEight(const Bf16* row, float (&x)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(row);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = FloatOf(pairs[i] << 16);
    x[2 * i + 1] = FloatOf(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void StoreEight(const float (&x)[8], Bf16* row) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = EncodeBf16(x[2 * i]) | static_cast<uint32_t>(EncodeBf16(x[2 * i + 1])) << 16;
  }
  *reinterpret_cast<uint4*>(row) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// fp8 group of 128 (model.md 10.1) that 16 neighbouring lanes hold, eight values each: codes times
// the group's scale, as bf16. The whole warp takes part; lanes with is_live false store nothing.
__device__ __forceinline__ void QuantiseEight(const float (&x)[8], bool is_live, Bf16* out) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = Larger(amax, Abs(x[i]));
  const float scale = Fp8ScaleOf(GroupMax(amax, 16));
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(scale));  // exact: a power of two
  uint32_t pairs[4];  // the values are bf16: four leading bits, no more
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = RoundE4m3InRange(Clamp(x[2 * i] * inverse, kFp8Max)) * scale;
    const float high = RoundE4m3InRange(Clamp(x[2 * i + 1] * inverse, kFp8Max)) * scale;
    pairs[i] = __byte_perm(BitsOf(low), BitsOf(high), 0x7632);
  }
  if (is_live) *reinterpret_cast<uint4*>(out) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// x [n] = bf16 row.
__device__ __forceinline__ void LoadRow(const Bf16* row, int n, float* x) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    x[i] = DecodeBf16(row[i]);
  }
  __syncthreads();
}

// x = r(weight * (x * rsqrt(mean(x^2) + epsilon))), null weight: none (model.md 2.2).
__device__ __forceinline__ void NormRow(float* x, int n, const float* weight, float epsilon) {
  constexpr int kAhead = 4;  // of a thread's weights, which come while the sum is taken
  __shared__ float inverse;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  float ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = thread + j * threads;
    ahead[j] = weight != nullptr && i < n ? weight[i] : 1.0f;
  }
  if (WarpIndex() == 0) {
    const float value = InverseRms(SquareSum(x, n), n, epsilon);
    if (LaneIndex() == 0) inverse = value;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = thread + j * threads;
    if (i < n) x[i] = RoundBf16(ahead[j] * (x[i] * inverse));
  }
  for (int i = thread + kAhead * threads; i < n; i += threads) {
    const float scaled = x[i] * inverse;
    x[i] = RoundBf16(weight == nullptr ? scaled : weight[i] * scaled);
  }
  __syncthreads();
}

// fp8 groups of 128 (model.md 10.1): out [n] = codes times their group's scale, as bf16.
__device__ __forceinline__ void QuantiseRow(const float* x, int n, Bf16* out) {
  for (int group = WarpIndex(); group < n / kFp8Group; group += NumWarps()) {
    const float* values = x + group * kFp8Group + LaneIndex();
    float amax = 0.0f;
    for (int i = 0; i < kFp8Group; i += kWarp) amax = Larger(amax, Abs(values[i]));
    const float scale = Fp8ScaleOf(GroupMax(amax, kWarp));
    const float inverse = 1.0f / scale;
    Bf16* to = out + group * kFp8Group + LaneIndex();
    for (int i = 0; i < kFp8Group; i += kWarp) {
      to[i] = EncodeBf16(RoundE4m3InRange(Clamp(values[i] * inverse, kFp8Max)) * scale);
    }
  }
  __syncthreads();
}

// The angles of a position's pairs, known after the next barrier: by the last threads, for the
// first ones have sums to take.
__device__ __forceinline__ void SetAngles(SinCos* angles, int pairs, const float* frequencies,
                                          int64_t position) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = threads - 1 - static_cast<int>(threadIdx.x); i < pairs; i += threads) {
    angles[i] = RopeSinCos(RopeAngle(position, frequencies[i]));
  }
}

// Rotates the last 2 * pairs values of x [n] by their angles and rounds them.
__device__ __forceinline__ void RopeRow(float* x, int n, int pairs, const SinCos* angles) {
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += static_cast<int>(blockDim.x)) {
    float* v = x + n - 2 * pairs + 2 * i;
    const Pair r = Rotate({v[0], v[1]}, angles[i]);
    v[0] = RoundBf16(r.a);
    v[1] = RoundBf16(r.b);
  }
  __syncthreads();
}

// Writes a cached row (contracts.md 3.1) and leaves in x what a reader of it gets: fp8 by groups
// of 64 over the first n - rope values, bf16 for the rest. data and scales may be null: only x.
__device__ __forceinline__ void EncodeCacheRow(float* x, int n, int rope, uint8_t* data,
                                               uint8_t* scales) {
  const int nope = n - rope, groups = nope / kKvGroup;
  for (int group = WarpIndex(); group < groups; group += NumWarps()) {
    float* values = x + group * kKvGroup + LaneIndex();
    const float amax = Larger(Abs(values[0]), Abs(values[kWarp]));
    const float scale = Fp8ScaleOf(GroupMax(amax, kWarp));
    const float inverse = 1.0f / scale;  // a power of two
    for (int i = 0; i < kKvGroup; i += kWarp) {
      const uint8_t code = EncodeE4m3(values[i] * inverse);
      values[i] = DecodeE4m3(code) * scale;
      if (data != nullptr) data[group * kKvGroup + LaneIndex() + i] = code;
    }
    if (scales != nullptr && LaneIndex() == 0) scales[group] = EncodeE8m0(scale);
  }
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (scales != nullptr) {
    for (int i = groups + thread; i < (groups + 7) / 8 * 8; i += threads) scales[i] = 0;
  }
  if (data != nullptr) {
    for (int i = thread; i < rope; i += threads) {
      const Bf16 code = EncodeBf16(x[nope + i]);
      data[nope + 2 * i] = static_cast<uint8_t>(code & 255u);
      data[nope + 2 * i + 1] = static_cast<uint8_t>(code >> 8);
    }
  }
  __syncthreads();
}

// Value i of a stored row.
__device__ __forceinline__ float CachedValue(const uint8_t* data, const uint8_t* scales, int i,
                                             int nope) {
  if (i < nope) return DecodeE4m3(data[i]) * DecodeE8m0(scales[i / kKvGroup]);
  const uint8_t* code = data + nope + 2 * (i - nope);
  return DecodeBf16(static_cast<Bf16>(code[0] | (code[1] << 8)));
}

// Orthonormal Hadamard transform of x [n], n a power of two, natural order, then r (model.md 10.4).
__device__ __forceinline__ void HadamardRow(float* x, int n, float norm) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int distance = 1; distance < n; distance *= 2) {
    for (int i = thread; i < n / 2; i += threads) {
      const int low = i / distance * 2 * distance + i % distance;
      const float a = x[low], b = x[low + distance];
      x[low] = a + b;
      x[low + distance] = a - b;
    }
    __syncthreads();
  }
  for (int i = thread; i < n; i += threads) x[i] = RoundBf16(x[i] * norm);
  __syncthreads();
}

// e2m1 by groups of 32, as values (model.md 10.3). Whole warps only.
__device__ __forceinline__ void SimulateFp4Row(float* x, int n) {
  for (int group = WarpIndex(); group < n / kFp4Group; group += NumWarps()) {
    float* value = x + group * kFp4Group + LaneIndex();
    const float scale = Fp4ScaleOf(GroupMax(Abs(*value), kWarp));
    const float inverse = 1.0f / scale;
    *value = RoundE2m1InRange(Clamp(*value * inverse, kFp4Max)) * scale;
  }
  __syncthreads();
}

}  // namespace baton::kernels::cuda
