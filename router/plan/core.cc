#include "router/plan/core.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::router {

RouterCore::RouterCore(const PlanConfig& config, Rng& rng)
    : config_(config), rng_(rng), admission_(config_) {}

void RouterCore::On(CoreEvent event, absl::Time now, std::vector<CoreAction>& out) {
  now_ = now;
  received_at_ = now;
  out_ = &out;
  std::visit([this](auto& item) { OnEvent(item); }, event);
  // Twice at most: a request that ends while others are placed may leave room.
  for (int i = 0; i < 2 && should_schedule_; ++i) Schedule();
  ended_.clear();
  out_ = nullptr;
}

void RouterCore::OnEvent(RequestArrived& event) {
  CHECK(event.key.value > 0 && !requests_.contains(event.key));
  CHECK(event.request.prompt != nullptr && event.request.num_choices > 0);
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.key = event.key;
  request.spec = std::move(event.request);
  request.choices.resize(static_cast<size_t>(request.spec.num_choices));
  request.clock.Start(request.spec.arrival, request.spec.parse_time, now_);
  request.step_since = request.queued_since = now_;
  request.queue_order = next_order_++;
  requests_.emplace(event.key, std::move(owned));
  ++facts_.requests;
  facts_.prompt_tokens += request.prompt_tokens();
  if (request.prompt_tokens() == 0)
    return End(request, absl::InvalidArgumentError("the prompt has 0 tokens, at least 1"));
  if (request.Deadline() <= now_)
    return End(request, absl::ResourceExhaustedError("the deadline passed before the queue"));
  if (const absl::Status admitted = admission_.Admit(request); !admitted.ok())
    return End(request, admitted);
  Emit(request, RequestAccepted{});
  admission_.Push(request);
  if (uncovered_since_ != absl::InfiniteFuture()) ArmCore(now_ + config_.no_worker_grace);
  Arm(request);
  should_schedule_ = true;
}

void RouterCore::OnEvent(ClientGone& event) {
  if (Request* request = FindRequest(event.key))
    End(*request, absl::CancelledError(absl::StrFormat("cancelled: %s", event.reason)));
}

void RouterCore::OnEvent(CancelChoice& event) {
  Request* request = FindRequest(event.key);
  if (request == nullptr || event.choice < 0 || event.choice >= request->spec.num_choices) return;
  Choice& choice = request->choices[static_cast<size_t>(event.choice)];
  if (choice.IsOver()) return;
  choice.is_cancelled = true;
  if (request->AllChoicesOver()) return End(*request, absl::OkStatus());
  if (!request->placement) return;
  Placement& placement = *request->placement;
  const auto at = std::find(placement.choices.begin(), placement.choices.end(), event.choice);
  if (at == placement.choices.end()) return;
  WorkerRecord* decode = workers_.Find(placement.decode);
  const auto index = static_cast<uint32_t>(at - placement.choices.begin());
  decode->sequences.erase(placement.handles[index]);
  Tell(placement, placement.decode,
       wire::Cancel{.transfer = placement.transfer, .sequence = index, .reason = event.reason});
}

void RouterCore::OnEvent(TimerFired& event) {
  if (event.timer.value == 0) return OnCoreTimer();
  Request* request = FindRequest(RequestKey{event.timer.value});
  if (request == nullptr || now_ < request->armed_at) return;
  request->armed_at = absl::InfiniteFuture();
  CheckTimers(*request);
  if (request->step != Step::kEnded) Arm(*request);
}

void RouterCore::OnCoreTimer() {
  core_timers_.erase(core_timers_.begin(), core_timers_.upper_bound(now_));
  should_schedule_ = true;  // a backoff is over, or a class is given up
  EndUncovered();
  MoveFromWedged();
}

void RouterCore::EndUncovered() {
  if (uncovered_since_ == absl::InfiniteFuture()) return;
  std::vector<Request*> waiting(admission_.queue().begin(), admission_.queue().end());
  for (const auto& [key, request] : waiting_landings_) waiting.push_back(request);
  absl::Time next = absl::InfiniteFuture();
  for (Request* request : waiting) {
    if (request->has_token) continue;  // bounded by its recovery
    const absl::Time due =
        std::max(request->queued_since, uncovered_since_) + config_.no_worker_grace;
    if (due <= now_)
      End(*request, absl::UnavailableError(
                        absl::StrFormat("no prefill and decode worker is ready (waited %s)",
                                        absl::FormatDuration(now_ - request->queued_since))));
    else
      next = std::min(next, due);
  }
  if (next != absl::InfiniteFuture()) ArmCore(next);
}

