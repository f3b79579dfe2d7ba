#include "kvtransfer/staged/staged_transport.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

constexpr size_t kMaxAnnounce = 1024;

}  // namespace

absl::StatusOr<std::unique_ptr<StagedTransport>> StagedTransport::Create(Transport& inner,
                                                                         BlockCopier& copier,
                                                                         const StagingArea& area) {
  if (absl::Status status = area.Validate(); !status.ok()) return status;
  const auto staging = inner.Register(area.memory, MemoryKind::kPinnedHost);
  if (!staging.ok()) return staging.status();
  // The constructor is private: it cannot fail, Register can.
  return std::unique_ptr<StagedTransport>(new StagedTransport(inner, copier, area, *staging));
}

StagedTransport::StagedTransport(Transport& inner, BlockCopier& copier, const StagingArea& area,
                                 RegionId staging)
    : inner_(inner),
      copier_(copier),
      area_(area),
      staging_(staging),
      offer_slots_(0, area.slot_bytes, area.num_offer_slots),
      pull_slots_(area.num_offer_slots * area.slot_bytes, area.slot_bytes, area.num_pull_slots) {}

absl::StatusOr<RegionId> StagedTransport::Register(std::span<std::byte> memory, MemoryKind kind) {
  if (memory.empty()) return absl::InvalidArgumentError("region of 0 bytes");
  Region region{.memory = memory, .inner = std::nullopt};
  if (kind != MemoryKind::kDevice) {
    const auto inner = inner_.Register(memory, kind);
    if (!inner.ok()) return inner.status();
    region.inner = *inner;
  }
  regions_.push_back(region);
  return RegionId{static_cast<uint32_t>(regions_.size() - 1)};
}

const StagedTransport::Region& StagedTransport::RegionOf(const Place& place) const {
  CHECK(place.region.value < regions_.size());
  const Region& region = regions_[place.region.value];
  const uint64_t size = region.memory.size();
  CHECK(place.offset <= size && place.bytes <= size - place.offset);
  return region;
}

absl::Status StagedTransport::CheckFits(const char* what, uint64_t bytes) const {
  if (bytes <= area_.slot_bytes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("%s of a block of %d bytes of device memory: a staging slot holds %d", what,
                      bytes, area_.slot_bytes));
}

PeerId StagedTransport::Connect(std::string_view address, Incarnation expected) {
  const PeerId peer = inner_.Connect(address, expected);
  peers_.try_emplace(peer);
  return peer;
}

// --- offers

SendId StagedTransport::Offer(PeerId to, std::span<const std::byte> announce, Place from) {
  CHECK(announce.size() <= kMaxAnnounce);
  const bool is_device = !RegionOf(from).inner.has_value();
  const SendId send{next_id_++};
  const auto peer = peers_.find(to);
  absl::Status status = is_device ? CheckFits("offer", from.bytes) : absl::OkStatus();
  if (peer == peers_.end() || peer->second.is_down)
    status = absl::UnavailableError(absl::StrFormat("peer %d is down", to.value));
  if (!status.ok()) {
    done_.push_back(SendDone{send, std::move(status)});
    return send;
  }
  OpenOffer& offer = offers_[send];
  offer = {.to = to, .announce = {announce.begin(), announce.end()}, .from = from};
  peer->second.unannounced.push_back(send);
  if (is_device) {
    offer.step = OfferStep::kWaiting;
    waiting_offers_.push_back(send);
    StartOffers();
    if (offer.step == OfferStep::kWaiting) ++stats_.offers_waited;
  } else {
    Announce(to, peer->second);
  }
  UpdateGauges();
  return send;
}

void StagedTransport::StartOffers() {
  while (!waiting_offers_.empty() && offer_slots_.HasFree()) {
    const SendId send = waiting_offers_.front();
    waiting_offers_.pop_front();
    OpenOffer& offer = offers_.at(send);
    offer.slot = offer_slots_.Take();
    offer.step = OfferStep::kCopying;
    const std::span<std::byte> from =
        RegionOf(offer.from).memory.subspan(offer.from.offset, offer.from.bytes);
    const CopyJob job{next_id_++};
    copies_.emplace(job, send);
    copier_.Begin(job, Slot(*offer.slot, from.size()).data(), from.data(), from.size());
  }
}

