#pragma once

#include "kernels/cpu/isa.h"

// Sums over one vector by R11 (contracts.md 1.3): 16 lanes by fma (lane = index mod 16), then the
// tree 8, 4, 2, 1. Pure, any thread.
namespace baton::kernels::cpu {

// a . b over n values, n any non-negative number: a last incomplete step leaves the lanes past it
// as they are.
using DotFunction = float (*)(const float* a, const float* b, int n);

float DotScalar(const float* a, const float* b, int n);
float DotAvx2(const float* a, const float* b, int n);
float DotAvx512(const float* a, const float* b, int n);

// All return the same bits.
DotFunction DotFunctionFor(Isa isa);

// rsqrt(mean(x^2) + epsilon): the sum of squares is dot(x, x), divided by n; rsqrt = 1 / sqrt
// (contracts.md 2.6).
float InverseRms(DotFunction dot, const float* x, int n, float epsilon);

// y = weight * (x * inverse_rms), unrounded (model.md 2.2); null weight: none. y may be x.
void ScaleByNorm(const float* x, float inverse_rms, const float* weight, int n, float* y);

}  // namespace baton::kernels::cpu
