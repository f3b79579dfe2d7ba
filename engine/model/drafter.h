#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "engine/pages/sequence.h"
#include "kernels/ops.h"
#include "kernels/weights.h"

namespace baton::engine {

// What a main step left of one sequence: rows first .. end - 1 stay, and the tokens after them are
// known.
struct DraftRequest {
  int tail_slot = 0;
  int first_row = 0;  // of the step, its row of position `first`
  int first = 0;
  std::vector<int32_t>
      tokens;  // positions first .. end, or .. end - 1 where token `end` is not known yet
  bool wants_drafts = false;  // token `end` is known and the sequence goes on here
  uint64_t key = 0;           // of its sampling noise
  const SamplingSpec* spec = nullptr;
  std::vector<int32_t> drafts;  // out: for positions end + 1 ..
};

// Keeps the MTP's window rows up with the main model, and drafts (model.md 8.2, 8.3). Row i is made
// when token i + 1 is known: in the step that computed position i, or in the next one, from the H
// the slot has kept. Of a long chunk only the last `window` rows are made: older ones are out of
// every later row's sight. Changes speed, never text. Engine thread.
class Drafter {
 public:
  Drafter(kernels::Ops& ops, const kernels::ModelWeights& weights, int window, int num_tail_slots);

  // After the main step's samples, before any other step. num_drafts = 0: only the rows.
  absl::Status Run(std::span<DraftRequest> requests, int num_drafts);

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
  struct Plan {
    DraftRequest* request = nullptr;
    int first = 0;  // rows first .. last
    int last = 0;
    bool drafts = false;
  };

  std::vector<Plan> MakePlans(std::span<DraftRequest> requests, int num_drafts);
  absl::Status StoreRows(std::span<const Plan> plans);
  absl::Status Draft(std::span<const Plan> plans, int num_drafts);

  kernels::Ops& ops_;
  const kernels::ModelWeights& weights_;
  const int window_;
  std::vector<Progress> slots_;
};

}  // namespace baton::engine
