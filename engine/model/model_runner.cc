#include "engine/model/model_runner.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/rng.h"
#include "common/status.h"
#include "engine/model/forward.h"

namespace baton::engine {
namespace {

using kernels::SampleRow;
using kernels::SequenceRows;

constexpr int kScoredRows = 64;  // of a prompt at once: their logits and edited scores are bounded

int Size(const std::vector<int32_t>& tokens) { return static_cast<int>(tokens.size()); }

uint64_t KeyOf(const Sequence& sequence, size_t choice) {
  return Mix64(sequence.sampling.seed + static_cast<uint64_t>(sequence.choices[choice]));
}

absl::Status NoTokenLeft(const Sequence& sequence, int position) {
  return absl::InternalError(absl::StrFormat("request %s: grammar allows no token at position %d",
                                             sequence.request_id, position));
}

}  // namespace

ModelRunner::ModelRunner(kernels::Ops& ops, const kernels::ModelWeights& weights,
                         const kernels::ModelConfig& config, const ModelRunnerOptions& options)
    : ops_(ops),
      weights_(weights),
      options_(options),
      drafter_(ops, weights, config.sliding_window, options.num_tail_slots) {
  CHECK(options.max_head_rows >= ops.view().max_sequences);  // every sequence may draft
}

ModelRunner::Run ModelRunner::MakeRun(const SequenceRun& plan, const Sequence& sequence,
                                      int first_row) const {
  Run run;
  run.plan = plan;
  run.sequence = &sequence;
  run.first_row = first_row;
  const int known = std::min(plan.rows, Size(sequence.tokens) - plan.first_position);
  const auto first = sequence.tokens.begin() + plan.first_position;
  run.tokens.assign(first, first + known);
  const int num_drafts = plan.rows - known;
  CHECK(known > 0 && num_drafts <= Size(sequence.drafts));
  CHECK(num_drafts == 0 || plan.kind == RowKind::kVerify);
  run.tokens.insert(run.tokens.end(), sequence.drafts.begin(),
                    sequence.drafts.begin() + num_drafts);
  if (plan.kind == RowKind::kPrefill) return run;
  run.generated.assign(sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end());
  run.generated.insert(run.generated.end(), sequence.drafts.begin(),
                       sequence.drafts.begin() + num_drafts);
  return run;
}

absl::Status ModelRunner::LaunchForward(const StepPlan& plan, const SequenceTable& sequences) {
  runs_.clear();
  int row = 0;
  for (const SequenceRun& run : plan.runs) {
    runs_.push_back(MakeRun(run, sequences.Get(run.sequence), row));
    row += run.rows;
  }
  std::vector<SequenceRows> rows;
  for (const Run& run : runs_) {
    const std::span<const PageId> pages = run.sequence->pages.ids();
    rows.push_back({.tail_slot = run.sequence->tail_slot,
                    .kind = run.plan.kind,
                    .first_position = run.plan.first_position,
                    .num_rows = run.plan.rows,
                    .tokens = run.tokens.data(),
                    .pages = pages.data(),
                    .num_pages = static_cast<int32_t>(pages.size())});
  }
  RETURN_IF_ERROR(ops_.AdvanceStep({.runs = rows}));
  return RunModel(ops_, weights_);
}

// Every row of a verify or replay run, and the last row of a prompt once per choice; rows
// ascending.
std::vector<ModelRunner::Choice> ModelRunner::MakeChoices() {
  std::vector<Choice> choices;
  for (size_t r = 0; r < runs_.size(); ++r) {
    Run& run = runs_[r];
    const int rows = run.plan.rows;
    const bool is_prefill = run.plan.kind == RowKind::kPrefill;
    size_t count = static_cast<size_t>(rows);
    if (is_prefill) count = run.plan.samples_first_token ? run.sequence->choices.size() : 0;
    run.chosen.resize(count);
    run.is_empty.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const int row = run.first_row + (is_prefill ? rows - 1 : static_cast<int>(i));
      choices.push_back({.row = row, .run = r, .record = i});
    }
  }
  return choices;
}

// logits_row is filled in by the caller.
SampleRow ModelRunner::SampleRowOf(const Choice& choice) const {
  const Run& run = runs_[choice.run];
  const Sequence& sequence = *run.sequence;
  const bool is_prefill = run.plan.kind == RowKind::kPrefill;
  const int position = run.plan.first_position + (choice.row - run.first_row) + 1;
  const auto num_generated = static_cast<size_t>(std::max(0, position - sequence.prompt_tokens));
  SampleRow row;
  row.spec = &sequence.sampling;
  row.finish = &sequence.finish;
  row.key = KeyOf(sequence, is_prefill ? choice.record : 0);
  row.position = position;
  row.prompt = std::span(sequence.tokens).first(static_cast<size_t>(sequence.prompt_tokens));
  row.generated = std::span(run.generated).first(num_generated);
  const std::vector<TokenMask>& masks = run.plan.masks;
  if (!masks.empty()) row.token_mask = masks[is_prefill ? 0 : choice.record];
  return row;
}

