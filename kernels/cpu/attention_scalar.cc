#include "kernels/cpu/attention_loops.h"

namespace baton::kernels::cpu {

const AttentionKernels kAttentionKernelsScalar = BATON_LANES::kKernels;

}  // namespace baton::kernels::cpu
