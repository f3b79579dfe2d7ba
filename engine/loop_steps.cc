#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "engine/loop_entry.h"

// Steps from plan to outcome.
namespace baton::engine {
namespace {

constexpr double kRateWeight = 0.2;  // of the newest step in the moving average of prefill tokens/s

// Whether the plan goes on with the runs of the one in flight.
bool IsSameStep(const StepPlan& plan, const StepPlan& last) {
  const auto is_same = [](const SequenceRun& a, const SequenceRun& b) {
    return a.sequence == b.sequence && a.kind == RowKind::kVerify && b.kind == RowKind::kVerify;
  };
  return plan.parks.empty() && plan.resumes.empty() && plan.num_drafts == last.num_drafts &&
         std::ranges::equal(plan.runs, last.runs, is_same);
}

// Whether the tokens after those of a step in flight are chosen without the host knowing these, and
// the step is not sure to be the sequence's last.
bool NeedsNoHistory(const Sequence& s) {
  const SamplingSpec& spec = s.sampling;
  const int64_t generated = static_cast<int64_t>(s.tokens.size()) - s.prompt_tokens;
  return !s.masks && spec.repetition_penalty == 1 && spec.frequency_penalty == 0 &&
         spec.presence_penalty == 0 && spec.bad_words.empty() && generated >= s.finish.min_tokens &&
         generated + 1 < s.finish.max_tokens;
}

}  // namespace

std::optional<Finish> FinishOf(const Sequence& sequence) {
  const int64_t generated = static_cast<int64_t>(sequence.tokens.size()) - sequence.prompt_tokens;
  if (generated <= 0) return std::nullopt;
  const int32_t last = sequence.tokens.back();
  const std::vector<int32_t>& stops = sequence.finish.stop_tokens;
  if (generated > sequence.finish.min_tokens &&
      std::find(stops.begin(), stops.end(), last) != stops.end())
    return Finish{.reason = FinishReason::kStop, .stop_token = last};
  if (generated >= sequence.finish.max_tokens) return Finish{.reason = FinishReason::kLength};
  return std::nullopt;
}

absl::StatusOr<bool> EngineLoop::RunOnce() {
  const bool had_notices = !notices_.empty();
  Deliver();
  if (flights_.empty()) RETURN_IF_ERROR(StartStep());
  const bool has_step = !flights_.empty();
  if (has_step) {
    RETURN_IF_ERROR(GoAhead());
    RETURN_IF_ERROR(FinishStep());
  }
  const bool has_more = !notices_.empty();
  Deliver();
  return has_step || had_notices || has_more;
}

std::optional<StepPlan> EngineLoop::NextPlan() {
  PoolCounts counts = pool_.Counts();
  if (reclaimer_) counts.free += std::exchange(counts.cached, 0);
  return planner_.Next(counts, clock_.Now());
}

// A plan that only parks or resumes changes what the pool holds, so the planner is asked again;
// each such plan moves a sequence.
absl::Status EngineLoop::StartStep() {
  for (size_t round = 0; round <= entries_.size() + 1; ++round) {
    std::optional<StepPlan> plan = NextPlan();
    if (!plan) break;
    ASSIGN_OR_RETURN(const bool has_moved, Prepare(*plan));
    if (!plan->runs.empty()) return Launch(*std::move(plan));
    if (!has_moved) break;
  }
  return absl::OkStatus();
}

// Queues the next step before the one in flight is awaited, if it is the same sequences' and
// nothing in it waits for the host.
absl::Status EngineLoop::GoAhead() {
  if (flights_.size() != 1 || !MayBeFollowed(flights_.front())) return absl::OkStatus();
  const StepPlan& last = flights_.front().plan;
  const std::optional<StepPlan> plan = NextPlan();
  if (!plan || !IsSameStep(*plan, last) || !runner_.CanFollow(plan->num_drafts)) {
    return absl::OkStatus();
  }
  for (const PageGrant& grant : plan->grants) {
    Entry& entry = Find(grant.sequence);
    if (!Grant(entry, grant.pages)) return absl::OkStatus();
    planner_.Apply(Harvested{entry.Facts()});
  }
  StepPlan next;
  next.num_drafts = plan->num_drafts;
  next.follows = true;
  for (const SequenceRun& run : last.runs) {
    const Sequence& s = Find(run.sequence).sequence;
    next.runs.push_back({.sequence = run.sequence,
                         .first_position = s.computed + run.rows,
                         .rows = 1 + next.num_drafts,
                         .kind = RowKind::kVerify});
    const SequenceRun& added = next.runs.back();
    const bool has_pages = s.pages.size() * kPageTokens >= added.first_position + added.rows;
    if (!has_pages || added.rows < run.rows) return absl::OkStatus();
  }
  return Launch(std::move(next));
}

bool EngineLoop::MayBeFollowed(const Flight& flight) const {
  return !flight.outcome && flight.dropped.empty() &&
         std::ranges::all_of(flight.plan.runs, [this](const SequenceRun& run) {
           return NeedsNoHistory(Get(run.sequence));
         });
}

absl::Status EngineLoop::Launch(StepPlan plan) {
  const absl::Time start = clock_.Now();
  const uint64_t zeroings = pool_.num_zeroings();
  plan.step = next_step_;
  ++next_step_.value;
  RETURN_IF_ERROR(runner_.LaunchForward(plan, *this));
  MakeMasks(plan);
  RETURN_IF_ERROR(runner_.LaunchFinish(plan, *this));
  Flight& flight = flights_.emplace_back();
  flight.plan = std::move(plan);
  flight.start = start;
  flight.zeroings = zeroings;
  return absl::OkStatus();
}

// Applies the oldest flight.
absl::Status EngineLoop::FinishStep() {
  Await(flights_.front());
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  ASSIGN_OR_RETURN(Harvest harvest, *std::move(flight.outcome));
  const StepPlan& plan = flight.plan;
  CHECK(harvest.step == plan.step && harvest.sequences.size() == plan.runs.size());
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    if (std::ranges::count(flight.dropped, plan.runs[i].sequence) > 0) continue;
    Apply(plan.runs[i], std::move(harvest.sequences[i]));
  }
  const absl::Time start = std::max(flight.start, last_finish_);
  last_finish_ = clock_.Now();
  Count(plan, last_finish_ - start);
  return absl::OkStatus();
}

