// What routers say to a worker, and what it tells them unasked.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"
#include "worker/worker_core.h"

namespace baton::worker {
namespace {

wire::Refused MakeRefused(const TransferId& transfer, wire::Stage stage, const absl::Status& status,
                          absl::Duration retry_after) {
  const bool is_full = status.code() == absl::StatusCode::kResourceExhausted;
  return {.transfer = transfer,
          .stage = stage,
          .code = status.code(),
          .message = std::string(status.message()),
          .retry_after_ms =
              is_full ? static_cast<uint32_t>(absl::ToInt64Milliseconds(retry_after)) : 0};
}

absl::Status DrainingError() { return absl::UnavailableError("this worker is draining"); }

}  // namespace

void WorkerCore::Apply(SessionEvent event) {
  std::visit([this](auto& e) { On(e); }, event);
}

void WorkerCore::On(const SessionOpened& event) {
  sessions_[event.session] = Session{.next_load = clock_.Now(), .tombstones = {}};
  if (!setup_.serves_prefill) return;
  for (wire::CacheEvents& part : cache_.Snapshot()) {
    wire::WorkerMessage message;
    message.cache_events.push_back(std::move(part));
    sender_.Send(event.session, std::move(message));
  }
}

void WorkerCore::On(SessionMessage& event) {
  const SessionId session = event.session;
  if (!sessions_.contains(session)) return;  // closed meanwhile
  wire::RouterMessage& message = event.message;
  for (const wire::Cancel& cancel : message.cancels) Cancel(session, cancel);
  for (const wire::Reserve& reserve : message.reserves) Reserve(session, reserve);
  for (const wire::Retarget& retarget : message.retargets)
    landings_.Retarget(session, retarget, effects_);
  for (const wire::Run& run : message.runs) Run(session, run);
  for (const wire::PromptChunk& chunk : message.prompt_chunks) {
    const absl::Status status = AddPrompt(session, chunk);
    if (status.ok()) continue;
    sender_.Close(session, status);
    CancelSession(session);
    return;
  }
  for (const wire::Move& move : message.moves) Move(session, move);
  if (message.drain) Drain();
  if (message.drops_cache) DropCache(session);
}

void WorkerCore::DropCache(SessionId session) {
  LogF(LogLevel::kInfo, "cache_dropped", "session=%d pages=%d tails=%d", session.value,
       cache_.num_pages(), cache_.num_tails());
  cache_.Clear();
  LoadChanged();
}

void WorkerCore::On(const SessionClosed& event) { CancelSession(event.session); }

void WorkerCore::CancelSession(SessionId session) {
  for (const SequenceId sequence : landings_.CloseSession(session, clock_.Now(), effects_))
    EndSequence(sequence);
  for (const auto& [transfer, job] : jobs_)
    if (job->session() == session) StopJob(*job, nullptr);
  sessions_.erase(session);
  LoadChanged();
}

void WorkerCore::Cancel(SessionId session, const wire::Cancel& cancel) {
  ++counters_.cancels;
  const Landing* landing = landings_.Find(cancel.transfer);
  const bool has_landing = landing != nullptr && landing->session == session;
  for (const SequenceId sequence : landings_.Cancel(session, cancel, clock_.Now(), effects_))
    EndSequence(sequence);
  auto it = jobs_.find(cancel.transfer);
  const bool has_job = it != jobs_.end() && it->second->session() == session;
  if (has_job && it->second->DropChoice(cancel.sequence)) StopJob(*it->second, nullptr);
  if (has_landing) LoadChanged();
  if (has_landing || has_job || cancel.sequence) return;
  const absl::Time until = clock_.Now() + setup_.limits.tombstone;
  if (!sessions_.at(session).tombstones.emplace(cancel.transfer, until).second) return;
  tombstones_.push_back({.session = session, .transfer = cancel.transfer, .until = until});
}

bool WorkerCore::IsTombstoned(SessionId session, const TransferId& transfer) const {
  const auto it = sessions_.find(session);
  return it != sessions_.end() && it->second.tombstones.contains(transfer);
}

void WorkerCore::ExpireTombstones(absl::Time now) {
  for (; !tombstones_.empty() && tombstones_.front().until <= now; tombstones_.pop_front()) {
    const Tombstone& oldest = tombstones_.front();
    const auto it = sessions_.find(oldest.session);
    if (it == sessions_.end()) continue;  // they went with it
    const auto tombstone = it->second.tombstones.find(oldest.transfer);
    const bool is_it =
        tombstone != it->second.tombstones.end() && tombstone->second == oldest.until;
    if (is_it) it->second.tombstones.erase(tombstone);
  }
}

void WorkerCore::Reserve(SessionId session, const wire::Reserve& reserve) {
  ++counters_.reserves;
  if (IsTombstoned(session, reserve.transfer))
    return;  // its Cancel overtook it: the router has forgotten it
  if (is_draining_) {
    effects_.Refuse(session,
                    MakeRefused(reserve.transfer, wire::Stage::kReserve, DrainingError(), {}));
    return;
  }
  if (loop_.num_parked() > 0) {  // they come back first (contracts.md 6)
    const absl::Status status = absl::ResourceExhaustedError(
        absl::StrFormat("%d parked sequences wait for pages", loop_.num_parked()));
    effects_.Refuse(session, MakeRefused(reserve.transfer, wire::Stage::kReserve, status,
                                         setup_.limits.retry_after));
    return;
  }
  landings_.Reserve(session, reserve, effects_);
  LogF(LogLevel::kDebug, "reserve_answered", "request=%s transfer=%s tokens=%d accepted=%d",
       reserve.request_id, reserve.transfer.Hex(), reserve.prompt_tokens,
       landings_.Find(reserve.transfer) != nullptr);
}

absl::Status WorkerCore::CheckRun(const wire::Run& run) const {
  if (is_draining_) return DrainingError();
  RETURN_IF_ERROR(worker::CheckRun(setup_, run, loop_.pool().Counts().total));
  if (jobs_.contains(run.transfer) || moves_.contains(run.transfer)) {
    return absl::UnavailableError(
        absl::StrFormat("an attempt of transfer %s is still open here", run.transfer.Hex()));
  }
  const int waiting = NumJobs(JobState::kAccepted);
  if (waiting >= setup_.limits.max_queued_prompts) {
    return absl::ResourceExhaustedError(absl::StrFormat("%d prompts wait, the limit is %d", waiting,
                                                        setup_.limits.max_queued_prompts));
  }
  int64_t tokens = run.prompt_tokens;
  for (const auto& [transfer, job] : jobs_) tokens += job->num_left();
  if (tokens > setup_.limits.max_queued_tokens) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%d prompt tokens would wait, the limit is %d", tokens, setup_.limits.max_queued_tokens));
  }
  return absl::OkStatus();
}

