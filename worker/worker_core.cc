#include "worker/worker_core.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "kernels/tail_header.h"

namespace baton::worker {
namespace {

uint32_t Micros(absl::Duration duration) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Microseconds(duration), 0, UINT32_MAX));
}

}  // namespace

WorkerCore::WorkerCore(const CoreParts& parts)
    : setup_(parts.setup),
      loop_(parts.loop),
      sender_(parts.sender),
      agent_(parts.agent),
      watch_(parts.watch),
      clock_(parts.clock),
      tails_(setup_.tail_memory, setup_.tail_stride),
      cache_(loop_.pool(), setup_.layout_id, parts.rng.DrawBytes<Secret>(),
             setup_.limits.max_cached_tail_bytes),
      landings_(setup_, loop_.pool(), tails_, parts.rng,
                [this](int pages) { cache_.MakeRoom(pages); }) {
  loop_.SetObserver(this);
  loop_.SetReclaimer([this](int pages) { cache_.MakeRoom(loop_.pool().Counts().free + pages); });
}

WorkerCore::~WorkerCore() {
  loop_.SetObserver(nullptr);
  loop_.SetReclaimer({});
}

absl::StatusOr<bool> WorkerCore::RunOnce() {
  const absl::Time start = clock_.Now();
  const std::vector<kvtransfer::AgentEvent> events = agent_.TakeEvents();
  for (const kvtransfer::AgentEvent& event : events) On(event);
  ExpireTombstones(start);
  ReplaceOwed();
  bool has_answered = HasEffects();
  Flush(start);  // not behind the step in flight, which the tail of a landing waits for
  bool has_started = StartLandings();
  has_started = HoldStopping() || has_started;
  has_started = StartMoves() || has_started;
  has_started = StartJobs() || has_started;
  has_answered = HasEffects() || has_answered;
  Flush(start);  // nor behind the next one
  watch_.OnRound(loop_.counters().steps, loop_.counters().last_step, loop_.HasWork());
  watch_.SetMemoryWedged(landings_.IsWedged(start));
  SetError(loop_.pool().device_status());  // also where nothing runs that would meet it
  RETURN_IF_ERROR(error_);
  const absl::StatusOr<bool> has_stepped = loop_.RunOnce();
  if (!has_stepped.ok()) SetError(has_stepped.status());
  watch_.OnRound(loop_.counters().steps, loop_.counters().last_step, loop_.HasWork());
  EraseReleasedJobs();
  SendLoads();
  const bool has_answers = HasEffects() || has_answered;
  Flush(start);
  SendCacheEvents();
  RETURN_IF_ERROR(error_);
  return *has_stepped || has_started || has_answers || !events.empty();
}

bool WorkerCore::HasEffects() const {
  return !effects_.messages.empty() || !effects_.commands.empty();
}

void WorkerCore::SetError(const absl::Status& status) {
  if (status.ok() || !error_.ok()) return;
  error_ = status;
  watch_.SetFailed();
}

void WorkerCore::Flush(absl::Time round_start) {
  counters_.replay_mismatches +=
      static_cast<uint64_t>(std::exchange(effects_.replay_mismatches, 0));
  for (kvtransfer::AgentCommand& command : effects_.commands)
    commands_.push_back(std::move(command));
  effects_.commands.clear();
  while (!commands_.empty() && agent_.Execute(commands_.front()).ok()) commands_.pop_front();
  for (auto& [session, logprobs] : effects_.prompt_logprobs) {
    wire::WorkerMessage message;
    message.prompt_logprobs.push_back(std::move(logprobs));
    if (sessions_.contains(session)) sender_.Send(session, std::move(message));
  }
  effects_.prompt_logprobs.clear();
  const uint32_t booking_us = Micros(clock_.Now() - round_start);
  for (auto& [session, message] : effects_.messages) {
    for (wire::Reserved& reserved : message.reserved) reserved.booking_us = booking_us;
    counters_.refused += message.refused.size();
    counters_.landed += message.landed.size();
    counters_.prefilled += message.prefilled.size();
    counters_.finished += message.finished.size();
    counters_.failed += message.failed.size();
    if (sessions_.contains(session)) sender_.Send(session, std::move(message));
  }
  effects_.messages.clear();
}

