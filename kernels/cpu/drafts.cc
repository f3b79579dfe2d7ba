#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cpu/attention_phases.h"
#include "kernels/cpu/cpu_ops_impl.h"

// Drafts that follow one another: BeginDrafts, KeepDraft, TakeDrafts.
namespace baton::kernels::cpu {

absl::Status CpuOps::BeginDrafts(std::span<const SampleRow> rows) {
  if (static_cast<int>(rows.size()) != num_rows_ || num_rows_ > options_.max_head_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("BeginDrafts: %d rows, the step has %d and the head at most %d",
                        rows.size(), num_rows_, options_.max_head_rows));
  }
  draft_rows_.assign(rows.begin(), rows.end());
  drafts_.clear();
  return absl::OkStatus();
}

absl::Status CpuOps::KeepDraft() {
  std::vector<TokenRecord> chosen(draft_rows_.size());
  std::vector<uint8_t> is_empty(draft_rows_.size());
  RETURN_IF_ERROR(Sample({.rows = draft_rows_, .chosen = chosen, .is_empty = is_empty}));
  for (size_t i = 0; i < draft_rows_.size(); ++i) {
    drafts_.push_back(chosen[i].token);
    token_[i] = chosen[i].token;
    ++position_[i];
    ++draft_rows_[i].position;
    ++attention_->runs[i].first;
  }
  return absl::OkStatus();
}

absl::Status CpuOps::TakeDrafts(std::span<int32_t> tokens) {
  if (tokens.size() != drafts_.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("TakeDrafts: %d tokens, %d were kept", tokens.size(), drafts_.size()));
  }
  std::ranges::copy(drafts_, tokens.begin());
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
