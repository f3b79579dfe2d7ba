#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_view.h"

// Drafts that follow one another on the device. Device pointers, asynchronous.
namespace baton::kernels::cuda {

struct KeptDrafts {
  SampleRowArgs* rows = nullptr;  // [max_rows] how each row is sampled
  int32_t* tokens = nullptr;      // [max_drafts, max_rows]
  int32_t* num_kept = nullptr;    // [1] drafts
  int max_rows = 0, max_drafts = 0;
};

// What the sampler chose for each row of the view is kept and becomes its input at the next
// position; every sequence has one row.
struct KeepDraftArgs {
  const int32_t* num_rows = nullptr;  // [1]
  const SampleResult* results = nullptr;
  KeptDrafts kept;
  int32_t* token = nullptr;  // of the view
  int32_t* position = nullptr;
  RunInfo* runs = nullptr;
};
cudaError_t RunKeepDraft(const KeepDraftArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
