#include "tests/sim/cluster.h"

#include <algorithm>
#include <cstdio>
#include <utility>
#include <variant>

#include "absl/strings/str_format.h"

namespace baton::sim {
namespace {

constexpr absl::Duration kQuietLimit =
    absl::Seconds(20);  // after the last end; wedged receives take 10 s
constexpr absl::Duration kTimeLimit = absl::Seconds(900);
constexpr uint64_t kRoundLimit = 20'000'000;
constexpr size_t kMaxViolations = 5;

router::PlanConfig MakePlan(const WorkersSpec& workers) {
  router::PlanConfig plan;
  plan.chunk_tokens = static_cast<uint32_t>(workers.chunk_tokens);
  plan.max_prefills_per_worker = static_cast<uint32_t>(workers.max_computing_prompts);
  plan.assumed_prefill_tokens_per_s = 20'000;
  return plan;
}

}  // namespace

std::string SimResult::Summary() const {
  std::string text = absl::StrFormat(
      "tokens=%d rounds=%d virtual_s=%.1f kills=%d stops=%d lost_sessions=%d drains=%d parked=%d "
      "replayed=%d moved=%d digest_failures=%d cache_hits=%d retargets=%d ends=",
      tokens, rounds, absl::ToDoubleSeconds(virtual_time), kills, stops, lost_sessions, drains,
      parked, replayed_tokens, moved, digest_failures, cache_hits, retargets);
  for (const auto& [code, count] : ends)
    text += absl::StrFormat("%s:%d ", absl::StatusCodeToString(code), count);
  return text;
}

Cluster::Cluster(const Scenario& scenario, uint64_t seed, bool trace)
    : scenario_(scenario),
      trace_(trace),
      network_rng_(Mix(seed, 1)),
      core_rng_(Mix(seed, 2)),
      session_rng_(Mix(seed, 3)),
      fault_rng_(Mix(seed, 4)),
      worker_rng_(Mix(seed, 5)),
      network_(clock_, network_rng_),
      clients_(scenario, Mix(seed, 6)),
      core_(MakePlan(scenario.workers), core_rng_) {
  network_.SetDefaultLink(scenario.faults.link);
}

Cluster::~Cluster() = default;

SimResult Cluster::Run() {
  AddPlaces();
  StartLoad();
  ScheduleFaults();
  while (result_.violations.empty() && !IsOver()) {
    Advance();
    CheckWorkers();
  }
  return Result();
}

void Cluster::Trace(const std::string& what) const {
  if (trace_)
    std::fprintf(stderr, "%10.6f %s\n", absl::ToDoubleSeconds(clock_.Now() - absl::UnixEpoch()),
                 what.c_str());
}

void Cluster::TraceMessage(const std::string& who, const std::string& items) const {
  if (!items.empty()) Trace(who + items);
}

void Cluster::Report(const std::string& what) {
  if (what.empty() || result_.violations.size() >= kMaxViolations) return;
  result_.violations.push_back(absl::StrFormat(
      "at %.6f s: %s", absl::ToDoubleSeconds(clock_.Now() - absl::UnixEpoch()), what));
}

void Cluster::StartLoad() {
  for (const SimRequest& request : clients_.requests()) {
    queue_.At(request.spec.arrival, [this, &request] {
      Trace(absl::StrFormat("request %d arrives: prompt %d max_tokens %d n %d", request.key.value,
                            request.spec.prompt->size(), request.spec.finish.max_tokens,
                            request.spec.num_choices));
      Feed(router::RequestArrived{.key = request.key, .request = request.spec});
    });
    if (request.gone_at) {
      queue_.At(*request.gone_at, [this, &request] {
        if (clients_.HasEnded(request.key)) return;
        Trace(absl::StrFormat("request %d: client gone", request.key.value));
        clients_.NoteGone(request.key);
        Feed(router::ClientGone{.key = request.key, .reason = "client gone"});
      });
    }
    if (request.choice_cancelled_at) {
      queue_.At(*request.choice_cancelled_at, [this, &request] {
        if (clients_.HasEnded(request.key)) return;
        Trace(absl::StrFormat("request %d: choice %d cancelled", request.key.value,
                              request.cancelled_choice));
        clients_.NoteChoiceCancelled(request.key, request.cancelled_choice);
        Feed(router::CancelChoice{
            .key = request.key, .choice = request.cancelled_choice, .reason = "stop string"});
      });
    }
  }
}

void Cluster::Feed(router::CoreEvent event) {
  core_.On(std::move(event), clock_.Now(), actions_);
  Execute();
}

void Cluster::Execute() {
  const std::vector<router::CoreAction> actions = std::exchange(actions_, {});
  for (const router::CoreAction& action : actions) {
    if (const auto* send = std::get_if<router::SendToWorker>(&action)) {
      const auto* run = std::get_if<wire::Run>(&send->piece);
      if (run != nullptr && run->attempt > 1) ++result_.retargets;
      NoteTold(*send);
      outbox_.Add(*send);
    } else if (const auto* emit = std::get_if<router::EmitToRequest>(&action)) {
      Report(clients_.On(emit->request, emit->event));
      if (const auto* end = std::get_if<router::RequestEnded>(&emit->event))
        Trace(absl::StrFormat("request %d ends: %s", emit->request.value, end->status.ToString()));
    } else {
      const auto& timer = std::get<router::SetTimer>(action);
      queue_.At(std::max(timer.at, clock_.Now()),
                [this, id = timer.timer] { Feed(router::TimerFired{id}); });
    }
  }
  for (auto& [worker, message] : outbox_.Take()) {
    for (const std::unique_ptr<Place>& place : places_)
      if (place->id == worker) SendToWorker(*place, std::move(message));
  }
}

void Cluster::NoteTold(const router::SendToWorker& send) {
  const TransferId transfer =
      std::visit([](const auto& piece) { return piece.transfer; }, send.piece);
  std::set<TransferId>& told = told_[send.worker];
  if (const auto* cancel = std::get_if<wire::Cancel>(&send.piece)) {
    if (!cancel->sequence) told.erase(transfer);
    return;
  }
  const auto* reserve = std::get_if<wire::Reserve>(&send.piece);
  if (reserve != nullptr) transfers_[transfer] = clients_.KeyOf(reserve->request_id);
  const bool is_new = told.insert(transfer).second;
  for (const std::unique_ptr<Place>& place : places_) {
    if (is_new && place->id == send.worker && (place->is_lost || place->is_stopped))
      clients_.NoteFault(transfers_.at(transfer));
  }
}

void Cluster::NoteLoss(const Place& place) {
  NoteFault(place);
  told_.erase(place.id);
}

void Cluster::NoteFault(const Place& place) {
  for (const TransferId& transfer : told_[place.id]) clients_.NoteFault(transfers_.at(transfer));
}

// Moves time to the next thing that happens, and lets everything due at that time happen.
void Cluster::Advance() {
  absl::Time next = std::min(queue_.Next(), network_.NextEventTime());
  for (const std::unique_ptr<Place>& place : places_) {
    if (place->worker == nullptr || place->is_stopped) continue;
    next = std::min({next, place->worker->NextRound(), place->worker->NextAgentTimer()});
  }
  if (next == absl::InfiniteFuture()) return Report("nothing will ever happen again");
  clock_.Set(std::max(clock_.Now(), next));
  const bool is_network_due = network_.NextEventTime() <= clock_.Now();
  while (queue_.Next() <= clock_.Now()) queue_.RunFirst();
  RunWorkers(is_network_due);
  if (clients_.num_ended() == clients_.requests().size())
    ended_at_ = std::min(ended_at_, clock_.Now());
}

void Cluster::RunWorkers(bool is_network_due) {
  for (const std::unique_ptr<Place>& place : places_) {
    if (place->worker == nullptr || place->is_stopped) continue;
    SimWorker& worker = *place->worker;
    if (is_network_due || worker.NextAgentTimer() <= clock_.Now()) worker.RunAgent();
    if (worker.NextRound() > clock_.Now()) continue;
    ++result_.rounds;
    worker.RunRound();
  }
}

void Cluster::CheckWorkers() {
  for (const std::unique_ptr<Place>& place : places_) {
    if (place->worker == nullptr) continue;
    const std::string violation = place->worker->FindViolation();
    if (!violation.empty()) Report(absl::StrFormat("%s: %s", place->address, violation));
  }
}

bool Cluster::IsQuiet() const {
  if (core_.num_live() > 0 || core_.num_open_transfers() > 0) return false;
  return std::all_of(places_.begin(), places_.end(), [](const std::unique_ptr<Place>& place) {
    return !place->is_stopped && (place->worker == nullptr || place->worker->IsQuiet());
  });
}

bool Cluster::IsOver() {
  const absl::Time now = clock_.Now();
  if (now > absl::UnixEpoch() + kTimeLimit || result_.rounds > kRoundLimit) {
    Report(absl::StrFormat("the run does not end; open requests:%s", clients_.DescribeOpen()));
    return true;
  }
  if (ended_at_ > now) return false;
  if (IsQuiet()) return true;
  if (now < ended_at_ + kQuietLimit) return false;
  std::string held = absl::StrFormat("not quiet: router has %d requests and %d transfers",
                                     core_.num_live(), core_.num_open_transfers());
  for (const std::unique_ptr<Place>& place : places_)
    if (place->worker != nullptr && !place->worker->IsQuiet())
      held += "; " + place->worker->DescribeHeld();
  Report(held);
  return true;
}

SimResult Cluster::Result() const {
  SimResult result = result_;
  result.ends = clients_.ends();
  result.tokens = clients_.num_tokens();
  result.moved = core_.Facts(clock_.Now()).moves.moved;
  result.virtual_time = clock_.Now() - absl::UnixEpoch();
  for (const std::unique_ptr<Place>& place : places_) {
    if (place->worker == nullptr) continue;
    result.parked += place->worker->core().counters().parked;
    result.replayed_tokens += place->worker->loop_counters().replayed_tokens;
    result.digest_failures += place->worker->transfer_metrics().digest_failures;
    result.cache_hits += place->worker->core().Gauges().cache_hits;
  }
  return result;
}

}  // namespace baton::sim