void WorkerCore::On(const kvtransfer::AgentEvent& event) {
  const absl::Time now = clock_.Now();
  if (const auto* landed = std::get_if<kvtransfer::BlockLanded>(&event))
    return landings_.On(*landed, now, effects_);
  if (const auto* answer = std::get_if<kvtransfer::LandingRetargeted>(&event))
    return landings_.On(*answer, effects_);
  if (const auto* failed = std::get_if<kvtransfer::LandingFailed>(&event))
    return landings_.On(*failed, effects_);
  if (const auto* memory = std::get_if<kvtransfer::MemoryReturned>(&event))
    return landings_.On(*memory, effects_);
  if (const auto* closed = std::get_if<kvtransfer::LandingClosed>(&event))
    return landings_.On(*closed);
  if (const auto* failed = std::get_if<kvtransfer::SendFailed>(&event))
    return OnSendFailed(*failed);
  if (const auto* acked = std::get_if<kvtransfer::BlockAcked>(&event)) {
    if (auto it = jobs_.find(acked->transfer); it != jobs_.end())
      it->second->OnAcked(acked->block, effects_);
    if (auto it = moves_.find(acked->transfer); it != moves_.end()) OnMoveAcked(*it->second);
    return;
  }
  const TransferId& released = std::get<kvtransfer::SendReleased>(event).transfer;
  if (auto it = jobs_.find(released); it != jobs_.end()) it->second->OnSendReleased();
  if (auto it = moves_.find(released); it != moves_.end()) it->second->OnSendReleased();
}

void WorkerCore::OnSendFailed(const kvtransfer::SendFailed& event) {
  if (auto it = jobs_.find(event.transfer);
      it != jobs_.end() && it->second->run().attempt == event.attempt)
    return StopJob(*it->second, &event.status);
  auto it = moves_.find(event.transfer);
  if (it == moves_.end() || it->second->attempt() != event.attempt) return;
  if (const auto ref = landings_.Find(it->second->sequence())) FailSequence(*ref, event.status);
}

engine::PageLease WorkerCore::ReleaseFromLoop(SequenceId sequence) {
  if (!loop_.Has(sequence)) return {};
  engine::Sequence released = loop_.Release(sequence);
  if (released.tail_slot >= 0) loop_.ReturnTailSlot(released.tail_slot);
  return std::move(released.pages);
}

// Pages and tail buffers that a retargeted landing lacks come before new work.
void WorkerCore::ReplaceOwed() {
  if (!landings_.IsOwed()) return;
  const engine::PoolCounts pool = loop_.pool().Counts();
  cache_.MakeRoom(std::min(landings_.num_owed(), pool.free + pool.cached));
  landings_.ReplaceOwed(effects_);
}

bool WorkerCore::StartLandings() {
  bool has_started = false;
  while (auto ref = landings_.NextToStart()) {
    engine::PendingMasks* masks = ref->sequence->masks.get();
    if (masks != nullptr && !masks->status().ok()) {
      if (engine::IsMaskFailure(masks->status())) ++counters_.mask_failures;
      FailSequence(*ref, masks->status());
      has_started = true;
      continue;
    }
    const std::optional<int> slot = loop_.TakeTailSlot();
    if (!slot) break;
    Landing& landing = *ref->landing;
    const std::span<std::byte> tail = tails_.Data(*landing.tail, landing.tail_bytes);
    const absl::StatusOr<kernels::TailHeader> header = kernels::DecodeTailHeader(tail);
    CHECK(header.ok());  // the table has read it
    SetError(loop_.UnpackTail(*slot, header->num_tokens, !header->has_no_drafter_state, tail));
    engine::Sequence sequence;
    sequence.id = NewSequence();
    sequence.request_id = landing.request.request_id;
    sequence.choices = {static_cast<int>(ref->sequence->spec.choice)};
    sequence.tokens = landing.prompt.tokens();
    const std::vector<int32_t> known = KnownTokens(*ref->sequence);
    sequence.tokens.insert(sequence.tokens.end(), known.begin(), known.end());
    sequence.prompt_tokens = static_cast<int>(landing.request.prompt_tokens);
    sequence.computed = static_cast<int>(landing.num_tokens);
    sequence.received = {ref->sequence->spec.received};
    sequence.pages = std::move(ref->sequence->pages);
    sequence.tail_slot = *slot;
    sequence.sampling = landing.request.sampling;
    sequence.finish = landing.request.finish;
    if (masks != nullptr) sequence.masks = masks->Take();
    ref->sequence->masks.reset();
    sequence.prompt_class = header->prompt_class;
    sequence.decode_class = setup_.decode_class;
    sequence.priority = landing.request.priority;
    engine::Booking booking = std::move(ref->sequence->booking);
    const SequenceId id = sequence.id;
    landings_.MarkRunning(*ref, id);
    loop_.Admit(std::move(sequence), std::move(booking));
    has_started = true;
  }
  return has_started;
}

PrefillJob* WorkerCore::JobOf(SequenceId sequence) {
  auto it = computing_.find(sequence);
  return it == computing_.end() ? nullptr : jobs_.at(it->second).get();
}

void WorkerCore::OnPromptLogprobs(SequenceId sequence, int first_position,
                                  std::vector<TokenRecord> tokens) {
  if (PrefillJob* job = JobOf(sequence); job != nullptr)
    job->OnPromptLogprobs(first_position, std::move(tokens), effects_);
}