// Logits and choices in groups of at most max_head_rows rows. The choices of one row stay together.
absl::Status ModelRunner::SampleChoices(std::span<const Choice> choices) {
  size_t done = 0;
  while (done < choices.size()) {
    std::vector<int32_t> head_rows;
    std::vector<SampleRow> rows;
    size_t end = done;
    for (; end < choices.size(); ++end) {
      const bool is_new = head_rows.empty() || head_rows.back() != choices[end].row;
      if (is_new && static_cast<int>(head_rows.size()) == options_.max_head_rows) break;
      if (is_new) head_rows.push_back(choices[end].row);
      rows.push_back(SampleRowOf(choices[end]));
      rows.back().logits_row = static_cast<int32_t>(head_rows.size()) - 1;
    }
    std::vector<TokenRecord> chosen(rows.size());
    std::vector<uint8_t> is_empty(rows.size());
    RETURN_IF_ERROR(ops_.Head({.step = ops_.view(),
                               .rows = head_rows,
                               .mix = weights_.head_mix,
                               .norm = weights_.norm,
                               .head = weights_.head}));
    RETURN_IF_ERROR(ops_.Sample({.rows = rows, .chosen = chosen, .is_empty = is_empty}));
    for (size_t i = 0; i < rows.size(); ++i) {
      Run& run = runs_[choices[done + i].run];
      run.chosen[choices[done + i].record] = std::move(chosen[i]);
      run.is_empty[choices[done + i].record] = is_empty[i];
    }
    done = end;
  }
  return absl::OkStatus();
}

// The prompt's own tokens at the positions after the run's rows, if the sequence asks for them. A
// row's bits do not depend on the rows beside it, so neither chunks nor groups show in the report.
absl::Status ModelRunner::ScorePrompt(Run& run) {
  if (run.plan.kind != RowKind::kPrefill || run.sequence->prompt_logprobs < 0)
    return absl::OkStatus();
  const int last = run.sequence->prompt_tokens - 1;  // nothing of the prompt follows this row
  const int count = std::min(run.plan.rows, last - run.plan.first_position);
  const int group = std::min(options_.max_head_rows, kScoredRows);
  for (int begin = 0; begin < count; begin += group)
    RETURN_IF_ERROR(ScorePromptRows(run, begin, std::min(begin + group, count)));
  return absl::OkStatus();
}

// Rows begin .. end - 1 of the run. The sampler may choose the next prompt token only, and reports
// it from the raw logits (contracts.md 2.5).
absl::Status ModelRunner::ScorePromptRows(Run& run, int begin, int end) {
  static const FinishRules kNoRules;
  const auto count = static_cast<size_t>(end - begin);
  std::vector<int32_t> head_rows(count);
  std::vector<SamplingSpec> specs(count);
  std::vector<SampleRow> rows(count);
  for (size_t i = 0; i < count; ++i) {
    const int position = run.plan.first_position + begin + static_cast<int>(i) + 1;
    head_rows[i] = run.first_row + begin + static_cast<int>(i);
    specs[i].greedy = true;
    specs[i].allowed_tokens = {run.sequence->tokens[static_cast<size_t>(position)]};
    specs[i].top_logprobs = run.sequence->prompt_logprobs;
    rows[i].spec = &specs[i];
    rows[i].finish = &kNoRules;
    rows[i].position = position;
    rows[i].logits_row = static_cast<int32_t>(i);
  }
  std::vector<TokenRecord> scored(count);
  std::vector<uint8_t> is_empty(count);
  RETURN_IF_ERROR(ops_.Head({.step = ops_.view(),
                             .rows = head_rows,
                             .mix = weights_.head_mix,
                             .norm = weights_.norm,
                             .head = weights_.head}));
  RETURN_IF_ERROR(ops_.Sample({.rows = rows, .chosen = scored, .is_empty = is_empty}));
  for (size_t i = 0; i < count; ++i) {
    if (is_empty[i] != 0) {  // its logit is -inf
      scored[i] = {.token = specs[i].allowed_tokens[0],
                   .logprob = -std::numeric_limits<float>::infinity(),
                   .top = {}};
    }
    run.prompt_logprobs.push_back(std::move(scored[i]));
  }
  return absl::OkStatus();
}

SequenceTokens ModelRunner::AcceptPrefill(const Run& run) const {
  SequenceTokens result;
  result.accepted_rows = run.plan.rows;
  for (size_t i = 0; i < run.chosen.size(); ++i) {
    if (run.is_empty[i] != 0) {
      result.status = NoTokenLeft(*run.sequence, run.plan.first_position + run.plan.rows);
    }
    result.tokens.push_back({run.chosen[i]});
  }
  return result;
}

// The record wins; the sampler's choices are only compared.
SequenceTokens ModelRunner::AcceptReplay(const Run& run) const {
  SequenceTokens result;
  result.accepted_rows = run.plan.rows;
  result.tokens.resize(1);
  for (size_t i = 0; i < run.chosen.size(); ++i) {
    const size_t position = static_cast<size_t>(run.plan.first_position) + i + 1;
    const bool is_equal =
        run.is_empty[i] == 0 && run.chosen[i].token == run.sequence->tokens[position];
    if (!is_equal) ++result.replay_mismatches;
  }
  return result;
}

