#pragma once

#include <memory>

#include "absl/status/statusor.h"

#include "kernels/device.h"
#include "kernels/ops.h"

namespace baton::kernels::cpu {

struct CpuOptions {
  ModelConfig config;
  NumericsMode mode = NumericsMode::kOfficial;
  PageLayout layout;
  std::byte* pages = nullptr;  // page i at i * layout.stride_bytes()
  int num_pages = 0;
  int num_tail_slots = 0;
  int max_rows = 0;       // of a step
  int max_sequences = 0;  // of a step
  int max_head_rows = 0;
  int max_context = 0;
  // Verify or replay rows of one sequence in one step; window ring = window + this.
  int max_draft_rows = 64;
  bool force_scalar = false;       // tests: no AVX
  ParallelFor parallel = nullptr;  // null: calling thread
};

// The device of this back end: host memory.
std::unique_ptr<Device> MakeCpuDevice(NumericsMode mode);

// The reference and embedded back end. `device` outlives it.
absl::StatusOr<std::unique_ptr<Ops>> MakeCpuOps(CpuOptions options, Device& device);

// Routed experts that R1 (contracts.md 1.3) promotes per 32, MTP included:
// `baton_experts_promoted_per_32`. Official mode; weights of this back end's device.
int CountPromotedExperts(const ModelWeights& weights);

}  // namespace baton::kernels::cpu