// A wedged decode worker beats but does not step: its requests go on elsewhere if they can.
void RouterCore::MoveFromWedged() {
  const auto is_other = [](const WorkerRecord& other) {
    return other.IsReady() && other.hello.serves_decode;
  };
  for (auto& [id, worker] : workers_.all()) {
    if (!worker.is_up || !worker.IsWedged()) continue;
    if (now_ < worker.wedged_since + config_.max_wedged) continue;
    ArmCore(now_ + config_.max_wedged);
    const auto& all = workers_.all();
    if (std::none_of(all.begin(), all.end(),
                     [&](const auto& entry) { return is_other(entry.second); }))
      continue;
    for (auto it = requests_.begin(); it != requests_.end();) {
      Request& request = *(it++)->second;
      if (request.placement && request.placement->decode == id)
        LosePlacement(request, false, absl::UnavailableError("the decode worker makes no step"));
    }
  }
}

void RouterCore::CheckTimers(Request& request) {
  if (now_ >= request.Deadline()) {
    const bool is_queued = request.step == Step::kQueued && !request.has_token;
    const std::string text =
        absl::StrFormat("the deadline passed while %s", RequestStateName(request.State()));
    return End(request,
               is_queued ? absl::ResourceExhaustedError(text) : absl::DeadlineExceededError(text));
  }
  if (request.is_recovering && now_ >= request.lost_at + config_.recovery_wait)
    return End(request, absl::DeadlineExceededError(
                            absl::StrFormat("no next token within %s of a worker's loss",
                                            absl::FormatDuration(config_.recovery_wait))));
  if (now_ < request.Due(config_)) return;
  const absl::Status silent = absl::UnavailableError(
      absl::StrFormat("no progress while %s", RequestStateName(request.State())));
  switch (request.step) {
    case Step::kBooking:
    case Step::kRetarget:
      request.avoid.push_back(request.placement->decode);
      return LosePlacement(request, true, silent);
    case Step::kPrefilling:
      return BlameLink(request, silent);
    case Step::kDecoding:
      if (!request.AllChoicesOver()) return CheckParked(request);
      return LosePlacement(request, false,
                           absl::UnavailableError("the report on the prompt does not come"));
    case Step::kMoving:
      if (request.moving->stage == Moving::Stage::kBooking)
        request.avoid.push_back(request.moving->target.decode);
      else  // it did not stop, or did not send
        request.avoid.push_back(request.placement->decode);
      return LosePlacement(request, true, silent);
    case Step::kQueued:
    case Step::kEnded:
      return;
  }
}

void RouterCore::CheckParked(Request& request) {
  const WorkerId decode = request.placement->decode;
  const auto& all = workers_.all();
  const bool has_other = std::any_of(all.begin(), all.end(), [&](const auto& entry) {
    const WorkerRecord& other = entry.second;
    return other.id != decode && other.IsReady() && other.hello.serves_decode &&
           other.AsDecodeCandidate().free_pages >= PagesFor(request);
  });
  if (has_other) {
    request.avoid.push_back(decode);
    return LosePlacement(request, false, absl::UnavailableError("parked too long"));
  }
  for (Choice& choice : request.choices)  // look again later
    if (choice.parked_since != absl::InfiniteFuture()) choice.parked_since = now_;
}

void RouterCore::FinishChoice(Request& request, int choice, FinishReason reason,
                              int32_t stop_token) {
  Choice& state = request.choices[static_cast<size_t>(choice)];
  if (state.IsOver()) return;
  state.is_finished = true;
  Emit(request, ChoiceFinished{.choice = choice, .reason = reason, .stop_token = stop_token});
}

void RouterCore::End(Request& request, const absl::Status& status) {
  if (request.step == Step::kEnded) return;
  if (request.moving) ++facts_.moves.ended;
  DropPlacement(request, status.ok() ? "done" : std::string(status.message()));
  admission_.Remove(request);
  admission_.Release(request);
  request.step = Step::kEnded;
  CountEnd(request, status);
  RequestEnded ended{.status = status,
                     .retry_after = absl::ZeroDuration(),
                     .cached_tokens = request.cached_tokens,
                     .times = request.clock.times};
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status))
    ended.retry_after = admission_.RetryAfter(PoolPrefillRate());
  Emit(request, std::move(ended));
  const auto it = requests_.find(request.key);
  ended_.push_back(std::move(it->second));
  requests_.erase(it);
  should_schedule_ = true;
}

