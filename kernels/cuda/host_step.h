#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/step_view.h"
#include "kernels/ops.h"
#include "kernels/slot_progress.h"

// What the host keeps of a step.
namespace baton::kernels::cuda {

// What the phases between AdvanceStep and Head launch for, buckets of the step's sizes. Two steps
// of one shape queue the same work, so that a captured one serves the other.
struct LaunchShape {
  int rows = 0;
  int sequences = 0;
  int entries = 0;              // CSA entries the longest sequence may have
  bool has_short_runs = false;  // none longer than a verify run may be
  bool has_rows = true;         // there may be some: phases queue less for none
  auto operator<=>(const LaunchShape&) const = default;
};

// Rows of a Head.
struct HeadRows {
  const int32_t* num_rows = nullptr;  // device; null: all `rows`
  int rows = 0;
  const int32_t* x_rows = nullptr;  // device; null: 0, 1, ..
};

// Which record of a part serves a step.
struct GraphKey {
  StepPart part = StepPart::kModel;
  int drafts = 0;
  LaunchShape shape, drafting;
  auto operator<=>(const GraphKey&) const = default;
};

// One of the drafter's two views.
struct DrafterPart {
  LaunchShape launch;
  int most_rows = 0;  // live ones, at most
};

// A step as phases see it.
struct View {
  StepView arrays;
  RunInfo* runs = nullptr;
};

// The step that the current one follows, until it is harvested.
struct EarlierStep {
  std::vector<StepRun> runs;
  size_t num_choices = 0;
};

}  // namespace baton::kernels::cuda