absl::Status EngineLoop::AwaitFlights() {
  for (Flight& flight : flights_) {
    Await(flight);
    if (!flight.outcome->ok()) return flight.outcome->status();
  }
  return absl::OkStatus();
}

void EngineLoop::Await(Flight& flight) {
  if (flight.outcome) return;
  flight.outcome = runner_.Await();
  if (flight.outcome->ok()) pool_.NoteZeroed(flight.zeroings);
  for (const Kept& kept : flight.kept)
    if (kept.is_slot_returned) free_slots_.push_back(kept.tail_slot);
  flight.kept.clear();
}

EngineLoop::Flight* EngineLoop::Drop(SequenceId id) {
  if (flights_.empty()) return nullptr;
  Flight& flight = flights_.front();
  const auto is_its = [id](const SequenceRun& run) { return run.sequence == id; };
  if (std::ranges::none_of(flight.plan.runs, is_its)) return nullptr;
  flight.dropped.push_back(id);
  return &flight;
}

// While Forward runs on the device.
void EngineLoop::MakeMasks(StepPlan& plan) {
  std::vector<SequenceRun*> runs;
  for (SequenceRun& run : plan.runs) {
    const bool samples = run.kind != RowKind::kPrefill || run.samples_first_token;
    if (samples && Find(run.sequence).sequence.masks) runs.push_back(&run);
  }
  if (runs.empty()) return;
  CHECK(!plan.follows);  // their tokens so far are not known
  const absl::Time start = clock_.Now();
  if (mask_buffers_.size() < runs.size()) mask_buffers_.resize(runs.size());
  const auto make = [&](int index) {
    const auto i = static_cast<size_t>(index);
    Entry& entry = Find(runs[i]->sequence);
    mask_buffers_[i].Clear();
    entry.mask_status = MakeMasksOf(entry.sequence, *runs[i], mask_buffers_[i]);
    if (!entry.mask_status.ok()) runs[i]->masks.clear();
  };
  const int count = static_cast<int>(runs.size());
  if (parallel_ && count > 1)
    parallel_(count, make);
  else
    for (int i = 0; i < count; ++i) make(i);
  for (const SequenceRun* run : runs) counters_.masks += run->masks.size();
  counters_.mask_time += clock_.Now() - start;
}

// A row's token follows those up to its own; the rows of a replay are drafts that are known. Any
// thread.
absl::Status EngineLoop::MakeMasksOf(Sequence& s, SequenceRun& run, MaskBuffer& buffer) {
  const auto first = static_cast<size_t>(run.first_position) + 1;
  const auto prompt = static_cast<size_t>(s.prompt_tokens);
  MaskSource& masks = *s.masks;
  if (run.kind == RowKind::kPrefill) return masks.AppendMasks({}, buffer, run.masks);
  for (size_t i = prompt + static_cast<size_t>(masks.num_taken()); i < first; ++i)
    RETURN_IF_ERROR(masks.Take(s.tokens[i]));
  const std::span<const int32_t> followers =
      run.kind == RowKind::kReplay ? std::span(s.tokens).subspan(first) : std::span(s.drafts);
  return masks.AppendMasks(followers.first(static_cast<size_t>(run.rows) - 1), buffer, run.masks);
}

void EngineLoop::CountMaskFailure(const absl::Status& status) {
  if (absl::IsInvalidArgument(status)) ++counters_.mask_limits;
  if (IsMaskFailure(status)) ++counters_.mask_failures;
}

void EngineLoop::Fail(SequenceId id, absl::Status status) {
  Drop(id);
  planner_.Apply(Paused{id});
  Notify(id, [id, status = std::move(status)](LoopObserver& o) { o.OnFailed(id, status); });
}

