#pragma once

namespace baton::kernels::cpu {

// Instruction sets the hot loops are compiled for. All give the same bits (R11 of
// contracts.md 1.3): they differ in how many of the 16 lanes one instruction handles, never in what
// a lane sums.
enum class Isa { kScalar, kAvx2, kAvx512 };

// Whether this machine can run it.
bool IsSupported(Isa isa);

// The widest supported one; kScalar where `force_scalar`.
Isa ChooseIsa(bool force_scalar);

}  // namespace baton::kernels::cpu
