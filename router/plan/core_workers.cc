// RouterCore: what workers say, apart from tokens (core_tokens.cc).
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/plan/core.h"

namespace baton::router {
namespace {

// "Full or going away, try elsewhere" is no fault of the attempt (style 3.3).
bool IsCapacity(absl::StatusCode code) {
  return code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnavailable;
}

absl::Status StatusFrom(const WorkerRecord& worker, absl::StatusCode code,
                        const std::string& text) {
  const absl::StatusCode real = code == absl::StatusCode::kOk ? absl::StatusCode::kInternal : code;
  return absl::Status(real, absl::StrFormat("worker %s: %s", worker.hello.worker_id, text));
}

}  // namespace

void RouterCore::OnEvent(WorkerAdded& event) {
  workers_.Add(event.worker, std::move(event.address));
  ++view_version_;
}

void RouterCore::OnEvent(WorkerUp& event) {
  WorkerRecord* worker = workers_.Find(event.worker);
  if (worker == nullptr) worker = &workers_.Add(event.worker, "");
  if (worker->is_up)
    LoseWorker(*worker, absl::UnavailableError("the worker started a new session"));
  workers_.Up(*worker, std::move(event.hello), now_);
  if (!event.address.empty()) worker->address = std::move(event.address);
  UpdateCoverage();
}

void RouterCore::OnEvent(WorkerDown& event) {
  WorkerRecord* worker = workers_.Find(event.worker);
  if (worker != nullptr && worker->is_up) LoseWorker(*worker, event.status);
}

void RouterCore::UpdateCoverage() {
  ++view_version_;
  should_schedule_ = true;
  if (workers_.IsCovered()) {
    uncovered_since_ = absl::InfiniteFuture();
  } else if (uncovered_since_ == absl::InfiniteFuture()) {
    uncovered_since_ = now_;
    ArmCore(now_ + config_.no_worker_grace);
  }
}

void RouterCore::LoseWorker(WorkerRecord& worker, const absl::Status& status) {
  ++facts_.workers_lost;
  const WorkerId id = worker.id;
  const absl::Status why = absl::UnavailableError(
      absl::StrFormat("worker %s is gone: %s", worker.hello.worker_id, status.message()));
  workers_.Down(worker);  // its counters and handles with it
  for (auto it = requests_.begin(); it != requests_.end();) {
    Request& request = *(it++)->second;  // may end
    if (request.placement) LoseWorkerOf(request, id, why);
  }
  UpdateCoverage();
}

void RouterCore::LoseWorkerOf(Request& request, WorkerId worker, const absl::Status& why) {
  Placement& placement = *request.placement;
  std::erase(placement.told, worker);  // the session was the lease of all it booked
  std::erase(placement.used_prefills, worker);
  if (placement.prefill == worker) placement.is_prefill_open = false;
  if (request.moving && request.moving->target.decode == worker) {
    Placement& target = request.moving->target;
    target.told.clear();
    target.is_landing_asked = target.is_landing_answered = false;
    if (placement.decode != worker) return LosePlacement(request, false, why);
  }
  if (placement.decode == worker) {
    placement.is_landing_asked = placement.is_landing_answered = false;
    return LoseDecodeOf(request, why);
  }
  if (placement.prefill != worker) return;
  if (request.step == Step::kPrefilling && !placement.is_prefilled)
    return BeginRetarget(request, true, why);
  LosePrefillOf(request, false, why);
}

// The landing no longer needs it, but the report on the prompt may still have been on its way.
void RouterCore::LosePrefillOf(Request& request, bool is_fault, const absl::Status& why) {
  ClosePrefill(*request.placement);
  request.placement->prefill.reset();
  const bool has_landed = request.step == Step::kDecoding || request.step == Step::kMoving;
  if (has_landed && request.LacksPromptLogprobs()) LosePlacement(request, is_fault, why);
}

// No attempt of the request's, unless one decode worker after the other ends under it before it has
// a token: then it may be what ends them.
void RouterCore::LoseDecodeOf(Request& request, const absl::Status& why) {
  if (request.has_token || ++request.lost_bookings <= config_.max_lost_bookings)
    return LosePlacement(request, false, why);
  ++facts_.rebookings;
  End(request,
      absl::UnavailableError(absl::StrFormat(
          "gave up after %d decode workers were lost before the first token, at most %d: %s",
          request.lost_bookings, config_.max_lost_bookings, why.message())));
}

void RouterCore::OnEvent(WorkerSaid& event) {
  WorkerRecord* worker = workers_.Find(event.worker);
  if (worker == nullptr || !worker->is_up) return;
  worker->last_heard = now_;
  if (event.received_at != absl::InfinitePast()) received_at_ = std::min(event.received_at, now_);
  wire::WorkerMessage& message = event.message;
  if (message.beat) OnBeat(*worker, *message.beat);
  for (auto& item : message.reserved) OnItem(*worker, item);
  for (auto& item : message.refused) OnItem(*worker, item);
  for (auto& item : message.retargeted) OnItem(*worker, item);
  for (auto& item : message.prompt_logprobs) OnItem(*worker, item);  // before the first token
  for (auto& item : message.first_tokens) OnItem(*worker, item);
  for (auto& item : message.progress) OnItem(*worker, item);
  for (auto& item : message.prefilled) OnItem(*worker, item);
  for (auto& item : message.landed) OnItem(*worker, item);
  if (message.tokens)
    for (auto& item : message.tokens->sequences) OnItem(*worker, item);
  for (auto& item : message.finished) OnItem(*worker, item);
  for (auto& item : message.failed) OnItem(*worker, item);
  for (const SequenceHandle handle : message.parked) OnParked(*worker, handle, true);
  for (const SequenceHandle handle : message.resumed) OnParked(*worker, handle, false);
  if (message.load) OnLoad(*worker, *message.load);
  for (const auto& part : message.cache_events) worker->cache.Apply(part);
}

void RouterCore::OnBeat(WorkerRecord& worker, const wire::Beat& beat) {
  if (beat.is_wedged == worker.IsWedged()) return;
  worker.wedged_since = beat.is_wedged ? now_ : absl::InfiniteFuture();
  if (beat.is_wedged) ArmCore(now_ + config_.max_wedged);
  UpdateCoverage();
}

void RouterCore::OnLoad(WorkerRecord& worker, const wire::Load& load) {
  const bool was_draining = worker.IsDraining();
  worker.load = load;
  worker.fresh_pages = worker.fresh_sequences = 0;
  should_schedule_ = should_schedule_ || load.is_draining || !admission_.queue().empty() ||
                     !waiting_landings_.empty();
  if (worker.IsDraining() != was_draining) UpdateCoverage();
}

Request* RouterCore::FindTransfer(const TransferId& transfer) {
  const auto it = transfers_.find(transfer);
  if (it != transfers_.end()) return it->second;
  ++facts_.stale_messages;
  return nullptr;
}

WorkerRecord::Sequence* RouterCore::FindSequence(WorkerRecord& worker, SequenceHandle handle) {
  const auto it = worker.sequences.find(handle);
  if (it != worker.sequences.end()) return &it->second;
  ++facts_.stale_messages;
  return nullptr;
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Reserved& item) {
  if (Request* moving = FindMove(item.transfer)) {
    if (moving->moving->target.decode == worker.id) OnMoveReserved(*moving, item);
    return;
  }
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->step != Step::kBooking) return;
  Placement& placement = *request->placement;
  if (placement.decode != worker.id) return;
  CloseLanding(placement, true);
  placement.landing = std::move(item.landing);
  WorkerRecord* prefill = placement.prefill ? workers_.Find(*placement.prefill) : nullptr;
  if (prefill != nullptr && prefill->IsReady())
    return RunAt(*request, *prefill, placement.uncached_tokens);
  ClosePrefill(placement);
  WaitForPrefill(*request);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Refused& item) {
  if (Request* moving = FindMove(item.transfer)) return OnMoveRefused(*moving, worker, item);
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr) return;
  Placement& placement = *request->placement;
  const absl::Status why = StatusFrom(worker, item.code, item.message);
  const bool is_fault = !IsCapacity(item.code);
  const absl::Time again =
      now_ + std::max(config_.min_backoff, absl::Milliseconds(item.retry_after_ms));
  if (item.stage == wire::Stage::kReserve && placement.decode == worker.id &&
      request->step == Step::kBooking) {
    ++facts_.refusals;
    if (absl::IsInvalidArgument(why)) return End(*request, why);
    worker.HoldBack(item, again);
    ArmCore(again);
    request->avoid.push_back(worker.id);
    return LosePlacement(*request, is_fault, why);
  }
  if (item.stage == wire::Stage::kRun && placement.prefill == worker.id &&
      request->step == Step::kPrefilling) {
    ++facts_.refusals;
    if (absl::IsInvalidArgument(why)) return End(*request, why);
    worker.HoldBack(item, again);
    ArmCore(again);
    return BeginRetarget(*request, is_fault, why);
  }
  if (item.stage == wire::Stage::kMove && placement.decode == worker.id && request->moving)
    return OnMoveRefused(*request, worker, item);
  if (item.stage == wire::Stage::kRetarget && placement.decode == worker.id &&
      request->step == Step::kRetarget && !placement.has_retarget_answer)
    LosePlacement(*request, is_fault, why);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Retargeted& item) {
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->step != Step::kRetarget) return;
  Placement& placement = *request->placement;
  if (placement.decode != worker.id || item.attempt != placement.attempt) return;
  if (placement.has_retarget_answer) return;
  placement.verified_pages = std::move(item.verified_pages);
  WaitForPrefill(*request);
}