void RouterCore::CountEnd(const Request& request, const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      ++facts_.outcomes.ok;
      break;
    case absl::StatusCode::kCancelled:
      ++facts_.outcomes.cancelled;
      break;
    case absl::StatusCode::kResourceExhausted:
      ++facts_.outcomes.rejected;
      break;
    case absl::StatusCode::kUnavailable:
      ++facts_.outcomes.no_worker;
      break;
    case absl::StatusCode::kDeadlineExceeded:
      ++facts_.outcomes.deadline;
      break;
    default:
      ++facts_.outcomes.failed;
  }
  if (!request.has_token) return;
  const StageTimes& times = request.clock.times;
  StageHistograms& stages = facts_.stages;
  stages.parse.Observe(times.parse);
  stages.queue.Observe(times.queue);
  stages.booking.Observe(times.booking);
  stages.prefill_queue.Observe(times.prefill_queue);
  stages.prefill.Observe(times.prefill);
  stages.emit.Observe(times.emit);
  stages.first_token.Observe(times.parse + times.queue + times.booking + times.prefill_queue +
                             times.prefill + times.emit);
  if (!request.clock.has_second) return;
  stages.transfer.Observe(times.transfer);
  stages.decode_queue.Observe(times.decode_queue);
  stages.first_step.Observe(times.first_step);
  stages.second_token.Observe(times.transfer + times.decode_queue + times.first_step);
}

void RouterCore::Arm(Request& request) {
  const absl::Time due = request.Due(config_);
  if (due >= request.armed_at) return;
  request.armed_at = due;
  out_->push_back(SetTimer{.timer = TimerId{request.key.value}, .at = due});
}

void RouterCore::ArmCore(absl::Time at) {
  if (core_timers_.insert(at).second) out_->push_back(SetTimer{.timer = TimerId{0}, .at = at});
}

void RouterCore::Emit(const Request& request, RequestEvent event) {
  out_->push_back(EmitToRequest{.request = request.key, .event = std::move(event)});
}

void RouterCore::EnterStep(Request& request, Step step) {
  request.step = step;
  request.step_since = now_;
  Arm(request);
}

double RouterCore::PoolPrefillRate() const {
  double dedicated = 0;
  double mixed = 0;
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.IsReady() || !worker.hello.serves_prefill) continue;
    (worker.IsPrefillOnly() ? dedicated : mixed) += worker.PrefillRate(config_);
  }
  if (dedicated > 0) return dedicated;
  return mixed > 0 ? mixed : config_.assumed_prefill_tokens_per_s;
}

Request* RouterCore::FindRequest(RequestKey key) {
  const auto it = requests_.find(key);
  return it == requests_.end() ? nullptr : it->second.get();
}

std::optional<RequestState> RouterCore::StateOf(RequestKey key) const {
  const auto it = requests_.find(key);
  if (it == requests_.end()) return std::nullopt;
  return it->second->State();
}

RouterFacts RouterCore::Facts(absl::Time now) const {
  RouterFacts facts = facts_;
  facts.queued_requests = admission_.queue().size();
  facts.queued_tokens = admission_.queued_tokens();
  facts.live_requests = requests_.size();
  facts.live_bytes = admission_.live_bytes();
  if (decode_blocked_since_ != absl::InfiniteFuture())
    facts.decode_queue_seconds = absl::ToDoubleSeconds(now - decode_blocked_since_);
  uint64_t open_tokens = admission_.queued_tokens();
  uint64_t pages = 0;
  uint64_t free_pages = 0;
  for (const auto& [id, worker] : workers_.all()) {
    open_tokens += worker.open_tokens;
    if (!worker.IsReady() || !worker.hello.serves_decode || !worker.load) continue;
    pages += worker.hello.pages;
    free_pages += worker.load->free_pages + worker.load->cached_pages;
    facts.decode_step_us = std::max(facts.decode_step_us, worker.load->last_step_us);
  }
  facts.prefill_queue_seconds = static_cast<double>(open_tokens) / PoolPrefillRate();
  if (pages > 0)
    facts.decode_page_use =
        1.0 - static_cast<double>(std::min(free_pages, pages)) / static_cast<double>(pages);
  return facts;
}

ClusterView RouterCore::View(absl::Time now) const {
  ClusterView view;
  view.in_flight = static_cast<int>(requests_.size());
  view.queued = static_cast<int>(admission_.queue().size());
  workers_.FillView(now, config_, view);
  return view;
}

}  // namespace baton::router
