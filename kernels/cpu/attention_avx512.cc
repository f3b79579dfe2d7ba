#include "kernels/cpu/attention_loops.h"

namespace baton::kernels::cpu {

const AttentionKernels kAttentionKernelsAvx512 = BATON_LANES::kKernels;

}  // namespace baton::kernels::cpu
