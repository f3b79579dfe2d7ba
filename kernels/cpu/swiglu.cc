#include "kernels/cpu/swiglu.h"

namespace baton::kernels::cpu {

SwigluFunction SwigluFunctionFor(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return SwigluScalar;
    case Isa::kAvx2:
      return SwigluAvx2;
    case Isa::kAvx512:
      return SwigluAvx512;
  }
  return SwigluScalar;
}

}  // namespace baton::kernels::cpu
