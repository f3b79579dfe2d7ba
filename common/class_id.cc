#include "common/class_id.h"

#include "absl/strings/str_format.h"

#include "common/hash.h"

namespace baton {

NumericsClass CpuNumericsClass(bool is_float32) {
  NumericsClass numerics;
  if (is_float32) {
    numerics.mode = "float32";
    numerics.index = "f32";
  }
  return numerics;
}

std::string CanonicalText(const NumericsClass& n) {
  return absl::StrFormat(
      "arch=%s;kernels=%d;mode=%s;index=%s;tp=%d;ep=%d;cp=%d;placement=%s;role=%s;", n.arch,
      n.kernels, n.mode, n.index, n.tp, n.ep, n.cp, n.placement, n.role);
}

ClassId ClassIdOf(const NumericsClass& numerics) {
  return PrefixOf<ClassId>(Sha256Of(CanonicalText(numerics)));
}

}  // namespace baton
