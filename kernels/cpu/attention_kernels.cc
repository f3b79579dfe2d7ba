#include "kernels/cpu/attention_kernels.h"

#include <algorithm>
#include <limits>

namespace baton::kernels::cpu {

void ResetPool(const PoolState& state) {
  std::fill_n(state.max, state.channels, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, state.channels, 0.0f);
  std::fill_n(state.weighted, state.channels, 0.0f);
}

const AttentionKernels& AttentionKernelsFor(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kAttentionKernelsAvx512;
    case Isa::kAvx2:
      return kAttentionKernelsAvx2;
    case Isa::kScalar:
      break;
  }
  return kAttentionKernelsScalar;
}

}  // namespace baton::kernels::cpu
