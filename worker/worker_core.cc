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
      landings_(setup_, loop_.pool(), tails_, parts.rng) {
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
  bool has_started = StartLandings();
  has_started = HoldStopping() || has_started;
  has_started = StartMoves() || has_started;
  has_started = StartJobs() || has_started;
  // Answers and offers do not wait for the step.
  const bool has_answered = HasEffects();
  Flush(start);
  watch_.OnRound(loop_.counters().steps, loop_.counters().last_step, loop_.HasWork());
  watch_.SetMemoryWedged(landings_.IsWedged(start));
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
  if (const auto* answer = std::get_if<kvtransfer::LandingRetargeted>(&event)) {
    cache_.MakeRoom(static_cast<int>(answer->quarantined.size()));
    return landings_.On(*answer, effects_);
  }
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

bool WorkerCore::StartLandings() {
  bool has_started = false;
  while (auto ref = landings_.NextToStart()) {
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

int WorkerCore::NumJobs(JobState state) const {
  return static_cast<int>(std::ranges::count_if(
      jobs_, [&](const auto& entry) { return entry.second->state() == state; }));
}

PrefillJob* WorkerCore::NextJob() {
  PrefillJob* best = nullptr;
  for (const TransferId& transfer : job_order_) {
    auto it = jobs_.find(transfer);
    if (it == jobs_.end() || !it->second->IsRunnable()) continue;
    PrefillJob* job = it->second.get();
    const bool is_better =
        best == nullptr || job->run().priority < best->run().priority ||
        (job->run().priority == best->run().priority && job->deadline() < best->deadline());
    if (is_better) best = job;
  }
  return best;
}

bool WorkerCore::StartJobs() {
  bool has_started = false;
  while (static_cast<int>(computing_.size()) < setup_.limits.max_computing_prompts) {
    PrefillJob* job = NextJob();
    if (job == nullptr || !StartJob(*job)) break;
    std::erase(job_order_, job->run().transfer);
    has_started = true;
  }
  return has_started;
}

bool WorkerCore::StartJob(PrefillJob& job) {
  if (tails_.num_free() == 0) return false;
  const wire::Run& run = job.run();
  PrefixMatch match;
  if (!run.prompt_logprobs)  // every position is to be computed
    match = cache_.Lookup(job.names(), (job.num_tokens() - 1) / kPageTokens);
  const int needed = PagesFor(job.num_tokens()) - match.pages.size();
  const int has = job.is_local() ? landings_.NumLocalBooked(run.transfer) : 0;
  const int lacking = std::max(needed - has, 0);
  cache_.MakeRoom(lacking);
  absl::StatusOr<engine::Booking> booking = loop_.pool().Book(lacking);
  if (!booking.ok()) return false;  // pages come back as sequences end
  const std::optional<int> slot = loop_.TakeTailSlot();
  if (!slot) return false;
  if (!cache_.Check(job.names(), match)) {
    loop_.ReturnTailSlot(*slot);
    match = PrefixMatch();
    *booking = engine::Booking();
    return StartJob(job);  // with what is left in the cache
  }
  if (job.is_local()) booking->Add(landings_.TakeLocalBooking(run.transfer));
  cache_.Count(match);
  const int buffer = *tails_.Take();
  if (match.tail != nullptr) {
    const std::span<std::byte> tail = tails_.Data(buffer, match.tail->size());
    std::memcpy(tail.data(), match.tail->data(), tail.size());
    const absl::StatusOr<kernels::TailHeader> header = kernels::DecodeTailHeader(tail);
    CHECK(header.ok());  // written by this worker
    SetError(loop_.UnpackTail(*slot, header->num_tokens, !header->has_no_drafter_state, tail));
  }
  engine::Sequence sequence;
  sequence.id = NewSequence();
  sequence.request_id = run.request_id;
  sequence.choices.clear();
  sequence.received.clear();
  for (const wire::SequenceSpec& spec : run.sequences) {
    sequence.choices.push_back(static_cast<int>(spec.choice));
    sequence.received.push_back(spec.received);
  }
  sequence.tokens = job.prompt();
  sequence.prompt_tokens = job.num_tokens();
  sequence.computed = match.tokens();
  sequence.tail_slot = *slot;
  sequence.sampling = run.sampling;
  sequence.finish = run.finish;
  sequence.prompt_class = setup_.prompt_class;
  sequence.decode_class = setup_.decode_class;
  sequence.deadline = job.deadline();
  sequence.priority = run.priority;
  sequence.tail_interval = setup_.limits.tail_interval;
  if (run.prompt_logprobs) sequence.prompt_logprobs = static_cast<int>(*run.prompt_logprobs);
  job.Start(sequence.id, match.pages.ids(), buffer, clock_.Now(), effects_);
  sequence.pages = std::move(match.pages);
  computing_[sequence.id] = run.transfer;
  loop_.Admit(std::move(sequence), std::move(*booking));
  return true;
}

PrefillJob* WorkerCore::JobOf(SequenceId sequence) {
  auto it = computing_.find(sequence);
  return it == computing_.end() ? nullptr : jobs_.at(it->second).get();
}

void WorkerCore::StopJob(PrefillJob& job, const absl::Status* failure) {
  engine::PageLease pages;
  if (job.state() == JobState::kComputing) {
    computing_.erase(job.sequence());
    pages = ReleaseFromLoop(job.sequence());
  }
  if (failure != nullptr) {
    LogF(LogLevel::kDebug, "prefill_failed", "request=%s transfer=%s attempt=%d error=%s",
         job.run().request_id, job.run().transfer.Hex(), job.run().attempt, failure->ToString());
    job.Fail(*failure, std::move(pages), effects_);
  } else {
    job.Stop(std::move(pages), effects_);
  }
  LoadChanged();
}

void WorkerCore::EraseReleasedJobs() {
  std::erase_if(jobs_, [this](const auto& entry) {
    if (entry.second->state() != JobState::kReleased) return false;
    if (entry.second->tail_buffer()) tails_.Return(*entry.second->tail_buffer());
    std::erase(job_order_, entry.first);
    return true;
  });
  std::erase_if(moves_, [this](const auto& entry) {
    if (entry.second->state() != MoveState::kReleased) return false;
    if (entry.second->tail_buffer()) tails_.Return(*entry.second->tail_buffer());
    return true;
  });
}

void WorkerCore::KeepBoundaryTail(const PrefillJob& job, SequenceId sequence, int computed) {
  const int page = computed / kPageTokens;
  const bool is_boundary = computed > 0 && computed % kPageTokens == 0;
  const bool is_last = page == job.num_tokens() / kPageTokens;
  const int interval = setup_.limits.tail_interval;
  const bool is_due = is_boundary && (is_last || (interval > 0 && page % interval == 0));
  if (!is_due || cache_.HasTail(job.names()[static_cast<size_t>(page) - 1])) return;
  const PageName& name = job.names()[static_cast<size_t>(page) - 1];
  const uint64_t bytes =
      kernels::MakeTailLayout(setup_.layout, static_cast<uint64_t>(computed), 0).total_bytes;
  std::vector<std::byte> tail(bytes);
  SetError(loop_.PackTail(sequence, tail));
  WriteTailHeader(setup_, static_cast<uint64_t>(computed), 0, name, tail);
  cache_.AddTail(name, std::move(tail));
}

void WorkerCore::OnChunk(SequenceId sequence, int computed) {
  PrefillJob* job = JobOf(sequence);
  if (job == nullptr) return;
  const std::span<const PageId> pages = loop_.Get(sequence).pages.ids();
  const auto sealed = static_cast<size_t>(computed / kPageTokens);
  cache_.AddPages(std::span(job->names()).first(sealed), pages.first(sealed));
  KeepBoundaryTail(*job, sequence, computed);
  job->OnChunk(pages, computed, effects_);
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
  SetError(loop_.PackTail(sequence, tail));
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
