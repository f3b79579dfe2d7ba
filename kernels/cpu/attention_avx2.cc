#include "kernels/cpu/attention_loops.h"

namespace baton::kernels::cpu {

const AttentionKernels kAttentionKernelsAvx2 = BATON_LANES::kKernels;

}  // namespace baton::kernels::cpu
