#include "engine/model/drafter.h"

#include <algorithm>

#include "common/status.h"
#include "engine/model/mtp.h"

namespace baton::engine {

using kernels::DraftInputArgs;
using kernels::RowKind;
using kernels::SampleRow;
using kernels::SequenceRows;

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

std::vector<Drafter::Plan> Drafter::MakePlans(std::span<DraftRequest> requests, int num_drafts) {
  std::vector<Plan> plans;
  int rows = 0;
  for (DraftRequest& request : requests) {
    const int last = request.first + static_cast<int>(request.tokens.size()) - 2;
    Progress& slot = slots_[static_cast<size_t>(request.tail_slot)];
    // H is at hand from one row before the step's on.
    const int first = std::max({slot.next, last + 1 - window_, request.first - 1, 0});
    // A step with more sequences than rows left: this one's window restarts later.
    if (first > last || rows + last + 1 - first > ops_.view().max_rows) continue;
    rows += last + 1 - first;
    if (first != slot.next) slot.valid_from = first;
    slot.next = last + 1;
    const bool is_filled = slot.valid_from == 0 || last - slot.valid_from >= window_ - 1;
    plans.push_back({.request = &request,
                     .first = first,
                     .last = last,
                     .drafts = num_drafts > 0 && request.wants_drafts && is_filled});
  }
  return plans;
}

absl::Status Drafter::Run(std::span<DraftRequest> requests, int num_drafts) {
  if (!weights_.has_mtp) return absl::OkStatus();
  std::vector<Plan> plans = MakePlans(requests, num_drafts);
  RETURN_IF_ERROR(StoreRows(plans));
  std::erase_if(plans, [](const Plan& plan) { return !plan.drafts; });
  return plans.empty() ? absl::OkStatus() : Draft(plans, num_drafts);
}

// The rows nothing is drafted from.
absl::Status Drafter::StoreRows(std::span<const Plan> plans) {
  std::vector<SequenceRows> runs;
  std::vector<int32_t> source_row;
  for (const Plan& plan : plans) {
    const DraftRequest& request = *plan.request;
    const int num_rows = plan.last + 1 - plan.first - (plan.drafts ? 1 : 0);
    if (num_rows == 0) continue;
    runs.push_back({.tail_slot = request.tail_slot,
                    .kind = RowKind::kPrefill,
                    .first_position = plan.first,
                    .num_rows = num_rows,
                    .tokens = request.tokens.data() + (plan.first + 1 - request.first)});
    for (int i = plan.first; i < plan.first + num_rows; ++i) {
      source_row.push_back(i < request.first ? DraftInputArgs::kFromTail
                                             : request.first_row + (i - request.first));
    }
  }
  if (runs.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(ops_.AdvanceStep({.runs = runs, .is_drafter = true}));
  return StoreDrafterRows(ops_, weights_, source_row);
}

// Drafts start in row `last` of each sequence. The first comes from the main model's H, the others
// from the block's own output.
absl::Status Drafter::Draft(std::span<const Plan> plans, int num_drafts) {
  static const FinishRules kNoRules;  // masks are skipped for drafts
  std::vector<SequenceRows> runs;
  std::vector<SampleRow> rows;
  for (const Plan& plan : plans) {
    const DraftRequest& request = *plan.request;
    runs.push_back({.tail_slot = request.tail_slot,
                    .kind = RowKind::kPrefill,
                    .first_position = plan.last,
                    .num_rows = 1,
                    .tokens = &request.tokens.back()});
    SampleRow& row = rows.emplace_back();
    row.spec = request.spec;
    row.finish = &kNoRules;
    row.key = request.key;
    row.position = plan.last + 2;
    row.logits_row = static_cast<int32_t>(rows.size()) - 1;
    row.is_draft = true;
  }
  const std::vector<int32_t> source_row(plans.size(), DraftInputArgs::kFromTail);
  RETURN_IF_ERROR(ops_.AdvanceStep({.runs = runs, .is_drafter = true}));
  RETURN_IF_ERROR(ops_.BeginDrafts(rows));
  RETURN_IF_ERROR(RunDrafts(ops_, weights_, source_row, num_drafts));
  std::vector<int32_t> tokens(static_cast<size_t>(num_drafts) * plans.size());
  RETURN_IF_ERROR(ops_.TakeDrafts(tokens));
  for (size_t i = 0; i < tokens.size(); ++i) {
    plans[i % plans.size()].request->drafts.push_back(tokens[i]);
  }
  return absl::OkStatus();
}

}  // namespace baton::engine