void RouterCore::NoteProgress(Request& request, const WorkerRecord& prefill) {
  // Its prompts take turns, so a chunk of each may come before our next one.
  const double chunk = std::min(config_.chunk_tokens, request.placement->uncached_tokens) *
                       static_cast<double>(std::max(1u, prefill.open_prefills));
  const absl::Duration predicted = absl::Seconds(chunk / prefill.PrefillRate(config_));
  request.placement->progress_due =
      now_ + std::max(config_.progress_floor, config_.progress_factor * predicted);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Progress& item) {
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->step != Step::kPrefilling) return;
  const Placement& placement = *request->placement;
  if (placement.prefill == worker.id && placement.attempt == item.attempt &&
      !placement.is_prefilled)
    NoteProgress(*request, worker);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Prefilled& item) {
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->step != Step::kPrefilling) return;
  Placement& placement = *request->placement;
  if (placement.prefill != worker.id || placement.attempt != item.attempt) return;
  placement.is_prefilled = true;  // a slot in D's batch is all it waits for
  placement.progress_due = absl::InfiniteFuture();
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Failed& item) {
  Request* request = nullptr;
  if (Request* moving = FindMove(item.transfer); moving != nullptr && !item.handle) {
    moving->avoid.push_back(moving->moving->target.decode);
    return LosePlacement(*moving, true, StatusFrom(worker, item.code, item.message));
  }
  if (item.handle) {
    if (const auto* sequence = FindSequence(worker, *item.handle)) request = sequence->request;
  } else {
    request = FindTransfer(item.transfer);
  }
  if (request == nullptr) return;
  Placement& placement = *request->placement;
  const absl::Status why = StatusFrom(worker, item.code, item.message);
  if (absl::IsInvalidArgument(why)) return End(*request, why);  // it is the same everywhere
  // Its grammar found no more memory: what else has one would find none either.
  if (absl::IsResourceExhausted(why) && request->HasGrammar()) {
    worker.no_grammar_before = std::max(worker.no_grammar_before, now_ + config_.min_backoff);
    ArmCore(worker.no_grammar_before);
  }
  const bool is_data_loss = item.code == absl::StatusCode::kDataLoss;
  const bool is_unavailable = item.code == absl::StatusCode::kUnavailable;
  const bool is_prefilling = request->step == Step::kPrefilling;
  const bool is_target = request->moving && request->moving->target.decode == worker.id;
  if (placement.decode == worker.id || is_target) {
    // Its sender left, as this core knows by now: said of the attempt that Retarget ends.
    if (!item.handle && is_unavailable && request->step == Step::kRetarget) return;
    const bool is_link = !item.handle && (is_data_loss || is_unavailable);
    if (is_link && is_prefilling && !placement.IsSameWorker()) return BlameLink(*request, why);
    request->avoid.push_back(worker.id);
    return LosePlacement(*request, true, why);
  }
  if (placement.prefill != worker.id) return;
  if (!is_prefilling || placement.is_prefilled) return LosePrefillOf(*request, true, why);
  request->avoid.push_back(worker.id);
  // A page that rotted in P's cache may be in blocks that D holds already, with good digests.
  if (is_data_loss) return LosePlacement(*request, true, why);
  BeginRetarget(*request, true, why);
}

void RouterCore::OnParked(WorkerRecord& worker, SequenceHandle handle, bool is_parked) {
  const WorkerRecord::Sequence* sequence = FindSequence(worker, handle);
  if (sequence == nullptr) return;
  Request& request = *sequence->request;
  if (request.step == Step::kMoving) {
    // Parked for want of pages looks the same until it is resumed; if it is not, the source fails
    // the Move.
    if (request.placement->decode != worker.id) return;
    if (!is_parked) return StayPut(request, "it was resumed");
    if (request.moving->stage == Moving::Stage::kStopping) BookMove(request);
    return;
  }
  request.choices[static_cast<size_t>(sequence->choice)].parked_since =
      is_parked ? now_ : absl::InfiniteFuture();
  Arm(request);
}

}  // namespace baton::router
