#include "engine/loop.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status.h"
#include "engine/loop_entry.h"

namespace baton::engine {
namespace {

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

}  // namespace

SequenceFacts EngineLoop::Entry::Facts() const {
  return {.id = sequence.id,
          .prompt_tokens = sequence.prompt_tokens,
          .num_tokens = static_cast<int>(sequence.tokens.size()),
          .computed = sequence.computed,
          .max_total = sequence.prompt_tokens + sequence.finish.max_tokens,
          .drafts = static_cast<int>(sequence.drafts.size()),
          .pages = sequence.pages.size(),
          .booked = booking.remaining(),
          .tail_interval = sequence.tail_interval,
          .priority = sequence.priority,
          .deadline = sequence.deadline};
}

EngineLoop::EngineLoop(PagePool& pool, StepPlanner& planner, StepRunner& runner, const Clock& clock,
                       const kernels::PageLayout& layout)
    : pool_(pool), planner_(planner), runner_(runner), clock_(clock), layout_(layout) {
  for (int slot = runner.num_tail_slots() - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

EngineLoop::~EngineLoop() = default;

std::optional<int> EngineLoop::TakeTailSlot() {
  if (static_cast<int>(free_slots_.size()) <= num_parked_) return std::nullopt;
  if (!AwaitFlights().ok()) return std::nullopt;  // RunOnce tells of it
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  runner_.ResetTail(slot);
  return slot;
}

void EngineLoop::ReturnTailSlot(int slot) {
  CHECK(slot >= 0 && slot < runner_.num_tail_slots());
  for (Flight& flight : flights_) {
    for (Kept& kept : flight.kept) {
      if (kept.tail_slot != slot) continue;
      kept.is_slot_returned = true;
      return;
    }
  }
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
  std::unique_ptr<Entry> entry = std::move(found->second);
  entries_.erase(found);
  if (entry->is_parked) {
    --num_parked_;
    host_pages_ -= static_cast<int>(entry->host_pages.size() / pool_.payload_bytes());
  }
  if (entry->is_held) --num_held_;
  planner_.Apply(Released{sequence});
  Sequence released = std::move(entry->sequence);
  Flight* flight = Drop(sequence);
  if (flight != nullptr && !flight->outcome) {
    entry->booking = Booking();
    flight->kept.push_back({.entry = std::move(entry),
                            .pages = pool_.ShareIds(released.pages.ids()),
                            .tail_slot = released.tail_slot});
  }
  return released;
}

bool EngineLoop::IsKeepingPages() const {
  return std::ranges::any_of(flights_, [](const Flight& flight) { return !flight.kept.empty(); });
}

bool EngineLoop::IsParked(SequenceId sequence) const {
  const auto found = entries_.find(sequence);
  return found != entries_.end() && found->second->is_parked;
}

void EngineLoop::Hold(SequenceId sequence) {
  Entry& entry = Find(sequence);
  CHECK(!entry.is_parked && !entry.sequence.IsPrefilling());
  if (std::exchange(entry.is_held, true)) return;
  Drop(sequence);
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
  RETURN_IF_ERROR(AwaitFlights());
  return runner_.PackTail(
      {.tail_slot = s.tail_slot, .num_tokens = static_cast<uint64_t>(s.computed), .wire = wire});
}

absl::Status EngineLoop::UnpackTail(int tail_slot, uint64_t num_tokens, bool has_drafter_state,
                                    std::span<std::byte> wire) {
  RETURN_IF_ERROR(AwaitFlights());
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
  Drop(id);
  planner_.Apply(Paused{id});
  Notify(id, [id, f = *finish](LoopObserver& o) { o.OnFinished(id, f.reason, f.stop_token); });
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
  entry.sequence.pages.Append(pool_.TakeForSteps(entry.booking, own));
  entry.sequence.pages.Append(pool_.TakeForSteps(*more, pages - own));
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

}  // namespace baton::engine