void StagedTransport::Copied(SendId send, const absl::Status& status) {
  OpenOffer& offer = offers_.at(send);
  if (offer.is_closed) {
    EndOffer(send, absl::CancelledError("disconnected"));
    return;
  }
  const PeerId to = offer.to;
  Peer& peer = peers_.at(to);
  if (status.ok()) {
    stats_.bytes_to_host += offer.from.bytes;
    offer.step = OfferStep::kReady;
  } else {
    std::erase(peer.unannounced, send);
    EndOffer(send, absl::DataLossError(absl::StrFormat("copy of %d bytes to staging memory: %s",
                                                       offer.from.bytes, status.ToString())));
  }
  Announce(to, peer);
}

void StagedTransport::Announce(PeerId id, Peer& peer) {
  while (!peer.unannounced.empty()) {
    const SendId send = peer.unannounced.front();
    OpenOffer& offer = offers_.at(send);
    if (offer.step != OfferStep::kReady) return;
    peer.unannounced.pop_front();
    offer.step = OfferStep::kOffered;
    Place from = offer.from;
    if (offer.slot) {
      from = {.region = staging_, .offset = *offer.slot, .bytes = offer.from.bytes};
    } else {
      from.region = *RegionOf(offer.from).inner;
    }
    const std::vector<std::byte> announce = std::exchange(offer.announce, {});
    inner_sends_.emplace(inner_.Offer(id, announce, from), send);
  }
}

void StagedTransport::OnSent(SendId inner, const absl::Status& status) {
  const auto it = inner_sends_.find(inner);
  CHECK(it != inner_sends_.end());
  const SendId send = it->second;
  inner_sends_.erase(it);
  EndOffer(send, status);
  StartOffers();
}

void StagedTransport::EndOffer(SendId send, const absl::Status& status) {
  const auto it = offers_.find(send);
  CHECK(it != offers_.end());
  if (it->second.slot) offer_slots_.Return(*it->second.slot);
  offers_.erase(it);
  done_.push_back(SendDone{send, status});
}

void StagedTransport::CloseOffer(SendId send) {
  OpenOffer& offer = offers_.at(send);
  if (offer.step == OfferStep::kCopying) {
    offer.is_closed = true;
    return;
  }
  if (offer.step == OfferStep::kWaiting) std::erase(waiting_offers_, send);
  EndOffer(send, absl::CancelledError("disconnected"));
}

// --- pulls

void StagedTransport::OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
                              uint64_t bytes) {
  offered_[offer] = from;
  events_->OnOffer(from, offer, announce, bytes);
}

void StagedTransport::Refuse(OfferId offer, RefuseReason reason) {
  // An offer that was pulled is answered, though its pull may still wait here.
  if (offered_.erase(offer) > 0) inner_.Refuse(offer, reason);
}

ReceiveId StagedTransport::Pull(OfferId offer, Place to) {
  const Region& region = RegionOf(to);
  const ReceiveId receive{next_id_++};
  const auto it = offered_.find(offer);
  if (it == offered_.end()) {
    done_.push_back(PullDone{receive, absl::UnavailableError("the offer's peer is gone")});
    return receive;
  }
  const PeerId from = it->second;
  offered_.erase(it);
  if (IsDown(from)) {
    done_.push_back(PullDone{receive, absl::UnavailableError("the offer's peer is down")});
    return receive;
  }
  if (region.inner) {
    pulls_.emplace(receive, OpenPull{.from = from, .offer = offer, .to = to});
    inner_pulls_.emplace(inner_.Pull(offer, {*region.inner, to.offset, to.bytes}), receive);
    return receive;
  }
  if (absl::Status status = CheckFits("pull", to.bytes); !status.ok()) {
    inner_.Refuse(offer, RefuseReason::kLayout);
    done_.push_back(PullDone{receive, std::move(status)});
    return receive;
  }
  pulls_.emplace(receive, OpenPull{.from = from, .offer = offer, .to = to});
  waiting_pulls_.push_back(receive);
  StartPulls();
  if (!pulls_.at(receive).slot) ++stats_.pulls_waited;
  UpdateGauges();
  return receive;
}

void StagedTransport::StartPulls() {
  while (!waiting_pulls_.empty() && pull_slots_.HasFree()) {
    const ReceiveId receive = waiting_pulls_.front();
    waiting_pulls_.pop_front();
    OpenPull& pull = pulls_.at(receive);
    pull.slot = pull_slots_.Take();
    inner_pulls_.emplace(inner_.Pull(pull.offer, {staging_, *pull.slot, pull.to.bytes}), receive);
  }
}

