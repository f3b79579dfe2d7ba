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
                                      int first_row) {
  Run run;
  run.plan = plan;
  run.sequence = &sequence;
  run.first_row = first_row;
  return run;
}

// The input, as far as the sequence goes, then its drafts.
std::vector<int32_t> ModelRunner::TokensOf(const Run& run) {
  const SequenceRun& plan = run.plan;
  const Sequence& sequence = *run.sequence;
  const int known = std::min(plan.rows, Size(sequence.tokens) - plan.first_position);
  const auto first = sequence.tokens.begin() + plan.first_position;
  std::vector<int32_t> tokens(first, first + known);
  const int num_drafts = plan.rows - known;
  CHECK(known > 0 && num_drafts <= Size(sequence.drafts));
  CHECK(num_drafts == 0 || plan.kind == RowKind::kVerify);
  tokens.insert(tokens.end(), sequence.drafts.begin(), sequence.drafts.begin() + num_drafts);
  return tokens;
}

absl::Status ModelRunner::LaunchForward(const StepPlan& plan, const SequenceTable& sequences) {
  CHECK(steps_.size() == (plan.follows ? 1 : 0));
  Step& step = steps_.emplace_back();
  step.id = plan.step;
  step.follows = plan.follows;
  int row = 0;
  for (const SequenceRun& run : plan.runs) {
    step.runs.push_back(MakeRun(run, sequences.Get(run.sequence), row));
    if (!plan.follows) step.runs.back().tokens = TokensOf(step.runs.back());
    row += run.rows;
  }
  std::vector<SequenceRows> rows;
  for (const Run& run : step.runs) {
    const std::span<const PageId> pages = run.sequence->pages.ids();
    rows.push_back({.tail_slot = run.sequence->tail_slot,
                    .kind = run.plan.kind,
                    .first_position = run.plan.first_position,
                    .num_rows = run.plan.rows,
                    .tokens = run.tokens.data(),
                    .pages = pages.data(),
                    .num_pages = static_cast<int32_t>(pages.size())});
  }
  RETURN_IF_ERROR(ops_.AdvanceStep({.runs = rows, .follows = plan.follows}));
  const auto is_prefill = [](const Run& run) { return run.plan.kind == RowKind::kPrefill; };
  step.has_logits = row <= options_.max_head_rows && std::ranges::none_of(step.runs, is_prefill);
  return RunModel(ops_, weights_, step.has_logits);
}

// Every row of a verify or replay run, and the last row of a prompt once per choice; rows
// ascending.
void ModelRunner::MakeChoices(Step& step) {
  for (size_t r = 0; r < step.runs.size(); ++r) {
    Run& run = step.runs[r];
    const int rows = run.plan.rows;
    const bool is_prefill = run.plan.kind == RowKind::kPrefill;
    size_t count = static_cast<size_t>(rows);
    if (is_prefill) count = run.plan.samples_first_token ? run.sequence->choices.size() : 0;
    run.chosen.resize(count);
    run.is_empty.resize(count);
    // Several choices part ways here, each with a tail of its own: the drafter takes none.
    const bool is_kept = !is_prefill || count == 1;
    if (is_kept) run.first_kept = static_cast<int>(step.kept.size());
    for (size_t i = 0; i < count; ++i) {
      const int row = run.first_row + (is_prefill ? rows - 1 : static_cast<int>(i));
      (is_kept ? step.kept : step.fetched).push_back({.row = row, .run = r, .record = i});
    }
  }
}

