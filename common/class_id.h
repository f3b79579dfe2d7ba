#pragma once

#include <string>

#include "common/ids.h"

namespace baton {

// Raised by the commit that changes a bit of the token path.
inline constexpr int kKernelsVersion = 1;

// A numerics class: everything that can change a bit (contracts.md 1.1). The defaults are the
// CPU's, where prefill and decode give the same bits (L2), hence role "unified".
struct NumericsClass {
  std::string arch = "cpu";
  int kernels = kKernelsVersion;
  std::string mode = "official";  // official, float32
  std::string index = "fp8";      // fp8, fp4, f32
  int tp = 1;
  int ep = 1;
  int cp = 1;
  std::string placement = "0";   // of experts; "0" without EP
  std::string role = "unified";  // prefill, decode, unified
};

// The CPU's class in official mode (fp8 index keys) or in float32 mode (f32).
NumericsClass CpuNumericsClass(bool is_float32);

// `key=value;` in the contract's order, one line.
std::string CanonicalText(const NumericsClass& numerics);

ClassId ClassIdOf(const NumericsClass& numerics);

}  // namespace baton
