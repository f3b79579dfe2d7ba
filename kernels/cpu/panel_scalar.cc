#include "kernels/cpu/dot.h"
#include "kernels/cpu/panel_loops.h"
#include "kernels/cpu/swiglu_loops.h"

namespace baton::kernels::cpu {

void MultiplyPanelScalar(const PanelArgs& args) { BATON_LANES::MultiplyPanel<1>(args); }

float DotScalar(const float* a, const float* b, int n) { return BATON_LANES::DotLanes(a, b, n); }

void SwigluScalar(const SwigluArgs& args) { BATON_LANES::SwigluLoop(args); }

}  // namespace baton::kernels::cpu
