#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// Sample: the host reduces what depends on token lists to a few edits and a mask a row; the kernel
// does the rest (contracts.md 2.2).
namespace baton::kernels::cuda {

static_assert(kMaxTop == kMaxTopLogprobs);

// Edits and mask of one row.
struct CudaOps::RowEdits {
  std::vector<ScoreEdit> edits;
  std::vector<uint32_t> allowed;  // empty: all tokens
};

namespace {

// Collects one row's edits; a token outside the vocabulary names none.
class EditBuilder {
 public:
  EditBuilder(const SampleRow& row, std::vector<int32_t>& edit_of, std::vector<ScoreEdit>& edits,
              std::vector<uint32_t>& allowed)
      : row_(row), spec_(*row.spec), edit_of_(edit_of), edits_(edits), allowed_(allowed) {}

  void Run() {
    if (spec_.repetition_penalty != 1.0f) {
      for (const int32_t token : row_.prompt) MarkRepeated(token);
      for (const int32_t token : row_.generated) MarkRepeated(token);
    }
    if (spec_.frequency_penalty != 0 || spec_.presence_penalty != 0) {
      for (const int32_t token : row_.generated) {
        if (IsIn(token)) ++At(token).count;
      }
    }
    for (const auto& [token, bias] : spec_.logit_bias) {
      if (!IsIn(token)) continue;
      At(token).bias = bias;
      At(token).has_bias = 1;
    }
    for (const ScoreEdit& edit : edits_) edit_of_[static_cast<size_t>(edit.token)] = -1;
    Restrict();
  }

 private:
  bool IsIn(int32_t token) const {
    return token >= 0 && static_cast<size_t>(token) < edit_of_.size();
  }

  ScoreEdit& At(int32_t token) {
    int32_t& index = edit_of_[static_cast<size_t>(token)];
    if (index < 0) {
      index = static_cast<int32_t>(edits_.size());
      edits_.push_back({.token = token});
    }
    return edits_[static_cast<size_t>(index)];
  }

  void MarkRepeated(int32_t token) {
    if (IsIn(token)) At(token).repeats = 1;
  }

  void Restrict() {
    const size_t words = (edit_of_.size() + 31) / 32;
    if (!row_.token_mask.empty()) {
      CHECK(row_.token_mask.size() >= words);
      allowed_.assign(row_.token_mask.begin(),
                      row_.token_mask.begin() + static_cast<std::ptrdiff_t>(words));
    }
    if (!spec_.allowed_tokens.empty()) {
      std::vector<uint32_t> listed(words, 0);
      for (const int32_t token : spec_.allowed_tokens) {
        if (IsIn(token)) listed[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
      }
      for (size_t i = 0; i < words; ++i) listed[i] &= allowed_.empty() ? ~0u : allowed_[i];
      allowed_ = std::move(listed);
    }
    for (const std::vector<int32_t>& word : spec_.bad_words) {
      if (IsComplete(word)) Forbid(word.back());
    }
    const auto next_length = static_cast<int64_t>(row_.generated.size()) + 1;
    if (row_.finish != nullptr && next_length <= row_.finish->min_tokens) {
      for (const int32_t token : row_.finish->stop_tokens) Forbid(token);
    }
  }

  void Forbid(int32_t token) {
    if (!IsIn(token)) return;
    if (allowed_.empty()) allowed_.assign((edit_of_.size() + 31) / 32, ~0u);
    allowed_[static_cast<size_t>(token) / 32] &= ~(1u << (token % 32));
  }

  // The i-th token before this position, 0 the nearest; -1 before the prompt.
  int32_t Before(size_t i) const {
    if (i < row_.generated.size()) return row_.generated[row_.generated.size() - 1 - i];
    const size_t rest = i - row_.generated.size();
    return rest < row_.prompt.size() ? row_.prompt[row_.prompt.size() - 1 - rest] : -1;
  }

  // Whether the path ends in all tokens of the word but the last.
  bool IsComplete(const std::vector<int32_t>& word) const {
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      if (Before(i) != word[word.size() - 2 - i]) return false;
    }
    return true;
  }

