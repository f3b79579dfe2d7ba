#include "engine/model/drafter.h"

#include <algorithm>
#include <utility>

#include "common/status.h"
#include "engine/model/mtp.h"

namespace baton::engine {

using kernels::AcceptRun;

Drafter::Drafter(kernels::Ops& ops, const kernels::ModelWeights& weights, int window,
                 int num_tail_slots)
    : ops_(ops), weights_(weights), window_(window), slots_(static_cast<size_t>(num_tail_slots)) {}

void Drafter::Reset(int tail_slot) { slots_[static_cast<size_t>(tail_slot)] = {}; }

void Drafter::Resume(int tail_slot, int num_tokens, bool has_drafter_state) {
  const int oldest = has_drafter_state ? std::max(0, num_tokens - window_) : num_tokens - 1;
  slots_[static_cast<size_t>(tail_slot)] = {.next = num_tokens - 1, .valid_from = oldest};
}

bool Drafter::HasState(int tail_slot, int num_tokens) const {
  const Progress& slot = slots_[static_cast<size_t>(tail_slot)];
  return weights_.has_mtp && slot.next >= num_tokens - 1 &&
         slot.valid_from <= std::max(0, num_tokens - window_);
}

Drafter::RowCounts Drafter::Plan(std::span<DraftRequest> requests, int num_drafts) const {
  RowCounts counts;
  for (DraftRequest& request : requests) {
    AcceptRun& accept = request.accept;
    const bool wants_drafts = std::exchange(accept.drafts, false);
    if (!weights_.has_mtp) continue;
    // The last row there may be, and the one there is at least.
    const int last = request.first + request.rows - (request.HasNext() ? 1 : 2);
    const int least = request.is_verify ? request.first : last;
    const Progress& slot = slots_[static_cast<size_t>(request.tail_slot)];
    // H is at hand from one row before the step's on.
    const int first = request.follows
                          ? request.first
                          : std::max({slot.next, last + 1 - window_, request.first - 1, 0});
    // A step with more sequences than rows left: this one's window restarts later.
    if (first > last || counts.rows + last + 1 - first > ops_.view().max_rows) continue;
    counts.rows += last + 1 - first;
    accept.first = first;
    const int valid_from = first == slot.next ? slot.valid_from : first;
    const bool is_filled = request.follows || valid_from == 0 || least - valid_from >= window_ - 1;
    accept.drafts = num_drafts > 0 && wants_drafts && is_filled && request.HasNext();
    counts.drafting += accept.drafts ? 1 : 0;
  }
  return counts;
}

absl::StatusOr<int> Drafter::Run(std::span<DraftRequest> requests, int num_drafts) {
  const RowCounts counts = Plan(requests, num_drafts);
  std::vector<AcceptRun> runs;
  for (const DraftRequest& request : requests) runs.push_back(request.accept);
  RETURN_IF_ERROR(ops_.Accept({.runs = runs}));
  if (counts.rows == 0) return 0;
  const int drafts = counts.drafting > 0 ? num_drafts : 0;
  RETURN_IF_ERROR(RunDrafter(ops_, weights_, drafts));
  return drafts;
}

void Drafter::Note(const DraftRequest& request, int accepted, bool has_next) {
  const int first = request.accept.first, last = request.first + accepted - (has_next ? 1 : 2);
  if (first == AcceptRun::kNone || first > last) return;
  Progress& slot = slots_[static_cast<size_t>(request.tail_slot)];
  if (first != slot.next) slot.valid_from = first;
  slot.next = last + 1;
}

}  // namespace baton::engine
