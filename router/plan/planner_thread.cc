#include "router/plan/planner_thread.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace baton::router {

PlannerThread::PlannerThread(const PlanConfig& plan, const PlannerThreadConfig& config,
                             const Clock& clock, Rng& rng, WorkerLinks& links)
    : plan_(plan),
      config_(config),
      clock_(clock),
      links_(links),
      core_(plan_, rng),
      queue_(config.max_inputs),
      view_(std::make_shared<const ClusterView>()),
      published_facts_(std::make_shared<const RouterFacts>()) {}

PlannerThread::~PlannerThread() { Stop(); }

void PlannerThread::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void PlannerThread::Stop() {
  queue_.Close();
  if (thread_.joinable()) thread_.join();
  EndAll();
}

void PlannerThread::Loop() {
  while (!queue_.IsClosed()) RunOnce(config_.idle_wait);
  while (RunOnce(absl::ZeroDuration()) > 0) {
  }
}

// Clients hear of the end; workers of the sessions' end, which cancels what was booked.
void PlannerThread::EndAll() {
  std::vector<RequestKey> keys;
  for (const auto& [key, client] : clients_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  for (const RequestKey key : keys) {
    RequestEnded ended{.status = absl::UnavailableError("the router is stopping"),
                       .retry_after = plan_.min_retry_after,
                       .cached_tokens = 0,
                       .times = {}};
    std::vector<RequestEvent> events;
    events.push_back(std::move(ended));
    clients_[key].sink(std::move(events));
  }
  clients_.clear();
}

RequestKey PlannerThread::Submit(GenerateRequest request, RequestSink sink) {
  const RequestKey key{next_key_.fetch_add(1)};
  Input input = SubmitInput{.key = key, .request = std::move(request), .sink = std::move(sink)};
  // Three quarters are for requests, so that a flood of them costs no session its events.
  const bool has_room = queue_.Size() < config_.max_inputs / 4 * 3 + 1;
  if (has_room && queue_.TryPush(std::move(input))) return key;
  const absl::Status status = queue_.IsClosed()
                                  ? absl::UnavailableError("the router is stopping")
                                  : absl::ResourceExhaustedError(absl::StrFormat(
                                        "the planner is behind: %d inputs wait, at most %d",
                                        queue_.Size(), config_.max_inputs));
  std::vector<RequestEvent> events;
  events.push_back(RequestEnded{
      .status = status, .retry_after = plan_.min_retry_after, .cached_tokens = 0, .times = {}});
  std::get<SubmitInput>(input).sink(std::move(events));
  return key;
}

void PlannerThread::Cancel(RequestKey request, std::optional<int> choice,
                           const std::string& reason) {
  CoreInput input{.event = ClientGone{.key = request, .reason = reason}};
  if (choice) input.event = CancelChoice{.key = request, .choice = *choice, .reason = reason};
  Input value = std::move(input);
  if (!queue_.TryPush(std::move(value))) PushUrgent(std::move(value));
}

void PlannerThread::Control(OperatorCommand command) {
  Input input = OperatorInput{.command = std::move(command)};
  if (!queue_.TryPush(std::move(input))) PushUrgent(std::move(input));
}

void PlannerThread::Obey(const DropCaches&) {
  wire::RouterMessage message;
  message.drops_cache = true;
  for (uint32_t id = 1; id < next_worker_.load(); ++id) links_.Send(WorkerId{id}, message);
}

void PlannerThread::Obey(const AbortRequests& command) {
  std::vector<RequestKey> keys;
  for (const auto& [key, client] : clients_)
    if (command.request_id.empty() || client.request_id == command.request_id) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  for (const RequestKey key : keys)
    Feed(ClientGone{.key = key, .reason = "aborted by an operator"});
}

WorkerId PlannerThread::AddWorker(const std::string& address) {
  const WorkerId worker{next_worker_.fetch_add(1)};
  Input input = CoreInput{.event = WorkerAdded{.worker = worker, .address = address}};
  if (!queue_.TryPush(std::move(input))) PushUrgent(std::move(input));
  return worker;
}

void PlannerThread::OnWorkerEvent(WorkerId worker, WorkerEvent event) {
  CoreInput input;
  if (auto* up = std::get_if<SessionUp>(&event))
    input.event = WorkerUp{
        .worker = worker, .hello = std::move(up->hello), .address = std::move(up->address)};
  if (auto* down = std::get_if<SessionDown>(&event))
    input.event = WorkerDown{.worker = worker, .status = std::move(down->status)};
  if (auto* message = std::get_if<wire::WorkerMessage>(&event))
    input.event =
        WorkerSaid{.worker = worker, .message = std::move(*message), .received_at = clock_.Now()};
  Input value = std::move(input);
  if (!queue_.TryPush(std::move(value))) PushUrgent(SessionLost{.worker = worker});
}

void PlannerThread::PushUrgent(Input input) {
  if (queue_.IsClosed()) return;
  MutexLock lock(mutex_);
  const auto* lost = std::get_if<SessionLost>(&input);
  for (const Input& other : urgent_) {
    const auto* same = std::get_if<SessionLost>(&other);
    if (lost != nullptr && same != nullptr && same->worker == lost->worker) return;
  }
  urgent_.push_back(std::move(input));
}

void PlannerThread::TakeUrgent(std::vector<Input>& out) {
  MutexLock lock(mutex_);
  for (Input& input : urgent_) out.push_back(std::move(input));
  urgent_.clear();
}

std::shared_ptr<const ClusterView> PlannerThread::View() const {
  MutexLock lock(mutex_);
  return view_;
}

std::shared_ptr<const RouterFacts> PlannerThread::Facts() const {
  MutexLock lock(mutex_);
  return published_facts_;
}

absl::Duration PlannerThread::WaitFor(absl::Duration max_wait) const {
  if (timers_.empty()) return max_wait;
  const absl::Duration until = timers_.begin()->first - clock_.Now();
  return std::clamp(until, absl::ZeroDuration(), max_wait);
}

size_t PlannerThread::RunOnce(absl::Duration max_wait) {
  // What did not fit is newer than what did: the queue is emptied before it, in as many turns as
  // that takes, so that a request comes before its cancel and a session's events before its loss.
  std::vector<Input> urgent;
  TakeUrgent(urgent);
  const size_t max_items = urgent.empty() ? config_.max_batch : config_.max_inputs;
  inputs_.clear();
  queue_.Drain(inputs_, max_items, urgent.empty() ? WaitFor(max_wait) : absl::ZeroDuration());
  for (Input& input : urgent) inputs_.push_back(std::move(input));
  const size_t count = inputs_.size();
  for (Input& input : inputs_) Apply(input);
  inputs_.clear();
  FireTimers();
  Execute();
  Publish();
  return count;
}

void PlannerThread::Apply(Input& input) {
  if (auto* submit = std::get_if<SubmitInput>(&input)) {
    clients_[submit->key] = {
        .request_id = submit->request.request_id, .sink = std::move(submit->sink), .events = {}};
    return Feed(RequestArrived{.key = submit->key, .request = std::move(submit->request)});
  }
  if (auto* event = std::get_if<CoreInput>(&input)) return Feed(std::move(event->event));
  if (auto* operators = std::get_if<OperatorInput>(&input))
    return std::visit([this](const auto& command) { Obey(command); }, operators->command);
  const WorkerId worker = std::get<SessionLost>(input).worker;
  const absl::Status status = absl::ResourceExhaustedError(
      absl::StrFormat("the planner's queue of %d inputs was full: events of the session are lost",
                      config_.max_inputs));
  Feed(WorkerDown{.worker = worker, .status = status});
  links_.Close(worker, status);
}

void PlannerThread::Feed(CoreEvent event) { core_.On(std::move(event), clock_.Now(), actions_); }

void PlannerThread::FireTimers() {
  const absl::Time now = clock_.Now();
  size_t seen = 0;  // actions whose timers are set; what a timer sets may be due at once
  for (;;) {
    for (; seen < actions_.size(); ++seen)
      if (const auto* set = std::get_if<SetTimer>(&actions_[seen]))
        timers_.emplace(set->at, set->timer);
    if (timers_.empty() || timers_.begin()->first > now) return;
    const TimerId timer = timers_.begin()->second;
    timers_.erase(timers_.begin());
    Feed(TimerFired{.timer = timer});
  }
}

void PlannerThread::Execute() {
  for (CoreAction& action : actions_) {
    if (auto* send = std::get_if<SendToWorker>(&action)) outbox_.Add(std::move(*send));
    auto* emit = std::get_if<EmitToRequest>(&action);
    if (emit == nullptr) continue;
    Client& client = clients_.at(emit->request);
    if (client.events.empty()) touched_.push_back(emit->request);
    client.events.push_back(std::move(emit->event));
  }
  actions_.clear();
  for (auto& [worker, message] : outbox_.Take()) links_.Send(worker, std::move(message));
  for (const RequestKey key : touched_) {
    const auto it = clients_.find(key);
    const bool has_ended = std::holds_alternative<RequestEnded>(it->second.events.back());
    it->second.sink(std::move(it->second.events));
    it->second.events.clear();
    if (has_ended) clients_.erase(it);
  }
  touched_.clear();
}

void PlannerThread::Publish() {
  const absl::Time now = clock_.Now();
  const bool is_new = core_.view_version() != published_version_;
  if (!is_new && now - published_at_ < plan_.view_interval) return;
  published_at_ = now;
  published_version_ = core_.view_version();
  auto view = std::make_shared<const ClusterView>(core_.View(now));
  auto facts = std::make_shared<const RouterFacts>(core_.Facts(now));
  MutexLock lock(mutex_);
  view_ = std::move(view);
  published_facts_ = std::move(facts);
}

}  // namespace baton::router
