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
  const auto is_prefill = [](const Run& run) { return run.plan.kind == RowKind::kPrefill; };
  has_logits_ = row <= options_.max_head_rows && std::ranges::none_of(runs_, is_prefill);
  return RunModel(ops_, weights_, has_logits_);
}

// Every row of a verify or replay run, and the last row of a prompt once per choice; rows
// ascending.
void ModelRunner::MakeChoices() {
  kept_.clear();
  fetched_.clear();
  for (size_t r = 0; r < runs_.size(); ++r) {
    Run& run = runs_[r];
    const int rows = run.plan.rows;
    const bool is_prefill = run.plan.kind == RowKind::kPrefill;
    size_t count = static_cast<size_t>(rows);
    if (is_prefill) count = run.plan.samples_first_token ? run.sequence->choices.size() : 0;
    run.chosen.resize(count);
    run.is_empty.resize(count);
    // Several choices part ways here, each with a tail of its own: the drafter takes none.
    const bool is_kept = !is_prefill || count == 1;
    if (is_kept) run.first_kept = static_cast<int>(kept_.size());
    for (size_t i = 0; i < count; ++i) {
      const int row = run.first_row + (is_prefill ? rows - 1 : static_cast<int>(i));
      (is_kept ? kept_ : fetched_).push_back({.row = row, .run = r, .record = i});
    }
  }
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

absl::Status ModelRunner::HeadOf(std::span<const int32_t> rows) {
  return ops_.Head({.step = ops_.view(),
                    .rows = rows,
                    .mix = weights_.head_mix,
                    .norm = weights_.norm,
                    .head = weights_.head});
}

// Logits, unless all rows have them, and choices in groups of at most max_head_rows rows. The
// choices of one row stay together.
absl::Status ModelRunner::SampleChoices(std::span<const Choice> choices, bool are_kept) {
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
    if (!has_logits_) RETURN_IF_ERROR(HeadOf(head_rows));
    std::vector<TokenRecord> chosen(are_kept ? 0 : rows.size());
    std::vector<uint8_t> is_empty(chosen.size());
    RETURN_IF_ERROR(ops_.Sample({.rows = rows, .chosen = chosen, .is_empty = is_empty}));
    for (size_t i = 0; i < chosen.size(); ++i) {
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
  RETURN_IF_ERROR(HeadOf(head_rows));
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
  const auto chosen = std::span(run.chosen).first(static_cast<size_t>(run.accepted_rows));
  result.tokens.emplace_back(chosen.begin(), chosen.end());
  if (chosen.empty()) result.status = NoTokenLeft(*run.sequence, run.plan.first_position + 1);
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
  result.accepted_rows = run.accepted_rows;
  return result;
}

DraftRequest ModelRunner::DraftRequestOf(const Run& run) const {
  const Sequence& sequence = *run.sequence;
  const int end = run.plan.first_position + run.plan.rows;
  DraftRequest request;
  request.tail_slot = sequence.tail_slot;
  request.first = run.plan.first_position;
  request.rows = run.plan.rows;
  request.is_verify = run.plan.kind == RowKind::kVerify;
  kernels::AcceptRun& accept = request.accept;
  accept.key = KeyOf(sequence, 0);
  accept.spec = &sequence.sampling;
  if (request.is_verify) {
    accept.choice = run.first_kept;
    accept.drafts = true;
  } else if (end < Size(sequence.tokens)) {
    accept.next_token = sequence.tokens[static_cast<size_t>(end)];
    accept.drafts = run.plan.kind == RowKind::kReplay && end + 1 == Size(sequence.tokens);
  } else if (run.chosen.size() == 1) {
    const bool is_recorded = !sequence.received.empty() && !sequence.received[0].empty();
    if (is_recorded) accept.next_token = sequence.received[0][0];
    accept.choice = run.first_kept;
    accept.drafts = true;
  }
  return request;
}

// Waits for the device, and sorts what it hands out into the runs.
absl::StatusOr<Harvest> ModelRunner::HarvestStep(StepId step,
                                                 std::span<const DraftRequest> requests,
                                                 int num_drafts) {
  std::vector<TokenRecord> chosen(kept_.size());
  std::vector<uint8_t> is_empty(kept_.size());
  std::vector<int32_t> accepted(runs_.size());
  std::vector<int32_t> drafts(static_cast<size_t>(num_drafts) * runs_.size());
  RETURN_IF_ERROR(ops_.Harvest(
      {.chosen = chosen, .is_empty = is_empty, .accepted = accepted, .drafts = drafts}));
  for (size_t i = 0; i < kept_.size(); ++i) {
    Run& run = runs_[kept_[i].run];
    run.chosen[kept_[i].record] = std::move(chosen[i]);
    run.is_empty[kept_[i].record] = is_empty[i];
  }
  Harvest harvest;
  harvest.step = step;
  for (size_t r = 0; r < runs_.size(); ++r) {
    Run& run = runs_[r];
    run.accepted_rows = accepted[r];
    SequenceTokens& result = harvest.sequences.emplace_back(Accept(run));
    result.prompt_logprobs = std::move(run.prompt_logprobs);
    drafter_.Note(requests[r], run.accepted_rows, requests[r].HasNext() && result.status.ok());
    for (size_t d = r; d < drafts.size() && drafts[d] >= 0; d += runs_.size()) {
      result.next_drafts.push_back(drafts[d]);
    }
  }
  return harvest;
}

absl::Status ModelRunner::LaunchFinish(const StepPlan& plan, const SequenceTable&) {
  CHECK(!harvest_ && runs_.size() == plan.runs.size());
  for (size_t i = 0; i < runs_.size(); ++i) {
    Run& run = runs_[i];
    run.plan.masks = plan.runs[i].masks;
    if (run.plan.kind == RowKind::kPrefill) continue;
    const Sequence& s = *run.sequence;  // only now: the device is busy meanwhile
    run.generated.assign(s.tokens.begin() + s.prompt_tokens, s.tokens.end());
    run.generated.insert(run.generated.end(), s.drafts.begin(), s.drafts.end());
  }
  for (Run& run : runs_) RETURN_IF_ERROR(ScorePrompt(run));
  MakeChoices();
  RETURN_IF_ERROR(SampleChoices(fetched_, /*are_kept=*/false));
  RETURN_IF_ERROR(SampleChoices(kept_, /*are_kept=*/true));
  std::vector<DraftRequest> requests;
  for (const Run& run : runs_) requests.push_back(DraftRequestOf(run));
  ASSIGN_OR_RETURN(const int num_drafts, drafter_.Run(requests, plan.num_drafts));
  ASSIGN_OR_RETURN(harvest_, HarvestStep(plan.step, requests, num_drafts));
  runs_.clear();
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
