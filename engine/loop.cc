#include "engine/loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"

namespace baton::engine {
namespace {

constexpr double kRateWeight = 0.2;  // of the newest step in the moving average of prefill tokens/s

struct Finish {
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token = -1;
};

// Whether the last token ends the sequence. Stop tokens are masked up to min_tokens
// (contracts.md 2.2).
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

// The record is the truth for every position that is not computed yet (contracts.md 1.6).
void ApplyRecord(Sequence& sequence) {
  if (sequence.choices.size() != 1 || sequence.received.empty()) return;
  const std::vector<int32_t>& record = sequence.received[0];
  for (size_t i = 0; i < record.size(); ++i) {
    const size_t position = static_cast<size_t>(sequence.prompt_tokens) + i;
    if (position >= sequence.tokens.size())
      sequence.tokens.push_back(record[i]);
    else if (position >= static_cast<size_t>(sequence.computed))
      sequence.tokens[position] = record[i];
  }
}

SequenceFacts FactsOf(const Sequence& sequence, int booked) {
  return {.id = sequence.id,
          .prompt_tokens = sequence.prompt_tokens,
          .num_tokens = static_cast<int>(sequence.tokens.size()),
          .computed = sequence.computed,
          .max_total = sequence.prompt_tokens + sequence.finish.max_tokens,
          .drafts = static_cast<int>(sequence.drafts.size()),
          .pages = sequence.pages.size(),
          .booked = booked,
          .tail_interval = sequence.tail_interval,
          .priority = sequence.priority,
          .deadline = sequence.deadline};
}

}  // namespace

struct EngineLoop::Entry {
  Sequence sequence;
  Booking booking;
  // While parked: payloads of all pages, and the wire tail at `computed`.
  bool is_parked = false;
  std::vector<std::byte> host_pages;
  std::vector<std::byte> host_tail;
  bool is_held = false;
  absl::Status mask_status;  // an error ends the sequence with its next step

