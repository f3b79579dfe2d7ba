// Running sequences that leave for another decode worker (contracts.md 4.3, Moving).
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"
#include "worker/worker_core.h"

namespace baton::worker {
namespace {

// It finishes in place (contracts.md 5, Drain): the router hears why, and the sequence goes on.
wire::Refused CannotStop(const SequenceRef& ref) {
  return {.transfer = ref.transfer,
          .stage = wire::Stage::kMove,
          .code = absl::StatusCode::kUnavailable,
          .message =
              absl::StrFormat("sequence %d cannot move: its request has %d that share pages, 1 may",
                              ref.sequence->spec.handle.value, ref.landing->sequences.size())};
}

}  // namespace

void WorkerCore::Move(SessionId session, const wire::Move& move) {
  const auto ref = landings_.Find(session, move.handle);
  if (!ref) return;  // it ended: Finished, Failed or its Cancel crossed the Move
  if (ref->sequence->state == SequenceState::kMoved) return;  // a repeat
  if (!move.landing && ref->landing->sequences.size() > 1) {
    effects_.Refuse(session, CannotStop(*ref));
    return;
  }
  const absl::Status status = move.landing ? BeginMove(*ref, move) : BeginStop(*ref);
  if (!status.ok()) FailSequence(*ref, status);
}

// One that has not landed yet stops when it has.
absl::Status WorkerCore::BeginStop(const SequenceRef& ref) {
  if (ref.sequence->state == SequenceState::kParked) return ParkedError(ref);
  if (ref.sequence->state == SequenceState::kMoving) return absl::OkStatus();
  const std::pair stopping(ref.landing->session, ref.sequence->spec.handle);
  if (std::ranges::find(stopping_, stopping) == stopping_.end()) stopping_.push_back(stopping);
  return absl::OkStatus();
}

absl::Status WorkerCore::ParkedError(const SequenceRef& ref) {
  return absl::UnavailableError(absl::StrFormat(
      "sequence %d cannot move: it is parked for want of pages", ref.sequence->spec.handle.value));
}

absl::Status WorkerCore::BeginMove(const SequenceRef& ref, const wire::Move& move) {
  const uint32_t handle = move.handle.value;
  if (ref.sequence->state == SequenceState::kParked) return ParkedError(ref);
  if (ref.sequence->state != SequenceState::kMoving)
    return absl::UnavailableError(absl::StrFormat("sequence %d has not been stopped", handle));
  const SequenceId id = ref.sequence->id;
  const auto moving = std::ranges::find_if(
      moves_, [id](const auto& entry) { return entry.second->sequence() == id; });
  if (moving != moves_.end()) {
    if (moving->first == move.transfer) return absl::OkStatus();
    return absl::UnavailableError(absl::StrFormat("sequence %d is moving by transfer %s already",
                                                  handle, moving->first.Hex()));
  }
  if (move.landing->incarnation == setup_.incarnation)
    return absl::UnavailableError(absl::StrFormat("sequence %d is at this worker already", handle));
  if (jobs_.contains(move.transfer) || moves_.contains(move.transfer)) {
    return absl::UnavailableError(
        absl::StrFormat("transfer %s is still being sent from here", move.transfer.Hex()));
  }
  moves_.emplace(move.transfer, std::make_unique<MoveSource>(setup_, move, id));
  return absl::OkStatus();
}

bool WorkerCore::HoldStopping() {
  bool has_stopped = false;
  std::erase_if(stopping_, [&](const auto& stopping) {
    const auto ref = landings_.Find(stopping.first, stopping.second);
    if (!ref || ref->sequence->state == SequenceState::kMoving) return true;
    if (ref->sequence->state == SequenceState::kParked) {
      FailSequence(*ref, ParkedError(*ref));
      return true;
    }
    if (ref->sequence->state != SequenceState::kRunning) return false;
    const engine::Sequence& sequence = loop_.Get(ref->sequence->id);
    const bool is_replaying = sequence.computed + 1 < static_cast<int>(sequence.tokens.size());
    if (is_replaying) return false;  // a tail in the midst of known tokens is of no use
    loop_.Hold(ref->sequence->id);
    ref->sequence->state = SequenceState::kMoving;
    effects_.To(stopping.first).parked.push_back(stopping.second);
    has_stopped = true;
    return true;
  });
  return has_stopped;
}

bool WorkerCore::StartMoves() {
  bool has_started = false;
  for (const auto& [transfer, move] : moves_) {
    if (move->state() != MoveState::kWaiting) continue;
    const std::optional<int> buffer = tails_.Take();
    if (!buffer) break;  // one comes back with the next tail that is sent or unpacked
    StartMove(*move, *buffer);
    has_started = true;
  }
  return has_started;
}

void WorkerCore::StartMove(MoveSource& move, int buffer) {
  const uint64_t bytes = MoveSource::TailBytes(setup_, loop_.Get(move.sequence()).computed);
  const std::span<std::byte> tail = tails_.Data(buffer, bytes);
  std::memset(tail.data(), 0, tail.size());
  if (const absl::Status packed = loop_.PackTail(move.sequence(), tail); !packed.ok())
    return SetError(packed);
  engine::Sequence sequence = loop_.Release(move.sequence());
  loop_.ReturnTailSlot(sequence.tail_slot);
  const auto ref = landings_.Find(move.sequence());
  ++counters_.moved;
  LogF(LogLevel::kDebug, "move_started", "request=%s transfer=%s tokens=%d", sequence.request_id,
       move.transfer().Hex(), sequence.computed);
  move.Start(std::move(sequence), ref->landing->request.salt, buffer, tail, effects_);
}

// The target says Landed over a stream of its own. Until the router has it, the sequence is open
// here, so that a draining worker does not leave and look lost (contracts.md 4.3, Moved).
void WorkerCore::OnMoveAcked(MoveSource& move) {
  if (!move.OnAcked()) return;
  move.Stop(effects_);
  landings_.MarkMoved(*landings_.Find(move.sequence()));
  LoadChanged();
}

void WorkerCore::FailSequence(const SequenceRef& ref, const absl::Status& status) {
  const SessionId session = ref.landing->session;
  effects_.To(session).failed.push_back({.transfer = ref.transfer,
                                         .handle = ref.sequence->spec.handle,
                                         .code = status.code(),
                                         .message = std::string(status.message())});
  const auto index = static_cast<uint32_t>(ref.sequence - ref.landing->sequences.data());
  const wire::Cancel cancel{.transfer = ref.transfer, .sequence = index, .reason = "failed"};
  for (const SequenceId id : landings_.Cancel(session, cancel, clock_.Now(), effects_))
    EndSequence(id);
  LoadChanged();
}

void WorkerCore::EndSequence(SequenceId sequence) {
  ReleaseFromLoop(sequence);
  for (const auto& [transfer, move] : moves_)
    if (move->sequence() == sequence) move->Stop(effects_);
}

}  // namespace baton::worker