void WorkerCore::Run(SessionId session, const wire::Run& run) {
  ++counters_.runs;
  if (IsTombstoned(session, run.transfer)) return;
  absl::Status status = CheckRun(run);
  std::shared_ptr<engine::PendingMasks> masks;
  bool lacks_grammar_room = false;
  if (status.ok() && !run.masks.IsEmpty()) {
    auto started = setup_.masks->Start(run.masks, {{}});
    status = started.status();
    lacks_grammar_room = absl::IsResourceExhausted(status);
    if (started.ok()) masks = std::move(started->front());
  }
  const Landing* landing = landings_.Find(run.transfer);
  const bool is_local = run.landing.incarnation == setup_.incarnation;
  if (status.ok() && is_local && (landing == nullptr || !landings_.BeginLocalFill(run, effects_))) {
    status = absl::UnavailableError(absl::StrFormat(
        "no landing of transfer %s, attempt %d, is open here", run.transfer.Hex(), run.attempt));
  }
  if (!status.ok()) {
    wire::Refused refused =
        MakeRefused(run.transfer, wire::Stage::kRun, status, setup_.limits.retry_after);
    refused.lacks_grammar_room = lacks_grammar_room;
    effects_.Refuse(session, std::move(refused));
    return;
  }
  auto job = std::make_unique<PrefillJob>(setup_, session, run, is_local, clock_.Now());
  job->SetMasks(std::move(masks));
  if (is_local) {
    ++counters_.local_fills;
    job->AssignPrompt(landing->prompt.tokens(), clock_.Now());  // what has come so far
  }
  LogF(LogLevel::kDebug, "run_accepted", "request=%s transfer=%s attempt=%d tokens=%d local=%d",
       run.request_id, run.transfer.Hex(), run.attempt, run.prompt_tokens, is_local);
  jobs_.emplace(run.transfer, std::move(job));
  job_order_.push_back(run.transfer);
}

