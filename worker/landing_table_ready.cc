// The second half of a landing's life: verified, running, over.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/tail_header.h"
#include "worker/landing_table.h"

namespace baton::worker {
namespace {

LandingSequence* FirstWaiting(Landing& landing) {
  for (LandingSequence& sequence : landing.sequences)
    if (sequence.state == SequenceState::kWaiting) return &sequence;
  return nullptr;
}

void End(LandingSequence& sequence) {
  sequence.state = SequenceState::kDone;
  sequence.pages = engine::PageLease();
  sequence.booking = engine::Booking();
  sequence.masks.reset();
}

}  // namespace

absl::StatusOr<std::vector<TokenRecord>> LandingTable::ReadTail(const Landing& landing) const {
  const std::span<const std::byte> wire = tails_.Data(*landing.tail, landing.tail_bytes);
  ASSIGN_OR_RETURN(const kernels::TailHeader header, kernels::DecodeTailHeader(wire));
  RETURN_IF_ERROR(kernels::CheckTailHeader(header, setup_.layout, setup_.weights));
  if (header.num_tokens != landing.num_tokens || header.num_sequences != landing.sequences.size()) {
    return absl::DataLossError(absl::StrFormat(
        "tail is of %d tokens and %d sequences, the landing of %d and %d", header.num_tokens,
        header.num_sequences, landing.num_tokens, landing.sequences.size()));
  }
  const ClassId& wanted = landing.request.prompt_class;
  if (!wanted.IsZero() && header.prompt_class != wanted) {
    return absl::FailedPreconditionError(
        absl::StrFormat("tail is of class %s, the request's prompt class is %s",
                        header.prompt_class.Hex(), wanted.Hex()));
  }
  return kernels::DecodeFirstTokens(header, wire);
}

void LandingTable::ReadyIfComplete(const TransferId& transfer, Landing& landing, absl::Time now,
                                   Effects& out) {
  const bool is_complete = landing.prompt.IsComplete() && landing.tail &&
                           landing.num_verified == landing.request.num_pages;
  if (!is_complete) return;
  absl::StatusOr<std::vector<TokenRecord>> first = ReadTail(landing);
  if (!first.ok()) {
    out.Fail(landing.session, transfer, first.status());
    Close(transfer, landing, now, out);
    return;
  }
  const absl::Duration took = now - std::min(landing.first_block_at, now);
  out.To(landing.session)
      .landed.push_back({.transfer = transfer,
                         .attempt = landing.attempt,
                         .tokens = *first,
                         .transfer_us = static_cast<uint32_t>(absl::ToInt64Microseconds(took))});
  landing.state = LandingState::kReady;
  CloseAgent(transfer, landing, out);
  PreparePages(landing);
  StartSequences(landing, *first, now, out);
  ready_.push_back(transfer);
  CloseIfDone(transfer, landing, now, out);
}

void LandingTable::PreparePages(Landing& landing) {
  engine::PageLease pages;
  for (engine::PageLease& page : landing.verified) pages.Append(std::move(page));
  landing.verified.clear();
  landing.booking = engine::Booking();
  const bool has_partial = landing.num_tokens % kPageTokens != 0;
  const int num_full = pages.size() - (has_partial ? 1 : 0);
  for (size_t i = 1; i < landing.sequences.size(); ++i) {
    LandingSequence& sequence = landing.sequences[i];
    if (sequence.state == SequenceState::kDone) continue;
    sequence.pages = pool_.Share(pages, num_full);
    if (!has_partial) continue;
    engine::PageLease copy = pool_.Take(sequence.booking, 1);
    // The pool keeps a failure, which ends the worker before it steps.
    pool_.Copy(copy.ids()[0], pages.ids().back()).IgnoreError();
    sequence.pages.Append(std::move(copy));
  }
  // A first choice that was cancelled keeps nothing: what no other shares returns here.
  if (landing.sequences[0].state != SequenceState::kDone)
    landing.sequences[0].pages = std::move(pages);
}

void LandingTable::StartSequences(Landing& landing, const std::vector<TokenRecord>& first,
                                  absl::Time now, Effects& out) {
  for (size_t i = 0; i < landing.sequences.size(); ++i) {
    LandingSequence& sequence = landing.sequences[i];
    sequence.first = first[i];
    sequence.landed_at = now;
    if (sequence.state == SequenceState::kDone) continue;
    const bool differs = !sequence.spec.received.empty() && !sequence.lands_received &&
                         sequence.spec.received[0] != first[i].token;
    if (differs) ++out.replay_mismatches;  // the record wins (contracts.md 1.6)
    const auto finished =
        FinishOf(sequence.spec.handle, KnownTokens(sequence), landing.request.finish);
    if (!finished) continue;
    out.To(landing.session).finished.push_back(*finished);
    End(sequence);
  }
}

bool LandingTable::BeginLocalFill(const wire::Run& run, Effects& out) {
  Landing* landing = FindOpen(run.transfer);
  const bool fits = landing != nullptr && !landing->request.lands_received &&
                    run.landing.secret == landing->secret && run.attempt == landing->attempt &&
                    run.prompt_tokens == landing->request.prompt_tokens &&
                    run.sequences.size() == landing->sequences.size();
  if (!fits) return false;
  landing->state = LandingState::kFilling;
  landing->is_local = true;
  CloseAgent(run.transfer, *landing, out);
  for (engine::PageLease& page : landing->verified) {
    const int returned = page.size();
    page = engine::PageLease();
    landing->booking.Add(*pool_.Book(returned));
  }
  landing->verified.clear();
  landing->num_verified = 0;
  if (landing->tail) tails_.Return(*std::exchange(landing->tail, std::nullopt));
  return true;
}

int LandingTable::NumLocalBooked(const TransferId& transfer) const {
  auto it = landings_.find(transfer);
  return it == landings_.end() ? 0 : it->second.booking.remaining();
}

engine::Booking LandingTable::TakeLocalBooking(const TransferId& transfer) {
  auto it = landings_.find(transfer);
  return it == landings_.end() ? engine::Booking() : std::move(it->second.booking);
}

bool LandingTable::FinishLocalFill(const TransferId& transfer, engine::PageLease pages,
                                   int tail_buffer, absl::Time now, Effects& out) {
  Landing* landing = FindOpen(transfer);
  if (landing == nullptr || !landing->is_local) return false;
  CHECK(pages.size() == static_cast<int>(landing->request.num_pages));
  landing->first_block_at = now;
  landing->verified.clear();
  landing->verified.push_back(std::move(pages));
  landing->num_verified = landing->request.num_pages;
  landing->tail = tail_buffer;
  ReadyIfComplete(transfer, *landing, now, out);
  return true;
}

std::optional<SequenceRef> LandingTable::NextToStart() {
  for (auto next = ready_.begin(); next != ready_.end();) {
    const auto it = landings_.find(*next);
    const bool is_open = it != landings_.end() && it->second.state != LandingState::kClosing;
    LandingSequence* waiting = is_open ? FirstWaiting(it->second) : nullptr;
    if (waiting == nullptr) {
      next = ready_.erase(next);
      continue;
    }
    if (waiting->masks == nullptr || waiting->masks->IsReady())
      return SequenceRef{it->first, &it->second, waiting};
    ++next;  // others need not wait for its grammar
  }
  return std::nullopt;
}

void LandingTable::MarkRunning(const SequenceRef& ref, SequenceId id) {
  CHECK(ref.sequence->state == SequenceState::kWaiting);
  ref.landing->state = LandingState::kRunning;
  ref.sequence->state = SequenceState::kRunning;
  ref.sequence->id = id;
  running_[id] = ref.transfer;
  ReturnTailIfUnused(*ref.landing);
}

std::optional<SequenceRef> LandingTable::Find(SequenceId id) {
  auto it = running_.find(id);
  if (it == running_.end()) return std::nullopt;
  Landing& landing = landings_.at(it->second);
  for (LandingSequence& sequence : landing.sequences) {
    const bool is_live =
        sequence.state != SequenceState::kWaiting && sequence.state != SequenceState::kDone;
    if (is_live && sequence.id == id) return SequenceRef{it->second, &landing, &sequence};
  }
  return std::nullopt;
}

std::optional<SequenceRef> LandingTable::Find(SessionId session, SequenceHandle handle) {
  for (auto& [transfer, landing] : landings_) {
    if (landing.session != session) continue;
    for (LandingSequence& sequence : landing.sequences)
      if (sequence.spec.handle == handle && sequence.state != SequenceState::kDone)
        return SequenceRef{transfer, &landing, &sequence};
  }
  return std::nullopt;
}

void LandingTable::MarkMoved(const SequenceRef& ref) {
  CHECK(ref.sequence->state == SequenceState::kMoving);
  running_.erase(ref.sequence->id);
  ref.sequence->state = SequenceState::kMoved;
}

void LandingTable::Finish(const SequenceRef& ref, absl::Time now, Effects& out) {
  running_.erase(ref.sequence->id);
  ref.sequence->state = SequenceState::kDone;
  CloseIfDone(ref.transfer, *ref.landing, now, out);
}

std::vector<SequenceId> LandingTable::Cancel(SessionId session, const wire::Cancel& cancel,
                                             absl::Time now, Effects& out) {
  auto it = landings_.find(cancel.transfer);
  if (it == landings_.end() || it->second.session != session) return {};
  Landing& landing = it->second;
  std::vector<SequenceId> running;
  for (size_t i = 0; i < landing.sequences.size(); ++i) {
    LandingSequence& sequence = landing.sequences[i];
    const bool is_meant = !cancel.sequence || *cancel.sequence == i;
    if (!is_meant || sequence.state == SequenceState::kDone) continue;
    if (sequence.state != SequenceState::kWaiting) {
      running.push_back(sequence.id);
      running_.erase(sequence.id);
    }
    End(sequence);
  }
  CloseIfDone(cancel.transfer, landing, now, out);
  return running;
}

std::vector<SequenceId> LandingTable::CloseSession(SessionId session, absl::Time now,
                                                   Effects& out) {
  std::vector<TransferId> owned;
  for (const auto& [transfer, landing] : landings_)
    if (landing.session == session) owned.push_back(transfer);
  std::vector<SequenceId> running;
  for (const TransferId& transfer : owned) {
    const auto ended = Cancel(
        session, {.transfer = transfer, .sequence = {}, .reason = "session closed"}, now, out);
    running.insert(running.end(), ended.begin(), ended.end());
  }
  return running;
}

void LandingTable::CloseIfDone(const TransferId& transfer, Landing& landing, absl::Time now,
                               Effects& out) {
  const bool is_done = std::ranges::all_of(
      landing.sequences, [](const LandingSequence& s) { return s.state == SequenceState::kDone; });
  if (is_done) {
    Close(transfer, landing, now, out);
  } else {
    ReturnTailIfUnused(landing);
  }
}

void LandingTable::ReturnTailIfUnused(Landing& landing) {
  const bool is_past_ready =
      landing.state == LandingState::kReady || landing.state == LandingState::kRunning;
  const bool is_needed = std::ranges::any_of(landing.sequences, [](const LandingSequence& s) {
    return s.state == SequenceState::kWaiting;
  });
  if (!is_past_ready || is_needed || !landing.tail) return;
  tails_.Return(*std::exchange(landing.tail, std::nullopt));
}

void LandingTable::CloseAgent(const TransferId& transfer, Landing& landing, Effects& out) {
  if (!landing.is_agent_open) return;
  landing.is_agent_open = false;
  out.commands.push_back(kvtransfer::CloseLanding{transfer});
  // Any of these may be under a posted receive: they come back one by one.
  landing.num_owed += static_cast<int>(landing.credit.size());
  for (auto& [page, lease] : landing.credit) {
    landing.quarantined.insert(page);
    pool_.Quarantine(std::move(lease));
  }
  landing.credit.clear();
}

void LandingTable::Close(const TransferId& transfer, Landing& landing, absl::Time now,
                         Effects& out) {
  if (landing.state == LandingState::kClosing) return;
  CloseAgent(transfer, landing, out);
  landing.state = LandingState::kClosing;
  landing.closing_since = now;
  landing.verified.clear();
  landing.booking = engine::Booking();
  if (landing.tail) tails_.Return(*std::exchange(landing.tail, std::nullopt));
  for (LandingSequence& sequence : landing.sequences) End(sequence);
  EraseIfQuiet(transfer);
}

void LandingTable::EraseIfQuiet(const TransferId& transfer) {
  auto it = landings_.find(transfer);
  if (it == landings_.end()) return;
  if (it->second.state == LandingState::kClosing && it->second.is_agent_closed) landings_.erase(it);
}

int LandingTable::num_waiting() const {
  int waiting = 0;
  for (const auto& [transfer, landing] : landings_) {
    if (landing.state != LandingState::kReady && landing.state != LandingState::kRunning) continue;
    waiting +=
        static_cast<int>(std::ranges::count_if(landing.sequences, [](const LandingSequence& s) {
          return s.state == SequenceState::kWaiting;
        }));
  }
  return waiting;
}

int LandingTable::num_open_sequences() const {
  int open = 0;
  for (const auto& [transfer, landing] : landings_) {
    open += static_cast<int>(std::ranges::count_if(landing.sequences, [](const LandingSequence& s) {
      return s.state != SequenceState::kDone;
    }));
  }
  return open;
}

bool LandingTable::IsWedged(absl::Time now) const {
  return std::ranges::any_of(landings_, [&](const auto& entry) {
    return now - entry.second.closing_since >= setup_.limits.wedged_after;
  });
}

}  // namespace baton::worker
