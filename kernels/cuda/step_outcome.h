#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/drafts.h"

namespace baton::kernels::cuda {

// What a step has chosen, on the GPU, and its host twin: what follows for each run, kept drafts,
// kept choices, in one block that one copy brings. Engine thread.
class StepOutcome {
 public:
  struct Sizes {
    int max_runs = 0, max_draft_rows = 0, max_choices = 0;
  };
  ~StepOutcome();
  absl::Status Create(CudaDevice& device, const Sizes& sizes);
  static size_t DeviceBytes(const Sizes& sizes);

  // On the GPU.
  DrafterRun* runs() const;       // [max_runs]
  int32_t* drafts() const;        // [kMaxKeptDrafts, max_draft_rows]
  SampleResult* choices() const;  // [max_choices]

  // Queues the copy of the first `num_choices` choices and all else; the next step may overwrite
  // what it finds here.
  absl::Status Queue(size_t num_choices);
  // Waits for the copy, not for what is queued behind it.
  absl::Status Await();
  const DrafterRun& FetchedRun(size_t run) const;
  const SampleResult& FetchedChoice(size_t choice) const;
  // -1 where the run does not draft.
  int32_t FetchedDraft(size_t draft, size_t run) const;

 private:
  static size_t DraftsAt(const Sizes& sizes);
  static size_t ChoicesAt(const Sizes& sizes);

  CudaDevice* device_ = nullptr;
  Sizes sizes_;
  cudaEvent_t copied_ = nullptr;
  std::byte *device_memory_ = nullptr, *host_ = nullptr;
};

}  // namespace baton::kernels::cuda
