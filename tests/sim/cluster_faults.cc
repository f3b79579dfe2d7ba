// What dies, stops, leaves and comes back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "tests/sim/cluster.h"

namespace baton::sim {
namespace {

constexpr absl::Duration kSilence = absl::Seconds(2);  // contracts.md 4.5
constexpr absl::Duration kDrainCheck = absl::Milliseconds(1);
constexpr absl::Duration kRetryFault = absl::Milliseconds(400);

}  // namespace

void Cluster::AddPlaces() {
  const WorkersSpec& spec = scenario_.workers;
  const auto add = [this](const std::string& kind, int count, bool prefill, bool decode) {
    for (int i = 0; i < count; ++i) {
      auto place = std::make_unique<Place>();
      place->id = {static_cast<uint32_t>(places_.size() + 1)};
      place->address = absl::StrFormat("%s%d", kind, i);
      place->serves_prefill = prefill;
      place->serves_decode = decode;
      places_.push_back(std::move(place));
    }
  };
  add("prefill", spec.prefill, true, false);
  add("decode", spec.decode, false, true);
  add("mixed", spec.mixed, true, true);
  for (const std::unique_ptr<Place>& place : places_) {
    Feed(router::WorkerAdded{.worker = place->id, .address = place->address});
    StartWorker(*place);
    Connect(*place);
  }
}

void Cluster::StartWorker(Place& place) {
  const WorkersSpec& spec = scenario_.workers;
  const SimWorkerOptions options{
      .name = place.address,
      .incarnation = {next_incarnation_++},
      .serves_prefill = place.serves_prefill,
      .serves_decode = place.serves_decode,
      .pages = place.serves_decode ? spec.decode_pages : spec.prefill_pages,
      .seed = worker_rng_.Next()};
  worker::SessionSender& sender = *this;
  place.worker = std::make_unique<SimWorker>(options, spec, network_, clock_, sender);
  place.is_stopped = place.is_draining = false;
  Trace(absl::StrFormat("%s starts, incarnation %d", place.address, options.incarnation.value));
}

void Cluster::ScheduleFaults() {
  const FaultsSpec& faults = scenario_.faults;
  const absl::Duration span = scenario_.load.over + absl::Seconds(1);
  const auto schedule = [&](int count, const std::function<void()>& fault) {
    for (int i = 0; i < count; ++i)
      queue_.At(absl::UnixEpoch() + span * fault_rng_.Uniform(), fault);
  };
  schedule(faults.kill_prefill, [this] { Kill(Role::kPrefill); });
  schedule(faults.kill_decode, [this] { Kill(Role::kDecode); });
  schedule(faults.stop_worker, [this] { StopWorker(); });
  schedule(faults.lose_session, [this] { LoseSession(); });
  schedule(faults.drain_worker, [this] { DrainWorker(); });
  schedule(faults.spoil_pages, [this] { SpoilPage(); });
}

// A random living worker of the role, unless it is the last one that serves what it serves.
Cluster::Place* Cluster::PickVictim(Role role) {
  const auto is_well = [](const Place& place) {
    return place.worker != nullptr && !place.is_stopped && !place.is_draining && place.is_router_up;
  };
  int prefills = 0, decodes = 0;
  for (const std::unique_ptr<Place>& place : places_) {
    prefills += is_well(*place) && place->serves_prefill;
    decodes += is_well(*place) && place->serves_decode;
  }
  std::vector<Place*> candidates;
  for (const std::unique_ptr<Place>& place : places_) {
    const bool fits = role == Role::kAny || (role == Role::kPrefill && place->serves_prefill) ||
                      (role == Role::kDecode && place->serves_decode);
    const bool is_last =
        (place->serves_prefill && prefills < 2) || (place->serves_decode && decodes < 2);
    if (fits && !is_last && is_well(*place)) candidates.push_back(place.get());
  }
  return candidates.empty() ? nullptr : candidates[fault_rng_.Below(candidates.size())];
}

void Cluster::Kill(Role role) {
  Place* victim = PickVictim(role);
  if (victim == nullptr) {
    queue_.At(clock_.Now() + kRetryFault, [this, role] { Kill(role); });
    return;
  }
  const FaultsSpec& faults = scenario_.faults;
  KillPlace(*victim,
            faults.min_restart + (faults.max_restart - faults.min_restart) * fault_rng_.Uniform());
}

void Cluster::KillPlace(Place& place, absl::Duration restart) {
  ++result_.kills;
  Trace(absl::StrFormat("%s is killed", place.address));
  // A reset is seen at once; a host that vanished only by its silence.
  const absl::Duration notice = fault_rng_.Below(2) == 0 ? absl::Milliseconds(5) : kSilence;
  EndSession(place, notice, absl::ZeroDuration(), "killed");
  EndWorker(place, restart);
}

void Cluster::EndWorker(Place& place, absl::Duration restart) {
  network_.Kill(place.address);
  place.worker.reset();
  place.held.clear();
  place.is_stopped = false;
  queue_.At(clock_.Now() + restart, [this, &place] { StartWorker(place); });
}

void Cluster::StopWorker() {
  Place* victim = PickVictim(Role::kAny);
  if (victim == nullptr) {
    queue_.At(clock_.Now() + kRetryFault, [this] { StopWorker(); });
    return;
  }
  ++result_.stops;
  Trace(absl::StrFormat("%s stops", victim->address));
  victim->is_stopped = true;
  network_.Stop(victim->address);
  const FaultsSpec& faults = scenario_.faults;
  const absl::Duration pause =
      faults.min_stop + (faults.max_stop - faults.min_stop) * fault_rng_.Uniform();
  if (pause > kSilence)
    EndSession(*victim, kSilence, kSilence, "silent");
  else
    NoteFault(*victim);
  queue_.At(clock_.Now() + pause, [this, victim] { ContinueWorker(*victim); });
}

void Cluster::ContinueWorker(Place& place) {
  Trace(absl::StrFormat("%s continues", place.address));
  place.is_stopped = false;
  network_.Continue(place.address);
  while (!place.held.empty()) {
    place.worker->Apply(std::move(place.held.front()));
    place.held.pop_front();
  }
}

void Cluster::LoseSession() {
  Place* victim = PickVictim(Role::kAny);
  if (victim == nullptr) {
    queue_.At(clock_.Now() + kRetryFault, [this] { LoseSession(); });
    return;
  }
  ++result_.lost_sessions;
  const absl::Duration router_delay = absl::Milliseconds(1 + fault_rng_.Below(50));
  EndSession(*victim, router_delay, absl::Milliseconds(fault_rng_.Below(200)), "stream broken");
}

void Cluster::DrainWorker() {
  Place* victim = PickVictim(Role::kAny);
  if (victim == nullptr) {
    queue_.At(clock_.Now() + kRetryFault, [this] { DrainWorker(); });
    return;
  }
  ++result_.drains;
  Trace(absl::StrFormat("%s drains", victim->address));
  victim->is_draining = true;
  victim->worker->Drain();
  WatchDrain(*victim);
}

void Cluster::SpoilPage() {
  Place* victim = PickVictim(Role::kDecode);
  if (victim != nullptr && victim->worker->SpoilPage(fault_rng_)) return;
  queue_.At(clock_.Now() + kRetryFault, [this] { SpoilPage(); });
}

// A drained worker ends when nothing of it is open, and comes back as a new process. Its session
// ends behind all it has said.
void Cluster::WatchDrain(Place& place) {
  if (place.worker == nullptr || !place.is_draining) return;
  if (!place.worker->IsQuiet()) {
    queue_.At(clock_.Now() + kDrainCheck, [this, &place] { WatchDrain(place); });
    return;
  }
  Trace(absl::StrFormat("%s has drained", place.address));
  const absl::Time told = std::max(place.last_to_router, clock_.Now() + Delay());
  EndSession(place, told - clock_.Now(), absl::ZeroDuration(), kDrained);
  EndWorker(place, scenario_.faults.min_restart);
}

}  // namespace baton::sim