// logits_row is filled in by the caller.
SampleRow ModelRunner::SampleRowOf(const Step& step, const Choice& choice) {
  const Run& run = step.runs[choice.run];
  const Sequence& sequence = *run.sequence;
  const bool is_prefill = run.plan.kind == RowKind::kPrefill;
  const int position = run.plan.first_position + (choice.row - run.first_row) + 1;
  const auto num_generated = static_cast<size_t>(std::max(0, position - sequence.prompt_tokens));
  SampleRow row;
  row.spec = &sequence.sampling;
  row.key = KeyOf(sequence, is_prefill ? choice.record : 0);
  row.position = position;
  if (step.follows) return row;  // no rule looks back (StepRunner::CanFollow)
  row.finish = &sequence.finish;
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
absl::Status ModelRunner::SampleChoices(Step& step, std::span<const Choice> choices,
                                        bool are_kept) {
  size_t done = 0;
  while (done < choices.size()) {
    std::vector<int32_t> head_rows;
    std::vector<SampleRow> rows;
    size_t end = done;
    for (; end < choices.size(); ++end) {
      const bool is_new = head_rows.empty() || head_rows.back() != choices[end].row;
      if (is_new && static_cast<int>(head_rows.size()) == options_.max_head_rows) break;
      if (is_new) head_rows.push_back(choices[end].row);
      rows.push_back(SampleRowOf(step, choices[end]));
      rows.back().logits_row = static_cast<int32_t>(head_rows.size()) - 1;
    }
    if (!step.has_logits) RETURN_IF_ERROR(HeadOf(head_rows));
    std::vector<TokenRecord> chosen(are_kept ? 0 : rows.size());
    std::vector<uint8_t> is_empty(chosen.size());
    RETURN_IF_ERROR(ops_.Sample({.rows = rows, .chosen = chosen, .is_empty = is_empty}));
    for (size_t i = 0; i < chosen.size(); ++i) {
      Run& run = step.runs[choices[done + i].run];
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

DraftRequest ModelRunner::DraftRequestOf(const Run& run, bool follows) {
  const Sequence& sequence = *run.sequence;
  const int end = run.plan.first_position + run.plan.rows;
  DraftRequest request;
  request.tail_slot = sequence.tail_slot;
  request.first = run.plan.first_position;
  request.rows = run.plan.rows;
  request.is_verify = run.plan.kind == RowKind::kVerify;
  request.follows = follows;
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

absl::Status ModelRunner::LaunchFinish(const StepPlan& plan, const SequenceTable&) {
  Step& step = steps_.back();
  CHECK(step.id == plan.step && step.runs.size() == plan.runs.size());
  for (size_t i = 0; i < step.runs.size(); ++i) {
    Run& run = step.runs[i];
    run.plan.masks = plan.runs[i].masks;
    if (run.plan.kind == RowKind::kPrefill || step.follows) continue;
    const Sequence& s = *run.sequence;  // only now: the device is busy meanwhile
    run.generated.assign(s.tokens.begin() + s.prompt_tokens, s.tokens.end());
    run.generated.insert(run.generated.end(), s.drafts.begin(), s.drafts.end());
  }
  for (Run& run : step.runs) RETURN_IF_ERROR(ScorePrompt(run));
  MakeChoices(step);
  RETURN_IF_ERROR(SampleChoices(step, step.fetched, /*are_kept=*/false));
  RETURN_IF_ERROR(SampleChoices(step, step.kept, /*are_kept=*/true));
  for (const Run& run : step.runs) step.requests.push_back(DraftRequestOf(run, step.follows));
  ASSIGN_OR_RETURN(step.num_drafts, drafter_.Run(step.requests, plan.num_drafts));
  return absl::OkStatus();
}

bool ModelRunner::CanFollow(int num_drafts) const {
  if (!options_.goes_ahead || steps_.size() != 1) return false;
  const Step& step = steps_.front();
  if (step.num_drafts != num_drafts) return false;
  const int rows = static_cast<int>(step.runs.size()) * (1 + num_drafts);
  const auto goes_on = [&](const DraftRequest& request) {
    const bool has_rows = request.accept.first != kernels::AcceptRun::kNone;
    return request.is_verify && request.accept.drafts == (num_drafts > 0) &&
           has_rows == weights_.has_mtp;
  };
  return rows <= std::min(options_.max_head_rows, ops_.view().max_rows) &&
         std::ranges::all_of(step.requests, goes_on);
}

// What the first step keeps says where the second's runs begin.
void ModelRunner::MoveToTrueRows(const Step& before, Step& step) {
  for (size_t r = 0; r < step.runs.size(); ++r) {
    const int first = before.runs[r].plan.first_position + before.runs[r].accepted_rows;
    step.requests[r].MoveBack(step.runs[r].plan.first_position - first);
    step.runs[r].plan.first_position = first;
  }
}

// Sorts what the device hands out into the runs.
absl::StatusOr<Harvest> ModelRunner::Await() {
  CHECK(!steps_.empty());
  Step& step = steps_.front();
  std::vector<TokenRecord> chosen(step.kept.size());
  std::vector<uint8_t> is_empty(step.kept.size());
  std::vector<int32_t> accepted(step.runs.size());
  std::vector<int32_t> drafts(static_cast<size_t>(step.num_drafts) * step.runs.size());
  RETURN_IF_ERROR(ops_.Harvest(
      {.chosen = chosen, .is_empty = is_empty, .accepted = accepted, .drafts = drafts}));
  for (size_t i = 0; i < step.kept.size(); ++i) {
    Run& run = step.runs[step.kept[i].run];
    run.chosen[step.kept[i].record] = std::move(chosen[i]);
    run.is_empty[step.kept[i].record] = is_empty[i];
  }
  Harvest harvest;
  harvest.step = step.id;
  for (size_t r = 0; r < step.runs.size(); ++r) {
    Run& run = step.runs[r];
    run.accepted_rows = accepted[r];
    SequenceTokens& result = harvest.sequences.emplace_back(Accept(run));
    result.prompt_logprobs = std::move(run.prompt_logprobs);
    const DraftRequest& request = step.requests[r];
    drafter_.Note(request, run.accepted_rows, request.HasNext() && result.status.ok());
    for (size_t d = r; d < drafts.size() && drafts[d] >= 0; d += step.runs.size()) {
      result.next_drafts.push_back(drafts[d]);
    }
  }
  if (steps_.size() == 2 && steps_.back().requests.size() == steps_.back().runs.size())
    MoveToTrueRows(step, steps_.back());
  steps_.pop_front();
  return harvest;
}

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
