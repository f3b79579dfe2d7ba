#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/ops.h"
#include "kernels/weights.h"

namespace baton::engine {

// One run of the main step, before its tokens are known.
struct DraftRequest {
  int tail_slot = 0;
  int first = 0, rows = 0;  // the run's
  bool is_verify = false;
  // The step follows one in flight: `first` is the latest there may be, and so it is the drafter's,
  // which has kept up.
  bool follows = false;
  // `first` and `drafts` (in: whether the sequence goes on here) are the drafter's to set.
  kernels::AcceptRun accept;

  // Whether the token after the last row that stays is known, or will be if nothing fails.
  bool HasNext() const {
    return accept.choice != kernels::AcceptRun::kNone ||
           accept.next_token != kernels::AcceptRun::kNone;
  }
  // The run of a step that follows begins `positions` earlier.
  void MoveBack(int positions) {
    first -= positions;
    if (accept.first != kernels::AcceptRun::kNone) accept.first -= positions;
  }
};

// Keeps the MTP's window rows up with the main model, and drafts (model.md 8.2, 8.3). Row i is made
// when token i + 1 is known: in the step that computed position i, or in the next one, from the H
// the slot has kept. Of a long chunk only the last `window` rows are made: older ones are out of
// every later row's sight. What is accepted is known only when the step is harvested, so plans look
// at what may be. Changes speed, never text. Engine thread.
class Drafter {
 public:
  Drafter(kernels::Ops& ops, const kernels::ModelWeights& weights, int window, int num_tail_slots);

  // After the main step's choices are queued: accepts, makes rows, drafts. num_drafts = 0: only the
  // rows. Returns how many drafts of each run that drafts there will be.
  absl::StatusOr<int> Run(std::span<DraftRequest> requests, int num_drafts);
  // When the step is harvested: `accepted` rows of the run stay, and the token after them is known
  // or not.
  void Note(const DraftRequest& request, int accepted, bool has_next);

  void Reset(int tail_slot);
  void Resume(int tail_slot, int num_tokens, bool has_drafter_state);
  // Whether section 2 of a tail at num_tokens can be filled.
  bool HasState(int tail_slot, int num_tokens) const;

 private:
  // Of one slot: rows valid_from .. next - 1 are in its window.
  struct Progress {
    int next = 0;
    int valid_from = 0;
  };
  // Rows there may be.
  struct RowCounts {
    int rows = 0;
    int drafting = 0;  // of these
  };

  RowCounts Plan(std::span<DraftRequest> requests, int num_drafts) const;

  kernels::Ops& ops_;
  const kernels::ModelWeights& weights_;
  const int window_;
  std::vector<Progress> slots_;
};

}  // namespace baton::engine