  const SampleRow& row_;
  const SamplingSpec& spec_;
  std::vector<int32_t>& edit_of_;
  std::vector<ScoreEdit>& edits_;
  std::vector<uint32_t>& allowed_;
};

}  // namespace

SampleRowArgs CudaOps::ArgsOf(const SampleRow& row) {
  CHECK(row.spec != nullptr);
  const SamplingSpec& spec = *row.spec;
  SampleRowArgs args;
  args.logits_row = row.logits_row;
  args.greedy = spec.greedy ? 1 : 0;
  args.is_draft = row.is_draft ? 1 : 0;
  args.top_logprobs = spec.top_logprobs;
  args.inv_temperature = spec.inv_temperature;
  args.repetition = spec.repetition_penalty;
  args.frequency = spec.frequency_penalty;
  args.presence = spec.presence_penalty;
  args.top_k = spec.top_k;
  args.top_p = spec.top_p;
  args.min_p = spec.min_p;
  args.key = row.key;
  args.position = row.position;
  return args;
}

SampleRowArgs CudaOps::DescribeRow(const SampleRow& row, RowEdits& edits) {
  edits.edits.clear();
  edits.allowed.clear();
  SampleRowArgs args = ArgsOf(row);
  if (!row.is_draft) EditBuilder(row, edit_of_, edits.edits, edits.allowed).Run();
  args.num_edits = static_cast<int32_t>(edits.edits.size());
  return args;
}

TokenRecord CudaOps::RecordOf(const SampleResult& result) {
  TokenRecord record;
  record.token = result.token;
  record.logprob = result.logprob;
  for (int t = 0; t < result.num_top; ++t) {
    record.top.push_back({.token = result.top_tokens[t], .logprob = result.top_logprobs[t]});
  }
  return record;
}

// Waits for the kernel and hands out its results.
absl::Status CudaOps::FetchSamples(const SampleArgs& args, size_t first, size_t count) {
  RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(host_results_, results_, count * sizeof(SampleResult),
                                           cudaMemcpyDeviceToHost, stream()),
                           "Sample: results"));
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream()), "Sample"));
  for (size_t i = 0; i < count; ++i) {
    args.is_empty[first + i] = host_results_[i].is_empty != 0 ? 1 : 0;
    args.chosen[first + i] = RecordOf(host_results_[i]);
  }
  return absl::OkStatus();
}

absl::Status CudaOps::Sample(const SampleArgs& args) {
  for (const SampleRow& row : args.rows) {
    if (row.logits_row >= 0 && row.logits_row < options_.max_head_rows) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("Sample: logits row %d, have %d", row.logits_row, options_.max_head_rows));
  }
  const bool are_kept = args.chosen.empty();
  if (are_kept) {
    RETURN_IF_ERROR(CheckKept(num_choices_ + args.rows.size(), options_.max_rows));
  }
  const auto most = static_cast<size_t>(options_.max_head_rows);
  RowEdits edits;
  for (size_t first = 0; first < args.rows.size();) {
    RETURN_IF_ERROR(staging_.Begin());
    std::vector<SampleRowArgs> rows;
    const size_t row_bytes = most * sizeof(SampleRowArgs);
    for (size_t i = first; i < args.rows.size() && rows.size() < most; ++i) {
      SampleRowArgs row = DescribeRow(args.rows[i], edits);
      if (are_kept && is_following_) row.before = view_.position + row.logits_row;
      const size_t bytes = edits.edits.size() * sizeof(ScoreEdit) + edits.allowed.size() * 4;
      if (!rows.empty() && !staging_.HasRoom(bytes + 64 + row_bytes)) break;
      row.edits = staging_.Put(std::span<const ScoreEdit>(edits.edits));
      if (!edits.allowed.empty()) {
        row.allowed = staging_.Put(std::span<const uint32_t>(edits.allowed));
      }
      rows.push_back(row);
    }
    SampleKernelArgs kernel;
    kernel.rows = staging_.Put(std::span<const SampleRowArgs>(rows));
    kernel.num_rows = static_cast<int>(rows.size());
    kernel.keeps_scores = std::any_of(rows.begin(), rows.end(), KeepsScores);
    kernel.vocabulary = config_.vocab_size;
    kernel.logits = act_.logits;
    kernel.results = are_kept ? outcome_.choices() + num_choices_ : results_;
    RETURN_IF_ERROR(staging_.Flush());
    RETURN_IF_ERROR(ToStatus(RunSample(kernel, stream()), "Sample"));
    if (are_kept) {
      num_choices_ += rows.size();
    } else {
      RETURN_IF_ERROR(FetchSamples(args, first, rows.size()));
    }
    first += rows.size();
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
