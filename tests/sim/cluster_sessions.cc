// Sessions between the router and its workers: queues with delay; a session is lost as a whole.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "tests/sim/cluster.h"
#include "tests/sim/describe.h"

namespace baton::sim {
namespace {

constexpr absl::Duration kMinDelay = absl::Microseconds(100);
constexpr absl::Duration kMaxDelay = absl::Milliseconds(3);
constexpr absl::Duration kReconnect = absl::Milliseconds(200);
constexpr absl::Duration kBeat = absl::Milliseconds(500);

}  // namespace

absl::Duration Cluster::Delay() {
  return kMinDelay + (kMaxDelay - kMinDelay) * session_rng_.Uniform();
}

Cluster::Place* Cluster::FindSession(SessionId session) {
  for (const std::unique_ptr<Place>& place : places_)
    if (place->session == session) return place.get();
  return nullptr;
}

void Cluster::Send(SessionId session, wire::WorkerMessage message) {
  Place* place = FindSession(session);
  if (place == nullptr || place->worker == nullptr) return;
  if (trace_) TraceMessage(place->address + " says", Describe(message));
  const absl::Time at = std::max(place->last_to_router, place->worker->LocalNow() + Delay());
  place->last_to_router = at;
  queue_.At(at, [this, place, session, said = std::move(message)]() mutable {
    if (place->session != session || !place->is_router_up) return;
    Feed(router::WorkerSaid{
        .worker = place->id, .message = std::move(said), .received_at = clock_.Now()});
  });
}

void Cluster::Close(SessionId session, const absl::Status& status) {
  Report(absl::StrFormat("session %d: the worker calls it a protocol violation: %s", session.value,
                         status.message()));
}

void Cluster::SendToWorker(Place& place, wire::RouterMessage message) {
  if (!place.is_router_up) return;
  if (trace_) TraceMessage(place.address + " is told", Describe(message));
  const absl::Time at = std::max(place.last_to_worker, clock_.Now() + Delay());
  place.last_to_worker = at;
  queue_.At(at, [this, &place, session = place.session, said = std::move(message)]() mutable {
    if (place.session == session)
      Deliver(place, worker::SessionMessage{.session = session, .message = std::move(said)});
  });
}

void Cluster::Deliver(Place& place, worker::SessionEvent event) {
  if (place.worker == nullptr) return;
  if (place.is_stopped) {
    place.held.push_back(std::move(event));
  } else {
    place.worker->Apply(std::move(event));
  }
}

void Cluster::Connect(Place& place) {
  if (place.session.value != 0) return;
  if (place.worker == nullptr || place.is_stopped) {
    queue_.At(clock_.Now() + kReconnect, [this, &place] { Connect(place); });
    return;
  }
  place.session = {next_session_++};
  place.is_lost = false;
  const absl::Time opened = clock_.Now() + Delay();
  place.last_to_worker = place.last_to_router = opened;
  queue_.At(opened, [this, &place, session = place.session] {
    if (place.session != session || place.worker == nullptr) return;
    wire::RouterHello hello;
    hello.router_id = "router";
    place.is_router_up = true;
    Feed(router::WorkerUp{.worker = place.id, .hello = place.worker->Hello()});
    Deliver(place, worker::SessionOpened{.session = session, .hello = hello});
    Beat(place, session, 1);
  });
}

void Cluster::Beat(Place& place, SessionId session, uint64_t number) {
  if (place.session != session || place.worker == nullptr) return;
  if (!place.is_stopped) {
    wire::WorkerMessage message;
    message.beat = place.worker->MakeBeat();
    message.beat->number = number;
    Send(session, std::move(message));
  }
  queue_.At(clock_.Now() + kBeat,
            [this, &place, session, number] { Beat(place, session, number + 1); });
}

void Cluster::EndSession(Place& place, absl::Duration router_delay, absl::Duration worker_delay,
                         const std::string& why) {
  const SessionId session = place.session;
  if (session.value == 0) return;
  NoteLoss(place);
  place.is_lost = true;
  queue_.At(clock_.Now() + router_delay, [this, &place, session, why] {
    if (place.session != session) return;
    place.session = {};
    if (std::exchange(place.is_router_up, false)) {
      Trace(absl::StrFormat("router loses %s: %s", place.address, why));
      const uint64_t recovered = NumMovesRecovered();
      Feed(router::WorkerDown{.worker = place.id, .status = absl::UnavailableError(why)});
      if (why == kDrained && NumMovesRecovered() > recovered)
        Report(absl::StrFormat("%s left under a sequence that it was handing on", place.address));
    }
    queue_.At(clock_.Now() + kReconnect, [this, &place] { Connect(place); });
  });
  SimWorker* worker = place.worker.get();
  queue_.At(clock_.Now() + worker_delay, [this, &place, session, why, worker] {
    if (place.worker.get() == worker)
      Deliver(place,
              worker::SessionClosed{.session = session, .status = absl::UnavailableError(why)});
  });
}

}  // namespace baton::sim
