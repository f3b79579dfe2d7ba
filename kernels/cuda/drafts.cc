#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// BeginDrafts, KeepDraft, TakeDrafts: the host says once how rows are sampled; tokens, positions
// and what is kept stay on the device until it takes them. The host's copy of the runs stands at
// the first draft meanwhile.
namespace baton::kernels::cuda {

absl::Status CudaOps::BeginDrafts(std::span<const SampleRow> rows) {
  if (rows.size() != runs_.size() || rows.size() != positions_.size() ||
      static_cast<int>(rows.size()) > options_.max_head_rows) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "BeginDrafts: %d rows, the step has %d of %d sequences and the head at most %d",
        rows.size(), positions_.size(), runs_.size(), options_.max_head_rows));
  }
  num_draft_rows_ = static_cast<int>(rows.size());
  // Rows that fill the bucket choose something and keep nothing.
  std::vector<SampleRowArgs> described(static_cast<size_t>(kept_.max_rows),
                                       {.greedy = 1, .is_draft = 1});
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].is_draft || rows[i].logits_row != static_cast<int32_t>(i)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("BeginDrafts: row %d is no draft from its own logits", i));
    }
    described[i] = ArgsOf(rows[i]);
  }
  RETURN_IF_ERROR(staging_.Begin());
  const SampleRowArgs* from = staging_.Put(std::span<const SampleRowArgs>(described));
  RETURN_IF_ERROR(staging_.Flush());
  RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(kept_.rows, from, described.size() * sizeof(*from),
                                           cudaMemcpyDeviceToDevice, stream()),
                           "BeginDrafts"));
  return ToStatus(cudaMemsetAsync(kept_.num_kept, 0, sizeof(int32_t), stream()), "BeginDrafts");
}

absl::Status CudaOps::KeepDraft() {
  SampleKernelArgs sample;
  sample.rows = kept_.rows;
  sample.num_rows = std::min(launch_.rows, kept_.max_rows);
  sample.keeps_scores = false;  // drafts are neither edited nor truncated
  sample.vocabulary = config_.vocab_size;
  sample.logits = act_.logits;
  sample.results = results_;
  RETURN_IF_ERROR(ToStatus(RunSample(sample, stream()), "KeepDraft: sample"));
  KeepDraftArgs keep;
  keep.num_rows = view_.num_rows;
  keep.results = results_;
  keep.kept = kept_;
  keep.token = const_cast<int32_t*>(view_.token);
  keep.position = const_cast<int32_t*>(view_.position);
  keep.runs = step_runs_;
  return ToStatus(RunKeepDraft(keep, stream()), "KeepDraft");
}

absl::Status CudaOps::TakeDrafts(std::span<int32_t> tokens) {
  const auto rows = static_cast<size_t>(num_draft_rows_);
  const size_t drafts = rows == 0 ? 0 : tokens.size() / rows;
  if (drafts * rows != tokens.size() || drafts > kMaxKeptDrafts) {
    return absl::InvalidArgumentError(
        absl::StrFormat("TakeDrafts: %d tokens of %d rows, at most %d drafts", tokens.size(), rows,
                        kMaxKeptDrafts));
  }
  const auto stride = static_cast<size_t>(kept_.max_rows);
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(host_drafts_, kept_.tokens, drafts * stride * sizeof(int32_t),
                               cudaMemcpyDeviceToHost, stream()),
               "TakeDrafts"));
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream()), "TakeDrafts"));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = host_drafts_[i / rows * stride + i % rows];
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
