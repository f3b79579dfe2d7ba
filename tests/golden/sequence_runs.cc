#include "tests/golden/sequence_runs.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace baton::golden {

using engine::Harvest;
using engine::Sequence;
using engine::SequenceTokens;
using engine::StepPlan;
using kernels::RowKind;
using kernels::TailLayout;

SequenceRuns::SequenceRuns(TestModel& model, const TestModelOptions& options)
    : model_(model),
      pool_(model.pages().data(), options.num_pages, model.layout().stride_bytes(),
            model.layout().payload_bytes()),
      runner_(model.ops(), model.weights(), model.config(),
              {.num_tail_slots = options.num_tail_slots, .max_head_rows = options.max_head_rows}) {}

SequenceId SequenceRuns::Start(std::vector<int32_t> prompt, const SamplingSpec& sampling,
                               int skipped_pages) {
  constexpr int kRoomTokens = 256;  // for what is generated
  const int pages = (static_cast<int>(prompt.size()) + kRoomTokens) / kPageTokens + 1;
  auto booking = pool_.Book(pages + skipped_pages);
  CHECK(booking.ok());
  skipped_.push_back(pool_.TakeForSteps(*booking, skipped_pages));
  auto sequence = std::make_unique<Sequence>();
  sequence->id = SequenceId{next_id_++};
  sequence->prompt_tokens = static_cast<int>(prompt.size());
  sequence->tokens = std::move(prompt);
  sequence->pages = pool_.TakeForSteps(*booking, pages);
  sequence->tail_slot = static_cast<int>(sequences_.size());
  sequence->sampling = sampling;
  sequence->finish.max_tokens = kRoomTokens;
  CHECK(sequence->tail_slot < runner_.num_tail_slots());
  runner_.ResetTail(sequence->tail_slot);
  const SequenceId id = sequence->id;
  sequences_[id.value] = std::move(sequence);
  return id;
}

Harvest SequenceRuns::Run(const StepPlan& plan) {
  const absl::Status forward = runner_.LaunchForward(plan, *this);
  if (!forward.ok()) std::fprintf(stderr, "%s\n", forward.ToString().c_str());
  CHECK(forward.ok());
  CHECK(runner_.LaunchFinish(plan, *this).ok());
  absl::StatusOr<Harvest> harvest = runner_.Await();
  CHECK(harvest.ok() && harvest->sequences.size() == plan.runs.size());
  for (const SequenceTokens& result : harvest->sequences) CHECK(result.status.ok());
  return *std::move(harvest);
}

void SequenceRuns::Prefill(std::span<const SequenceId> ids, std::span<const int> rows,
                           int num_drafts) {
  StepPlan plan;
  plan.num_drafts = num_drafts;
  for (size_t i = 0; i < ids.size(); ++i) {
    const Sequence& s = Get(ids[i]);
    const int count = std::min(rows[i], s.prompt_tokens - s.computed);
    plan.runs.push_back({.sequence = ids[i],
                         .first_position = s.computed,
                         .rows = count,
                         .kind = RowKind::kPrefill,
                         .samples_first_token = s.computed + count == s.prompt_tokens});
  }
  Harvest harvest = Run(plan);
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& s = Edit(ids[i]);
    SequenceTokens& result = harvest.sequences[i];
    s.computed += result.accepted_rows;
    s.drafts = std::move(result.next_drafts);
    for (TokenRecord& record : result.prompt_logprobs)
      prompt_logprobs_[ids[i].value].push_back(std::move(record));
    if (!plan.runs[i].samples_first_token) continue;
    for (const std::vector<TokenRecord>& choice : result.tokens)
      first_tokens_[ids[i].value].push_back(choice.at(0));
    s.tokens.push_back(result.tokens.at(0).at(0).token);
    records_[ids[i].value].push_back(result.tokens[0][0]);
  }
}

void SequenceRuns::PrefillAll(SequenceId id, int chunk, int num_drafts) {
  while (Get(id).IsPrefilling()) Prefill({&id, 1}, {&chunk, 1}, num_drafts);
}