absl::Status WorkerCore::AddPrompt(SessionId session, const wire::PromptChunk& chunk) {
  RETURN_IF_ERROR(CheckTokens(setup_, "prompt_chunks.tokens", chunk.tokens));
  RETURN_IF_ERROR(landings_.AddPrompt(session, chunk, clock_.Now(), effects_));
  auto it = jobs_.find(chunk.transfer);
  if (it == jobs_.end() || it->second->session() != session) return absl::OkStatus();
  return it->second->AddPrompt(chunk, clock_.Now());
}

void WorkerCore::Drain() {
  if (std::exchange(is_draining_, true)) return;
  LoadChanged();
}

bool WorkerCore::IsIdle() const {
  return landings_.IsEmpty() && jobs_.empty() && moves_.empty() && commands_.empty();
}

void WorkerCore::LoadChanged() {
  for (auto& [id, session] : sessions_) session.next_load = clock_.Now();
}

wire::Load WorkerCore::MakeLoad() const {
  const engine::PoolCounts pool = loop_.pool().Counts();
  const engine::LoopCounters& counters = loop_.counters();
  wire::Load load{.free_pages = static_cast<uint32_t>(pool.free),
                  .booked_pages = static_cast<uint32_t>(pool.booked),
                  .leased_pages = static_cast<uint32_t>(pool.leased),
                  .cached_pages = static_cast<uint32_t>(pool.cached),
                  .quarantined_pages = static_cast<uint32_t>(pool.quarantined)};
  load.running =
      static_cast<uint32_t>(loop_.num_sequences()) - static_cast<uint32_t>(computing_.size());
  load.waiting = static_cast<uint32_t>(landings_.num_waiting() + NumJobs(JobState::kAccepted));
  for (const auto& [transfer, job] : jobs_)
    load.queued_prompt_tokens += static_cast<uint64_t>(job->num_left());
  load.prefill_tokens_per_s = static_cast<uint32_t>(std::min(counters.prefill_tokens_per_s, 4e9));
  load.last_step_us = static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Microseconds(counters.last_step), 0, UINT32_MAX));
  load.host_pages = static_cast<uint32_t>(loop_.host_pages());
  load.is_draining = is_draining_;
  return load;
}

void WorkerCore::SendLoads() {
  const absl::Time now = clock_.Now();
  if (now >= next_progress_) {
    next_progress_ = now + setup_.limits.load_every;
    for (const auto& [transfer, job] : jobs_) job->ReportProgress(effects_);
  }
  for (auto& [id, session] : sessions_) {
    // Pages that are about to return would be missed until the next load.
    if (now < session.next_load || loop_.IsKeepingPages()) continue;
    effects_.To(id).load = MakeLoad();
    session.next_load = now + setup_.limits.load_every;
  }
}

void WorkerCore::SendCacheEvents() {
  const absl::Time now = clock_.Now();
  if (now < next_delta_) return;
  next_delta_ = now + setup_.limits.load_every;
  for (const wire::CacheEvents& part : cache_.TakeDelta()) {
    for (const auto& [id, session] : sessions_) {
      wire::WorkerMessage message;
      message.cache_events.push_back(part);
      sender_.Send(id, std::move(message));
    }
  }
}

CoreGauges WorkerCore::Gauges() const {
  CoreGauges gauges;
  gauges.pool = loop_.pool().Counts();
  gauges.sessions = static_cast<int>(sessions_.size());
  gauges.landings_waiting = landings_.num_waiting();
  gauges.computing_prompts = static_cast<int>(computing_.size());
  gauges.running = loop_.num_sequences() - gauges.computing_prompts;
  gauges.queued_prompts = NumJobs(JobState::kAccepted);
  gauges.sending_prompts = NumJobs(JobState::kSending);
  for (const auto& [transfer, job] : jobs_) gauges.queued_tokens += job->num_left();
  gauges.tail_buffers_free = tails_.num_free();
  gauges.cached_pages = cache_.num_pages();
  gauges.cached_tails = cache_.num_tails();
  gauges.cached_tail_bytes = cache_.tail_bytes();
  gauges.cache_hits = cache_.hits();
  gauges.cache_misses = cache_.misses();
  gauges.pages_rotten = cache_.rotten();
  gauges.commands_waiting = commands_.size();
  return gauges;
}

}  // namespace baton::worker
