#pragma once

#include "kernels/cpu/isa.h"

namespace baton::kernels::cpu {

// The experts' activation (model.md 6.2), fp32, unrounded:
//   out[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit) * weight
// The product with `weight` comes last; the shared expert passes 1. `out` may be gate. Pure, any
// thread.
struct SwigluArgs {
  const float* gate = nullptr;
  const float* up = nullptr;
  int n = 0;
  float limit = 0.0f;
  float weight = 1.0f;
  float* out = nullptr;
};
using SwigluFunction = void (*)(const SwigluArgs& args);

void SwigluScalar(const SwigluArgs& args);
void SwigluAvx2(const SwigluArgs& args);
void SwigluAvx512(const SwigluArgs& args);

// All give the same bits.
SwigluFunction SwigluFunctionFor(Isa isa);

}  // namespace baton::kernels::cpu