void EngineLoop::Apply(const SequenceRun& run, SequenceTokens result) {
  CHECK(result.sequence == run.sequence);
  Entry& entry = Find(run.sequence);
  const SequenceId id = run.sequence;
  if (!entry.mask_status.ok()) {
    result.status = absl::Status(
        entry.mask_status.code(),
        absl::StrFormat("request %s: %s", entry.sequence.request_id, entry.mask_status.message()));
  }
  if (!result.status.ok()) {
    if (entry.sequence.masks) CountMaskFailure(result.status);
    return Fail(id, std::move(result.status));
  }
  for (int i = 0; i < result.replay_mismatches; ++i)
    Notify(id, [id](LoopObserver& o) { o.OnReplayMismatch(id); });
  if (run.kind == RowKind::kPrefill)
    ApplyPrefill(entry, run, result);
  else
    ApplyDecode(entry, run, result);
}

void EngineLoop::ApplyPrefill(Entry& entry, const SequenceRun& run, SequenceTokens& result) {
  Sequence& s = entry.sequence;
  s.computed += run.rows;
  s.drafts = std::move(result.next_drafts);
  planner_.Apply(Harvested{entry.Facts()});
  if (!result.prompt_logprobs.empty()) {
    Notify(s.id,
           [id = s.id, first = run.first_position + 1, tokens = std::move(result.prompt_logprobs)](
               LoopObserver& o) { o.OnPromptLogprobs(id, first, tokens); });
  }
  Notify(s.id, [id = s.id, computed = s.computed](LoopObserver& o) { o.OnChunk(id, computed); });
  if (!run.samples_first_token) return;

  CHECK(result.tokens.size() == s.choices.size());
  std::vector<TokenRecord> first;
  for (size_t choice = 0; choice < s.choices.size(); ++choice) {
    CHECK(result.tokens[choice].size() == 1);
    TokenRecord record = std::move(result.tokens[choice][0]);
    const bool is_received = choice < s.received.size() && !s.received[choice].empty();
    if (is_received && record.token != s.received[choice][0]) {
      record.token = s.received[choice][0];
      Notify(s.id, [id = s.id](LoopObserver& o) { o.OnReplayMismatch(id); });
    }
    first.push_back(std::move(record));
  }
  planner_.Apply(Paused{s.id});
  Notify(s.id,
         [id = s.id, first = std::move(first)](LoopObserver& o) { o.OnFirstTokens(id, first); });
}

void EngineLoop::ApplyDecode(Entry& entry, const SequenceRun& run, SequenceTokens& result) {
  Sequence& s = entry.sequence;
  if (run.kind == RowKind::kReplay) {
    CHECK(result.accepted_rows == run.rows);
    s.computed += run.rows;
    s.drafts.clear();
    if (s.computed + 1 == static_cast<int>(s.tokens.size()))
      s.drafts = std::move(result.next_drafts);
    counters_.replayed_tokens += static_cast<uint64_t>(run.rows);
    planner_.Apply(Harvested{entry.Facts()});
    return;
  }

  CHECK(result.accepted_rows >= 1 && result.accepted_rows <= run.rows &&
        result.tokens.size() == 1 &&
        static_cast<int>(result.tokens[0].size()) == result.accepted_rows);
  const int first_position = static_cast<int>(s.tokens.size());
  std::vector<TokenRecord> fresh = std::move(result.tokens[0]);
  std::optional<Finish> finish;
  size_t kept = 0;
  while (kept < fresh.size() && !finish) {
    s.tokens.push_back(fresh[kept++].token);
    finish = FinishOf(s);
  }
  fresh.resize(kept);  // nothing follows the end
  s.computed = static_cast<int>(s.tokens.size()) - 1;
  s.drafts = std::move(result.next_drafts);
  counters_.decode_tokens += kept;
  counters_.drafted += static_cast<uint64_t>(run.rows - 1);
  counters_.accepted_drafts += static_cast<uint64_t>(result.accepted_rows - 1);
  planner_.Apply(Harvested{entry.Facts()});
  Notify(s.id, [id = s.id, first_position, fresh = std::move(fresh)](LoopObserver& o) {
    o.OnTokens(id, first_position, fresh);
  });
  FinishOrRun(entry);
}

void EngineLoop::Count(const StepPlan& plan, absl::Duration elapsed) {
  ++counters_.steps;
  if (plan.follows) ++counters_.steps_ahead;
  counters_.last_step = elapsed;
  uint64_t prefill_rows = 0;
  for (const SequenceRun& run : plan.runs)
    if (run.kind == RowKind::kPrefill) prefill_rows += static_cast<uint64_t>(run.rows);
  if (prefill_rows == 0) return;
  counters_.prefill_tokens += prefill_rows;
  if (elapsed <= absl::ZeroDuration()) return;
  const double rate = static_cast<double>(prefill_rows) / absl::ToDoubleSeconds(elapsed);
  double& average = counters_.prefill_tokens_per_s;
  average = average == 0 ? rate : average + kRateWeight * (rate - average);
}

}  // namespace baton::engine