SequenceTokens ModelRunner::AcceptVerify(const Run& run) const {
  SequenceTokens result;
  std::vector<TokenRecord>& tokens = result.tokens.emplace_back();
  for (size_t i = 0; i < run.chosen.size(); ++i) {
    if (run.is_empty[i] != 0) break;
    tokens.push_back(run.chosen[i]);
    const bool is_draft_right =
        i + 1 < run.tokens.size() && run.tokens[i + 1] == tokens.back().token;
    if (!is_draft_right) break;
  }
  result.accepted_rows = static_cast<int>(tokens.size());
  if (tokens.empty()) result.status = NoTokenLeft(*run.sequence, run.plan.first_position + 1);
  return result;
}

SequenceTokens ModelRunner::Accept(const Run& run) const {
  SequenceTokens result;
  switch (run.plan.kind) {
    case RowKind::kPrefill:
      result = AcceptPrefill(run);
      break;
    case RowKind::kReplay:
      result = AcceptReplay(run);
      break;
    case RowKind::kVerify:
      result = AcceptVerify(run);
      break;
  }
  result.sequence = run.plan.sequence;
  return result;
}

DraftRequest ModelRunner::DraftRequestOf(const Run& run, const SequenceTokens& accepted) const {
  const Sequence& sequence = *run.sequence;
  const int first = run.plan.first_position, end = first + accepted.accepted_rows;
  DraftRequest request;
  request.tail_slot = sequence.tail_slot;
  request.first_row = run.first_row;
  request.first = first;
  request.key = KeyOf(sequence, 0);
  request.spec = &sequence.sampling;
  request.tokens.assign(run.tokens.begin(), run.tokens.begin() + accepted.accepted_rows);
  if (end < Size(sequence.tokens)) {
    request.tokens.push_back(sequence.tokens[static_cast<size_t>(end)]);
    request.wants_drafts = run.plan.kind == RowKind::kReplay && end + 1 == Size(sequence.tokens);
    return request;
  }
  // Several choices part ways here, each with a tail of its own.
  if (sequence.choices.size() != 1 || accepted.tokens.empty()) return request;
  const bool is_recorded = run.plan.kind == RowKind::kPrefill && !sequence.received.empty() &&
                           !sequence.received[0].empty();
  request.tokens.push_back(is_recorded ? sequence.received[0][0] : accepted.tokens[0].back().token);
  request.wants_drafts = true;
  return request;
}

absl::Status ModelRunner::LaunchFinish(const StepPlan& plan, const SequenceTable&) {
  CHECK(!harvest_ && runs_.size() == plan.runs.size());
  for (size_t i = 0; i < runs_.size(); ++i) runs_[i].plan.masks = plan.runs[i].masks;
  for (Run& run : runs_) RETURN_IF_ERROR(ScorePrompt(run));
  const std::vector<Choice> choices = MakeChoices();
  RETURN_IF_ERROR(SampleChoices(choices));
  Harvest harvest;
  harvest.step = plan.step;
  std::vector<DraftRequest> requests;
  std::vector<size_t> requesters;
  for (Run& run : runs_) {
    SequenceTokens& accepted = harvest.sequences.emplace_back(Accept(run));
    accepted.prompt_logprobs = std::move(run.prompt_logprobs);
    if (!accepted.status.ok()) continue;
    requests.push_back(DraftRequestOf(run, accepted));
    requesters.push_back(harvest.sequences.size() - 1);
  }
  RETURN_IF_ERROR(drafter_.Run(requests, plan.num_drafts));
  for (size_t i = 0; i < requests.size(); ++i) {
    harvest.sequences[requesters[i]].next_drafts = std::move(requests[i].drafts);
  }
  runs_.clear();
  if (options_.device != nullptr) RETURN_IF_ERROR(options_.device->Synchronize());
  harvest_ = std::move(harvest);
  return absl::OkStatus();
}

std::optional<Harvest> ModelRunner::Poll() { return std::exchange(harvest_, std::nullopt); }

void ModelRunner::ResetTail(int tail_slot) {
  ops_.ResetTail(tail_slot);
  drafter_.Reset(tail_slot);
}

absl::Status ModelRunner::PackTail(const kernels::TailArgs& args) {
  kernels::TailArgs checked = args;
  checked.has_drafter_state = args.has_drafter_state &&
                              drafter_.HasState(args.tail_slot, static_cast<int>(args.num_tokens));
  return ops_.PackTail(checked);
}

absl::Status ModelRunner::UnpackTail(const kernels::TailArgs& args) {
  RETURN_IF_ERROR(ops_.UnpackTail(args));
  drafter_.Resume(args.tail_slot, static_cast<int>(args.num_tokens), args.has_drafter_state);
  return absl::OkStatus();
}

}  // namespace baton::engine
