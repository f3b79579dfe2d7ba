#include "kernels/cpu/isa.h"

namespace baton::kernels::cpu {

bool IsSupported(Isa isa) {
  const bool has_avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return has_avx2;
    case Isa::kAvx512:
      return has_avx2 && __builtin_cpu_supports("avx512f") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
             __builtin_cpu_supports("avx512dq") != 0;
  }
  return false;
}

Isa ChooseIsa(bool force_scalar) {
  if (force_scalar) return Isa::kScalar;
  if (IsSupported(Isa::kAvx512)) return Isa::kAvx512;
  return IsSupported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kScalar;
}

}  // namespace baton::kernels::cpu
