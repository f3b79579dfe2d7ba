#include "kernels/cpu/dot.h"
#include "kernels/cpu/panel_loops.h"
#include "kernels/cpu/swiglu_loops.h"

namespace baton::kernels::cpu {

void MultiplyPanelAvx512(const PanelArgs& args) { BATON_LANES::MultiplyPanel<8>(args); }

float DotAvx512(const float* a, const float* b, int n) { return BATON_LANES::DotLanes(a, b, n); }

void SwigluAvx512(const SwigluArgs& args) { BATON_LANES::SwigluLoop(args); }

}  // namespace baton::kernels::cpu
