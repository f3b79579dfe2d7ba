#pragma once

#include "kernels/cuda/device_math.cuh"

// The pooling sums of contracts.md 1.4, one channel at a time.
namespace baton::kernels::cuda {

__device__ constexpr float kMinusInfinity = -__builtin_inff();

// HCA: the running softmax.
struct Pool {
  float max = kMinusInfinity, sum = 0.0f, weighted = 0.0f;

  __device__ __forceinline__ void Add(float kv, float score) {
    const float m = max > score ? max : score;
    const float a = ExpNeg(max - m);
    const float b = ExpNeg(score - m);
    const float product = b * kv;
    sum = Fma(sum, a, b);
    weighted = Fma(weighted, a, product);
    max = m;
  }
};

}  // namespace baton::kernels::cuda