  SequenceFacts Facts() const { return FactsOf(sequence, booking.remaining()); }
};

EngineLoop::EngineLoop(PagePool& pool, StepPlanner& planner, StepRunner& runner, const Clock& clock,
                       const kernels::PageLayout& layout)
    : pool_(pool), planner_(planner), runner_(runner), clock_(clock), layout_(layout) {
  for (int slot = runner.num_tail_slots() - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

EngineLoop::~EngineLoop() = default;

std::optional<int> EngineLoop::TakeTailSlot() {
  if (static_cast<int>(free_slots_.size()) <= num_parked_) return std::nullopt;
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  runner_.ResetTail(slot);
  return slot;
}

void EngineLoop::ReturnTailSlot(int slot) {
  CHECK(slot >= 0 && slot < runner_.num_tail_slots());
  free_slots_.push_back(slot);
}

void EngineLoop::Admit(Sequence sequence, Booking booking) {
  CHECK(!Has(sequence.id) && sequence.tail_slot >= 0);
  CHECK(sequence.pages.size() * kPageTokens >= sequence.computed);
  if (sequence.IsPrefilling()) {
    CHECK(static_cast<int>(sequence.tokens.size()) == sequence.prompt_tokens);
  } else {
    ApplyRecord(sequence);
    CHECK(static_cast<int>(sequence.tokens.size()) > sequence.computed);
  }
  const SequenceId id = sequence.id;
  auto entry = std::make_unique<Entry>();
  entry->sequence = std::move(sequence);
  entry->booking = std::move(booking);
  planner_.Apply(Admitted{entry->Facts()});
  Entry& added = *entries_.emplace(id, std::move(entry)).first->second;
  FinishOrRun(added);
}

void EngineLoop::Continue(SequenceId sequence, int32_t token) {
  Entry& entry = Find(sequence);
  Sequence& s = entry.sequence;
  CHECK(s.choices.size() == 1 && !s.IsPrefilling() &&
        s.computed == static_cast<int>(s.tokens.size()));
  s.tokens.push_back(token);
  ApplyRecord(s);
  if (s.tokens.size() > static_cast<size_t>(s.computed) + 1) s.drafts.clear();
  planner_.Apply(Harvested{entry.Facts()});
  FinishOrRun(entry);
}

Sequence EngineLoop::Release(SequenceId sequence) {
  const auto found = entries_.find(sequence);
  CHECK(found != entries_.end());
  const std::unique_ptr<Entry> entry = std::move(found->second);
  entries_.erase(found);
  if (entry->is_parked) {
    --num_parked_;
    host_pages_ -= static_cast<int>(entry->host_pages.size() / pool_.payload_bytes());
  }
  if (entry->is_held) --num_held_;
  planner_.Apply(Released{sequence});
  return std::move(entry->sequence);
}

bool EngineLoop::IsParked(SequenceId sequence) const {
  const auto found = entries_.find(sequence);
  return found != entries_.end() && found->second->is_parked;
}

void EngineLoop::Hold(SequenceId sequence) {
  Entry& entry = Find(sequence);
  CHECK(!entry.is_parked && !entry.sequence.IsPrefilling());
  if (std::exchange(entry.is_held, true)) return;
  ++num_held_;
  planner_.Apply(Paused{sequence});
}

const Sequence& EngineLoop::Get(SequenceId id) const {
  const auto found = entries_.find(id);
  CHECK(found != entries_.end());
  return found->second->sequence;
}

EngineLoop::Entry& EngineLoop::Find(SequenceId id) {
  const auto found = entries_.find(id);
  CHECK(found != entries_.end());
  return *found->second;
}

absl::Status EngineLoop::PackTail(SequenceId sequence, std::span<std::byte> wire) {
  const Sequence& s = Find(sequence).sequence;
  CHECK(s.tail_slot >= 0);
  return runner_.PackTail(
      {.tail_slot = s.tail_slot, .num_tokens = static_cast<uint64_t>(s.computed), .wire = wire});
}

absl::Status EngineLoop::UnpackTail(int tail_slot, uint64_t num_tokens, bool has_drafter_state,
                                    std::span<std::byte> wire) {
  return runner_.UnpackTail({.tail_slot = tail_slot,
                             .num_tokens = num_tokens,
                             .has_drafter_state = has_drafter_state,
                             .wire = wire});
}

void EngineLoop::Notify(SequenceId id, std::function<void(LoopObserver&)> tell) {
  notices_.push_back({.sequence = id, .tell = std::move(tell)});
}

void EngineLoop::Deliver() {
  const std::vector<Notice> notices = std::exchange(notices_, {});
  if (observer_ == nullptr) return;
  for (const Notice& notice : notices)
    if (Has(notice.sequence)) notice.tell(*observer_);
}

void EngineLoop::FinishOrRun(Entry& entry) {
  const std::optional<Finish> finish = FinishOf(entry.sequence);
  if (!finish) return;
  const SequenceId id = entry.sequence.id;
  planner_.Apply(Paused{id});
  Notify(id, [id, f = *finish](LoopObserver& o) { o.OnFinished(id, f.reason, f.stop_token); });
}

absl::StatusOr<bool> EngineLoop::RunOnce() {
  const bool had_notices = !notices_.empty();
  Deliver();
  // A plan that only parks or resumes changes what the pool holds, so the planner is asked again;
  // each such plan moves a sequence.
  for (size_t round = 0; round <= entries_.size() + 1; ++round) {
    PoolCounts counts = pool_.Counts();
    if (reclaimer_) counts.free += std::exchange(counts.cached, 0);
    std::optional<StepPlan> plan = planner_.Next(counts, clock_.Now());
    if (!plan) break;
    ASSIGN_OR_RETURN(const bool has_moved, Prepare(*plan));
    if (!plan->runs.empty()) {
      RETURN_IF_ERROR(RunStep(*plan));
      Deliver();
      return true;
    }
    if (!has_moved) break;
  }
  const bool has_more = !notices_.empty();
  Deliver();
  return had_notices || has_more;
}

// Executes parks, grants and resumes; drops the runs of sequences whose pages could not be had
// after all. True when a sequence was parked or resumed.
absl::StatusOr<bool> EngineLoop::Prepare(StepPlan& plan) {
  bool has_moved = false;
  for (const SequenceId id : plan.parks) {
    RETURN_IF_ERROR(Park(Find(id)));
    has_moved = true;
  }
  for (const PageGrant& grant : plan.grants) {
    Entry& entry = Find(grant.sequence);
    if (Grant(entry, grant.pages)) {
      if (!entry.is_parked) planner_.Apply(Harvested{entry.Facts()});
      continue;
    }
    std::erase_if(plan.runs,
                  [&](const SequenceRun& run) { return run.sequence == grant.sequence; });
    std::erase(plan.resumes, grant.sequence);
  }
  for (const SequenceId id : plan.resumes) {
    RETURN_IF_ERROR(Resume(Find(id)));
    has_moved = true;
  }
  return has_moved;
}

absl::StatusOr<Booking> EngineLoop::BookReclaiming(int pages) {
  const int lacking = pages - pool_.Counts().free;
  if (lacking > 0 && reclaimer_) reclaimer_(lacking);
  return pool_.Book(pages);
}

bool EngineLoop::Grant(Entry& entry, int pages) {
  const int own = std::min(pages, entry.booking.remaining());
  absl::StatusOr<Booking> more = BookReclaiming(pages - own);
  if (!more.ok()) return false;
  entry.sequence.pages.Append(pool_.Take(entry.booking, own));
  entry.sequence.pages.Append(pool_.Take(*more, pages - own));
  return true;
}

absl::Status EngineLoop::Park(Entry& entry) {
  Sequence& s = entry.sequence;
  CHECK(!entry.is_parked && !s.IsPrefilling());
  entry.host_tail.assign(
      kernels::MakeTailLayout(layout_, static_cast<uint64_t>(s.computed), 0).total_bytes,
      std::byte{0});
  RETURN_IF_ERROR(PackTail(s.id, entry.host_tail));

  const uint64_t payload = pool_.payload_bytes();
  const auto used = static_cast<size_t>((s.computed + kPageTokens - 1) / kPageTokens);
  entry.host_pages.resize(used * payload);
  for (size_t i = 0; i < used; ++i)
    RETURN_IF_ERROR(
        pool_.Read(s.pages.ids()[i], std::span(entry.host_pages).subspan(i * payload, payload)));

  s.pages = PageLease();
  entry.booking = Booking();
  ReturnTailSlot(std::exchange(s.tail_slot, -1));
  entry.is_parked = true;
  ++num_parked_;
  host_pages_ += static_cast<int>(used);
  planner_.Apply(Parked{entry.Facts()});
  Notify(s.id, [id = s.id](LoopObserver& o) { o.OnParked(id); });
  return absl::OkStatus();
}

absl::Status EngineLoop::Resume(Entry& entry) {
  Sequence& s = entry.sequence;
  const uint64_t payload = pool_.payload_bytes();
  const size_t used = entry.host_pages.size() / payload;
  CHECK(entry.is_parked && static_cast<size_t>(s.pages.size()) >= used);
  --num_parked_;  // its slot is no longer kept back
  const std::optional<int> slot = TakeTailSlot();
  CHECK(slot.has_value());
  s.tail_slot = *slot;
  for (size_t i = 0; i < used; ++i)
    RETURN_IF_ERROR(
        pool_.Write(s.pages.ids()[i], std::span(entry.host_pages).subspan(i * payload, payload)));
  RETURN_IF_ERROR(
      UnpackTail(s.tail_slot, static_cast<uint64_t>(s.computed), true, entry.host_tail));
  entry.is_parked = false;
  entry.host_pages = {};
  entry.host_tail = {};
  host_pages_ -= static_cast<int>(used);
  planner_.Apply(Resumed{entry.Facts()});
  Notify(s.id, [id = s.id](LoopObserver& o) { o.OnResumed(id); });
  return absl::OkStatus();
}

absl::Status EngineLoop::RunStep(StepPlan& plan) {
  const absl::Time start = clock_.Now();
  plan.step = next_step_;
  ++next_step_.value;
  RETURN_IF_ERROR(runner_.LaunchForward(plan, *this));
  MakeMasks(plan);
  RETURN_IF_ERROR(runner_.LaunchFinish(plan, *this));
  std::optional<Harvest> harvest;
  while (!harvest) harvest = runner_.Poll();
  CHECK(harvest->step == plan.step && harvest->sequences.size() == plan.runs.size());
  for (size_t i = 0; i < plan.runs.size(); ++i)
    Apply(plan.runs[i], std::move(harvest->sequences[i]));
  Count(plan, clock_.Now() - start);
  return absl::OkStatus();
}

// While Forward runs on the device.
void EngineLoop::MakeMasks(StepPlan& plan) {
  std::vector<SequenceRun*> runs;
  for (SequenceRun& run : plan.runs) {
    const bool samples = run.kind != RowKind::kPrefill || run.samples_first_token;
    if (samples && Find(run.sequence).sequence.masks) runs.push_back(&run);
  }
  if (runs.empty()) return;
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
