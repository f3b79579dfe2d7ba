#pragma once

#include <memory>

#include "absl/status/statusor.h"

#include "kernels/device.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {

struct CudaOptions {
  ModelConfig config;
  PageLayout layout;           // fp8 rows, fp8 or FP4 index
  std::byte* pages = nullptr;  // device memory; page i at i * layout.stride_bytes()
  int num_pages = 0;
  int num_tail_slots = 0;
  int max_rows = 0;       // of a step
  int max_sequences = 0;  // of a step
  int max_head_rows = 0;
  int max_context = 0;
  // Verify or replay rows of one sequence in one step; window ring = window + this.
  int max_draft_rows = 64;
  // Phases that recur with every step are recorded as CUDA graphs and replayed (Ops::Repeat).
  bool has_graphs = true;
  // Tests: linears bit-equal to the CPU back end's, slow and without tensor cores.
  bool has_reference_linears = false;
};

// GPU `ordinal` of this process. Official numerics only. kUnavailable where there is no driver or
// GPU, kInvalidArgument where not that one, kFailedPrecondition where it is none this build has
// code for (compute capability 9.0): all name what was found. `parallel` (null: the calling thread)
// reads weights while they are uploaded.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int ordinal, ParallelFor parallel = nullptr);

// The 17 phases on a device of MakeCudaDevice, which outlives the ops. Work is queued on the
// device's stream; Harvest, Digest, PackTail and UnpackTail wait for it, and Sample where its
// results are not kept, because they lie in host memory. kInvalidArgument names a size this back
// end has no kernel for.
absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(CudaOptions options, Device& device);

// GPU memory that MakeCudaOps would allocate: activations, scratch, tail slots, arguments.
size_t CudaWorkspaceBytes(const CudaOptions& options);

// Routed experts that R1 (contracts.md 1.3) promotes per 32, MTP included.
int CountPromotedExperts(const ModelWeights& weights);

}  // namespace baton::kernels::cuda