void SequenceRuns::Decode(std::span<const SequenceId> ids, int num_drafts, int max_generated) {
  StepPlan plan;
  plan.num_drafts = num_drafts;
  for (const SequenceId id : ids) {
    const Sequence& s = Get(id);
    const int left = s.prompt_tokens + max_generated - static_cast<int>(s.tokens.size());
    if (left <= 0) continue;
    plan.runs.push_back({.sequence = id,
                         .first_position = s.computed,
                         .rows = std::min(left, 1 + static_cast<int>(s.drafts.size())),
                         .kind = RowKind::kVerify});
  }
  if (plan.runs.empty()) return;
  Harvest harvest = Run(plan);
  for (SequenceTokens& result : harvest.sequences) {
    Sequence& s = Edit(result.sequence);
    s.computed += result.accepted_rows;
    s.drafts = std::move(result.next_drafts);
    for (const TokenRecord& record : result.tokens.at(0)) {
      s.tokens.push_back(record.token);
      records_[result.sequence.value].push_back(record);
    }
  }
}

void SequenceRuns::DecodeTo(SequenceId id, int num_drafts, int max_generated) {
  const auto target = static_cast<size_t>(Get(id).prompt_tokens + max_generated);
  while (Get(id).tokens.size() < target) Decode({&id, 1}, num_drafts, max_generated);
}

int SequenceRuns::Replay(SequenceId id, std::span<const int32_t> record, int rows) {
  Sequence& s = Edit(id);
  s.tokens.resize(static_cast<size_t>(s.prompt_tokens));
  s.tokens.insert(s.tokens.end(), record.begin(), record.end());
  s.drafts.clear();
  int mismatches = 0;
  while (s.computed + 1 < static_cast<int>(s.tokens.size())) {
    StepPlan plan;
    plan.runs.push_back({.sequence = id,
                         .first_position = s.computed,
                         .rows = std::min(rows, static_cast<int>(s.tokens.size()) - 1 - s.computed),
                         .kind = RowKind::kReplay});
    const Harvest harvest = Run(plan);
    s.computed += harvest.sequences[0].accepted_rows;
    mismatches += harvest.sequences[0].replay_mismatches;
  }
  return mismatches;
}

std::vector<std::byte> SequenceRuns::Tail(SequenceId id) {
  const Sequence& s = Get(id);
  const auto n = static_cast<uint64_t>(s.computed);
  std::vector<std::byte> wire(kernels::MakeTailLayout(model_.layout(), n, 0).total_bytes);
  CHECK(runner_.PackTail({.tail_slot = s.tail_slot, .num_tokens = n, .wire = wire}).ok());
  return wire;
}

Remains SequenceRuns::Leave(SequenceId id) {
  const Sequence& s = Get(id);
  Remains remains{.tokens = s.tokens, .records = records_[id.value], .pages = {}, .tail = Tail(id)};
  const TailLayout layout =
      kernels::MakeTailLayout(model_.layout(), static_cast<uint64_t>(s.computed), 0);
  const uint64_t after = !layout.csa_state.empty()   ? layout.csa_state.front()
                         : !layout.hca_state.empty() ? layout.hca_state.front()
                                                     : layout.streams;
  if (!layout.mtp_window.empty()) {
    const auto begin = remains.tail.begin() + static_cast<int64_t>(layout.mtp_window.front());
    std::fill(begin, remains.tail.begin() + static_cast<int64_t>(after), std::byte{0});
  }
  const size_t payload = model_.layout().payload_bytes();
  const int used = (s.computed + kPageTokens - 1) / kPageTokens;
  for (int i = 0; i < used; ++i) {
    const std::span<const std::byte> page = model_.Page(s.pages.ids()[static_cast<size_t>(i)]);
    remains.pages.insert(remains.pages.end(), page.begin(),
                         page.begin() + static_cast<int64_t>(payload));
  }
  return remains;
}

SequenceId SequenceRuns::HandOver(SequenceId id) {
  std::vector<std::byte> tail = Tail(id);
  const Sequence& from = Get(id);
  std::vector<int32_t> prompt(from.tokens.begin(), from.tokens.begin() + from.prompt_tokens);
  const SequenceId to_id = Start(std::move(prompt), from.sampling, /*skipped_pages=*/1);
  Sequence& to = Edit(to_id);
  to.tokens = from.tokens;
  to.computed = from.computed;
  records_[to_id.value] = records_[id.value];
  for (int i = 0; i < from.pages.size(); ++i) {
    const auto index = static_cast<size_t>(i);
    std::memcpy(pool_.Data(to.pages.ids()[index]), pool_.Data(from.pages.ids()[index]),
                pool_.payload_bytes());
  }
  CHECK(runner_
            .UnpackTail({.tail_slot = to.tail_slot,
                         .num_tokens = static_cast<uint64_t>(to.computed),
                         .wire = tail})
            .ok());
  return to_id;
}

}  // namespace baton::golden