void WorkerCore::OnFirstTokens(SequenceId sequence, std::vector<TokenRecord> tokens) {
  PrefillJob* job = JobOf(sequence);
  CHECK(job != nullptr);
  const std::span<std::byte> tail = tails_.Data(*job->tail_buffer(), job->tail_bytes());
  std::memset(tail.data(), 0, tail.size());
  if (const absl::Status packed = loop_.PackTail(sequence, tail); !packed.ok())
    return SetError(packed);  // nothing of it leaves
  computing_.erase(sequence);
  engine::PageLease pages = ReleaseFromLoop(sequence);
  CHECK(pages.size() >= PagesFor(job->num_tokens()));
  pages.Split(PagesFor(job->num_tokens()));  // room for drafts goes back
  if (job->is_local()) {
    job->OnFirstTokens({}, tail, tokens, clock_.Now(), effects_);
    FillLanding(*job, std::move(pages));
  } else {
    job->OnFirstTokens(std::move(pages), tail, tokens, clock_.Now(), effects_);
  }
  LoadChanged();
}

void WorkerCore::FillLanding(PrefillJob& job, engine::PageLease pages) {
  effects_.To(job.session())
      .prefilled.push_back({.transfer = job.run().transfer, .attempt = job.run().attempt});
  const bool is_taken = landings_.FinishLocalFill(job.run().transfer, std::move(pages),
                                                  *job.tail_buffer(), clock_.Now(), effects_);
  if (is_taken) {
    job.HandOver();
  } else {
    job.Stop({}, effects_);  // the landing was cancelled: its buffer returns with the job
  }
}

void WorkerCore::OnTokens(SequenceId sequence, int first_position,
                          std::vector<TokenRecord> tokens) {
  const auto ref = landings_.Find(sequence);
  if (!ref) return;
  wire::SequenceStep step{.handle = ref->sequence->spec.handle,
                          .first_position = static_cast<uint32_t>(first_position),
                          .tokens = std::move(tokens)};
  if (!std::exchange(ref->sequence->has_reported_step, true)) {
    const absl::Duration last = loop_.counters().last_step;
    step.step_us = Micros(last);
    step.queue_us = Micros(clock_.Now() - last - ref->sequence->landed_at);
  }
  wire::WorkerMessage& message = effects_.To(ref->landing->session);
  if (!message.tokens)
    message.tokens = wire::Tokens{.step = loop_.counters().steps, .sequences = {}};
  message.tokens->sequences.push_back(std::move(step));
}

void WorkerCore::OnFinished(SequenceId sequence, FinishReason reason, int32_t stop_token) {
  const auto ref = landings_.Find(sequence);
  CHECK(ref.has_value());
  effects_.To(ref->landing->session)
      .finished.push_back(
          {.handle = ref->sequence->spec.handle, .reason = reason, .stop_token = stop_token});
  LogF(LogLevel::kDebug, "finished", "request=%s transfer=%s handle=%d reason=%s",
       ref->landing->request.request_id, ref->transfer.Hex(), ref->sequence->spec.handle.value,
       reason == FinishReason::kStop ? "stop" : "length");
  ReleaseFromLoop(sequence);
  landings_.Finish(*ref, clock_.Now(), effects_);
  LoadChanged();
}

void WorkerCore::OnFailed(SequenceId sequence, const absl::Status& status) {
  if (PrefillJob* job = JobOf(sequence); job != nullptr) {
    StopJob(*job, &status);
    return;
  }
  const auto ref = landings_.Find(sequence);
  CHECK(ref.has_value());
  effects_.To(ref->landing->session)
      .failed.push_back({.transfer = ref->transfer,
                         .handle = ref->sequence->spec.handle,
                         .code = status.code(),
                         .message = std::string(status.message())});
  ReleaseFromLoop(sequence);
  landings_.Finish(*ref, clock_.Now(), effects_);
  LoadChanged();
}

void WorkerCore::OnParked(SequenceId sequence) {
  const auto ref = landings_.Find(sequence);
  if (!ref) return;
  ++counters_.parked;
  ref->sequence->state = SequenceState::kParked;
  effects_.To(ref->landing->session).parked.push_back(ref->sequence->spec.handle);
}

void WorkerCore::OnResumed(SequenceId sequence) {
  const auto ref = landings_.Find(sequence);
  if (!ref) return;
  ref->sequence->state = SequenceState::kRunning;
  effects_.To(ref->landing->session).resumed.push_back(ref->sequence->spec.handle);
}

void WorkerCore::OnReplayMismatch(SequenceId sequence) {
  (void)sequence;
  ++counters_.replay_mismatches;
}

}  // namespace baton::worker
