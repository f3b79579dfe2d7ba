#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/exact_math.h"

// swiglu.h for one instruction set; exact_math.h inlines with this file's flags.
namespace baton::kernels::cpu::BATON_LANES {

BATON_LANE_INLINE void SwigluLoop(const SwigluArgs& args) {
  const float limit = args.limit;
  for (int i = 0; i < args.n; ++i) {
    const float gate = args.gate[i] > limit ? limit : args.gate[i];
    const float up = args.up[i] > limit ? limit : (args.up[i] < -limit ? -limit : args.up[i]);
    args.out[i] = Silu(gate) * up * args.weight;
  }
}

}  // namespace baton::kernels::cpu::BATON_LANES
