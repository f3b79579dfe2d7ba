#include "kernels/cpu/dot.h"

#include "kernels/exact_math.h"

namespace baton::kernels::cpu {

DotFunction DotFunctionFor(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return DotScalar;
    case Isa::kAvx2:
      return DotAvx2;
    case Isa::kAvx512:
      return DotAvx512;
  }
  return DotScalar;
}

float InverseRms(DotFunction dot, const float* x, int n, float epsilon) {
  return Rsqrt(dot(x, x, n) / static_cast<float>(n) + epsilon);
}

void ScaleByNorm(const float* x, float inverse_rms, const float* weight, int n, float* y) {
  if (weight == nullptr) {
    for (int i = 0; i < n; ++i) y[i] = x[i] * inverse_rms;
    return;
  }
  for (int i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * inverse_rms);
}

}  // namespace baton::kernels::cpu
