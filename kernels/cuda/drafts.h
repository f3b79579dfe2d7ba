#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_view.h"

// From a step's choices to drafts that follow one another. Device pointers, asynchronous.
namespace baton::kernels::cuda {

// AcceptRun (choices.h), -1 where it has none. Where the run begins is the device's to know.
struct AcceptJob {
  int32_t choice = -1;
  int32_t next_token = -1;
  int32_t has_rows = 0;
  int32_t first = 0;  // of the drafter's rows, counted from the run's first
  int32_t drafts = 0;
};

// What follows for one run of the step.
struct DrafterRun {
  int32_t accepted = 0;     // rows that stay
  int32_t next_token = -1;  // after them
  int32_t first = -1;       // position of the drafter's first row
  int32_t num_known = 0;    // rows nothing is drafted from
  int32_t first_known = 0;  // the first of these in their view
  int32_t draft_row = -1;   // the row it drafts from in theirs
};

struct KeptDrafts {
  SampleRowArgs* rows = nullptr;  // [max_rows] how each row is sampled
  int32_t* tokens = nullptr;      // [max_drafts, max_rows]
  int32_t* num_kept = nullptr;    // [1] drafts
  int max_rows = 0, max_drafts = 0;
};

// The main step, as the drafter needs it.
struct MainStep {
  const RunInfo* runs = nullptr;
  const int32_t* token = nullptr;
  int num_runs = 0;
};

// What is accepted (contracts.md 2.4), and where the drafter's rows go.
struct AcceptKernelArgs {
  MainStep main;
  const AcceptJob* jobs = nullptr;        // [runs]
  const SampleRowArgs* drafts = nullptr;  // [runs] but logits row and position
  const SampleResult* choices = nullptr;
  DrafterRun* runs = nullptr;  // [runs], out
  int32_t* counts = nullptr;   // [3], out: known rows, drafting rows, runs
  KeptDrafts kept;             // its rows, out; none is kept
};
cudaError_t RunAccept(const AcceptKernelArgs& args, cudaStream_t stream);

// The streams of a main step's rows go to the slots: all of a verify run, the last one of others,
// behind those of the position before the run.
struct KeepStreamsArgs {
  const RunInfo* runs = nullptr;
  int num_runs = 0;
  const int32_t* before = nullptr;  // [runs] among those kept, where that position's are
  SlotLayout slots;
  const uint16_t* streams = nullptr;  // [rows, S, H]
};
cudaError_t RunKeepStreams(const KeepStreamsArgs& args, cudaStream_t stream);

// The view of a step whose runs go on from the last one's outcome, before that is overwritten.
struct FollowArgs {
  int num_runs = 0;
  int rows_of_run = 0;
  const DrafterRun* outcome = nullptr;  // [runs]
  KeptDrafts kept;
  RunInfo* runs = nullptr;  // [runs] the last step's, in and out
  int32_t* live_rows = nullptr;
  int32_t* token = nullptr;
  int32_t* position = nullptr;
  int32_t* sequence = nullptr;
  FoldJob* folds = nullptr;   // [runs], out: what is verified now
  int32_t* before = nullptr;  // [runs], out: as in KeepStreamsArgs
};
cudaError_t RunFollow(const FollowArgs& args, cudaStream_t stream);

// The view of the drafter's rows, and where each finds the main model's H. Nothing but device
// memory tells one step's from another's, so that it can be recorded.
struct DrafterViewArgs {
  const RunInfo* main_runs = nullptr;
  const int32_t* main_token = nullptr;
  bool are_drafting = false;         // else the known ones
  int blocks = 0;                    // runs to launch for; the view's too
  const DrafterRun* runs = nullptr;  // [runs]
  const int32_t* counts = nullptr;   // [3]
  SlotLayout slots;
  const uint16_t* streams = nullptr;  // of the main step, [rows, S, H]

  int32_t* live_rows = nullptr;  // the view, out
  int32_t* token = nullptr;
  int32_t* position = nullptr;
  int32_t* sequence = nullptr;
  int32_t* tail_slot = nullptr;
  RunInfo* view_runs = nullptr;
  const uint16_t** sources = nullptr;  // [rows], out
};
cudaError_t RunDrafterView(const DrafterViewArgs& args, cudaStream_t stream);

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