void StagedTransport::OnPulled(ReceiveId inner, const absl::Status& status) {
  const auto it = inner_pulls_.find(inner);
  CHECK(it != inner_pulls_.end());
  const ReceiveId receive = it->second;
  inner_pulls_.erase(it);
  const OpenPull& pull = pulls_.at(receive);
  if (!status.ok() || !pull.slot) {
    EndPull(receive, status);
    StartPulls();
    return;
  }
  const Place& to = pull.to;
  const CopyJob job{next_id_++};
  copies_.emplace(job, receive);
  copier_.Begin(job, RegionOf(to).memory.subspan(to.offset, to.bytes).data(),
                Slot(*pull.slot, to.bytes).data(), to.bytes);
}

void StagedTransport::Copied(ReceiveId receive, const absl::Status& status) {
  const uint64_t bytes = pulls_.at(receive).to.bytes;
  if (status.ok()) {
    stats_.bytes_to_device += bytes;
    EndPull(receive, status);
    return;
  }
  EndPull(receive, absl::DataLossError(absl::StrFormat("copy of %d bytes to device memory: %s",
                                                       bytes, status.ToString())));
}

void StagedTransport::EndPull(ReceiveId receive, const absl::Status& status) {
  const auto it = pulls_.find(receive);
  CHECK(it != pulls_.end());
  if (it->second.slot) pull_slots_.Return(*it->second.slot);
  pulls_.erase(it);
  done_.push_back(PullDone{receive, status});
}

// --- peers and frames

void StagedTransport::OnFrame(PeerId from, std::span<const std::byte> frame) {
  events_->OnFrame(from, frame);
}

void StagedTransport::OnPeer(PeerId id, PeerState state, const absl::Status& status) {
  Peer& peer = peers_[id];
  if (state == PeerState::kDown) {
    peer.is_down = true;
    EndWaitingPulls(id, absl::UnavailableError("the offer's peer is down"));
  }
  events_->OnPeer(id, state, status);
}

void StagedTransport::EndWaitingPulls(PeerId from, const absl::Status& status) {
  std::erase_if(waiting_pulls_, [&](ReceiveId receive) {
    if (pulls_.at(receive).from != from) return false;
    EndPull(receive, status);
    return true;
  });
}

void StagedTransport::Disconnect(PeerId id) {
  inner_.Disconnect(id);
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  const std::deque<SendId> unannounced = std::move(it->second.unannounced);
  peers_.erase(it);
  for (const SendId send : unannounced) CloseOffer(send);
  std::erase_if(offered_, [&](const auto& entry) { return entry.second == id; });
  EndWaitingPulls(id, absl::CancelledError("disconnected"));
  StartOffers();
  UpdateGauges();
}

// --- progress

int StagedTransport::Progress(TransportEvents& events) {
  events_ = &events;
  // Copies first: what the inner transport is asked for here, it sees before it says 0.
  int happened = PollCopies();
  happened += inner_.Progress(*this);
  happened += DeliverDone();
  events_ = nullptr;
  UpdateGauges();
  return happened;
}

int StagedTransport::PollCopies() {
  std::vector<CopyDone> done;
  copier_.Poll(done);
  for (const CopyDone& d : done) {
    const auto it = copies_.find(d.job);
    CHECK(it != copies_.end());
    const auto owner = it->second;
    copies_.erase(it);
    if (!d.status.ok()) ++stats_.copy_failures;
    std::visit([&](auto id) { Copied(id, d.status); }, owner);
  }
  if (!done.empty()) {
    StartOffers();
    StartPulls();
  }
  return static_cast<int>(done.size());
}

int StagedTransport::DeliverDone() {
  // Callbacks may complete more at once: those are the next call's.
  const size_t count = done_.size();
  for (size_t i = 0; i < count; ++i) {
    const auto item = std::move(done_.front());
    done_.pop_front();
    if (const auto* send = std::get_if<SendDone>(&item)) {
      events_->OnSent(send->send, send->status);
    } else {
      const auto& pull = std::get<PullDone>(item);
      events_->OnPulled(pull.receive, pull.status);
    }
  }
  return static_cast<int>(count);
}

bool StagedTransport::MustPoll() const {
  return inner_.MustPoll() || !copies_.empty() || !done_.empty();
}

void StagedTransport::UpdateGauges() {
  stats_.offer_slots_in_use = static_cast<int64_t>(offer_slots_.NumInUse());
  stats_.pull_slots_in_use = static_cast<int64_t>(pull_slots_.NumInUse());
  stats_.offers_waiting = static_cast<int64_t>(waiting_offers_.size());
  stats_.pulls_waiting = static_cast<int64_t>(waiting_pulls_.size());
}

}  // namespace baton::kvtransfer
