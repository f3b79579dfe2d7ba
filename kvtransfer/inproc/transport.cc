#include "kvtransfer/inproc/transport.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

constexpr size_t kMaxFrame = 1024;

void FlipOneBit(Rng& rng, std::span<std::byte> bytes) {
  if (bytes.empty()) return;
  bytes[rng.Below(bytes.size())] ^= static_cast<std::byte>(1u << rng.Below(8));
}

}  // namespace

InprocTransport::InprocTransport(InprocNetwork& network, uint64_t node, std::string address,
                                 Incarnation incarnation)
    : network_(network), node_(node), address_(std::move(address)), incarnation_(incarnation) {}

InprocTransport::~InprocTransport() { network_.Remove(node_, absl::ZeroDuration()); }

void InprocTransport::Put(absl::Time at, Item item) {
  inbox_.emplace(std::pair(at, network_.next_sequence_++), std::move(item));
}

absl::StatusOr<RegionId> InprocTransport::Register(std::span<std::byte> memory, MemoryKind) {
  if (memory.empty()) return absl::InvalidArgumentError("region of 0 bytes");
  regions_.push_back(memory);
  return RegionId{static_cast<uint32_t>(regions_.size() - 1)};
}

std::span<std::byte> InprocTransport::Bytes(const Place& place) const {
  CHECK(place.region.value < regions_.size());
  const std::span<std::byte> region = regions_[place.region.value];
  CHECK(place.offset <= region.size() && place.bytes <= region.size() - place.offset);
  return region.subspan(place.offset, place.bytes);
}

bool InprocTransport::IsKnown(PeerId peer) const { return peers_.contains(peer); }

InprocNetwork::Connection* InprocTransport::OpenConnection(PeerId peer, int& end) {
  const auto it = peers_.find(peer);
  if (it == peers_.end() || it->second.is_down || is_dead_) return nullptr;
  end = it->second.end;
  return &network_.connections_.at(it->second.connection);
}

PeerId InprocTransport::Connect(std::string_view address, Incarnation expected) {
  const PeerId peer{network_.next_id_++};
  const uint64_t id = network_.next_id_++;
  const auto target = network_.addresses_.find(std::string(address));
  peers_[peer] = {.connection = id, .end = 0};
  InprocNetwork::Connection& connection = network_.connections_[id];
  connection.node[0] = connection.node[1] = node_;
  connection.peer[0] = peer;
  if (target == network_.addresses_.end()) {
    const absl::Duration delay =
        network_.Between(network_.default_link_.min_delay, network_.default_link_.max_delay);
    Put(network_.clock_.Now() + delay,
        StateChange{peer, PeerState::kDown,
                    absl::UnavailableError(
                        absl::StrFormat("nothing listens at %s", std::string(address)))});
    return peer;
  }
  connection.node[1] = target->second;
  const absl::Time at = network_.clock_.Now() + network_.LinkOf(node_, target->second).max_delay;
  connection.last_arrival[1] = connection.hello_arrival = at;
  network_.Node(target->second)->Put(at, Hello{id, expected});
  return peer;
}

absl::Status InprocTransport::SendFrame(PeerId to, std::span<const std::byte> frame) {
  if (frame.size() > kMaxFrame)
    return absl::InvalidArgumentError(
        absl::StrFormat("frame of %d bytes, at most %d", frame.size(), kMaxFrame));
  int end = 0;
  InprocNetwork::Connection* connection = OpenConnection(to, end);
  if (connection == nullptr)
    return absl::UnavailableError(absl::StrFormat("peer %d is down", to.value));
  const LinkSettings& link = network_.LinkOf(connection->node[end], connection->node[1 - end]);
  InprocTransport* other = network_.Node(connection->node[1 - end]);
  if (other == nullptr || network_.Chance(link.drop)) return absl::OkStatus();
  const int copies = network_.Chance(link.duplicate) ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    other->Put(network_.ArrivalAt(*connection, end),
               FrameArrival{peers_.at(to).connection, 1 - end, {frame.begin(), frame.end()}});
  }
  return absl::OkStatus();
}

void InprocTransport::AnnounceOnce(uint64_t connection_id, int end, SendId send,
                                   std::pair<std::span<const std::byte>, Place> what) {
  InprocNetwork::Connection& connection = network_.connections_.at(connection_id);
  const LinkSettings& link = network_.LinkOf(connection.node[end], connection.node[1 - end]);
  const OfferId offer{network_.next_id_++};
  network_.offers_[offer] = {.connection = connection_id,
                             .to_end = 1 - end,
                             .source_node = node_,
                             .send = send,
                             .from = what.second};
  ++network_.offers_of_send_[send];
  std::vector<std::byte> announce(what.first.begin(), what.first.end());
  if (network_.Chance(link.corrupt_announce)) FlipOneBit(network_.rng_, announce);
  network_.Node(connection.node[1 - end])
      ->Put(network_.ArrivalAt(connection, end),
            OfferArrival{offer, std::move(announce), what.second.bytes});
}

SendId InprocTransport::Offer(PeerId to, std::span<const std::byte> announce, Place from) {
  CHECK(announce.size() <= kMaxFrame);
  Bytes(from);  // checks the range
  const SendId send{network_.next_id_++};
  sends_[send] = to;
  int end = 0;
  InprocNetwork::Connection* connection = OpenConnection(to, end);
  const bool is_reachable =
      connection != nullptr && network_.Node(connection->node[1 - end]) != nullptr;
  if (!is_reachable) {
    Put(network_.clock_.Now(), SendDone{send, absl::UnavailableError("peer is down")});
    return send;
  }
  const LinkSettings& link = network_.LinkOf(connection->node[end], connection->node[1 - end]);
  if (network_.Chance(link.drop)) {
    Put(network_.clock_.Now() + link.max_delay, SendDone{send, absl::OkStatus()});
    return send;
  }
  const int copies = network_.Chance(link.duplicate) ? 2 : 1;
  for (int i = 0; i < copies; ++i)
    AnnounceOnce(peers_.at(to).connection, end, send, {announce, from});
  return send;
}

ReceiveId InprocTransport::Pull(OfferId offer, Place to) {
  Bytes(to);  // checks the range
  const ReceiveId receive{network_.next_id_++};
  const auto it = network_.offers_.find(offer);
  if (it == network_.offers_.end()) {
    pulls_[receive] = {.to = to, .has_source = false};
    Put(network_.clock_.Now(), PullDone{receive});
    return receive;
  }
  const InprocNetwork::OfferRecord record = it->second;
  network_.offers_.erase(it);
  const InprocNetwork::Connection& connection = network_.connections_.at(record.connection);
  CHECK(connection.node[record.to_end] == node_);
  CHECK(to.bytes == record.from.bytes);
  pulls_[receive] = {.peer = connection.peer[record.to_end], .offer = record, .to = to};
  const LinkSettings& link = network_.LinkOf(record.source_node, node_);
  if (network_.Chance(link.stuck_pull)) return receive;
  absl::Duration delay = network_.Between(link.min_pull, link.max_pull);
  if (network_.Chance(link.late_pull)) delay += link.late_by;
  Put(network_.clock_.Now() + delay, PullDone{receive});
  return receive;
}

void InprocTransport::Refuse(OfferId offer, RefuseReason) {
  const auto it = network_.offers_.find(offer);
  if (it == network_.offers_.end()) return;
  const InprocNetwork::OfferRecord record = it->second;
  network_.offers_.erase(it);
  AnswerOffer(record, absl::CancelledError("refused"));
}

void InprocTransport::AnswerOffer(const InprocNetwork::OfferRecord& offer,
                                  const absl::Status& status) {
  const auto left = network_.offers_of_send_.find(offer.send);
  if (left == network_.offers_of_send_.end() || --left->second > 0) return;
  network_.offers_of_send_.erase(left);
  InprocTransport* source = network_.Node(offer.source_node);
  if (source == nullptr) return;
  const LinkSettings& link = network_.LinkOf(node_, offer.source_node);
  source->Put(network_.clock_.Now() + network_.Between(link.min_delay, link.max_delay),
              SendDone{offer.send, status});
}

void InprocTransport::Disconnect(PeerId peer) {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  const PeerRecord record = it->second;
  const absl::Time now = network_.clock_.Now();
  InprocNetwork::Connection& connection = network_.connections_.at(record.connection);
  const LinkSettings& link =
      network_.LinkOf(connection.node[record.end], connection.node[1 - record.end]);
  if (link.is_close_told && connection.node[1 - record.end] != node_)
    network_.TellDown(record.connection, 1 - record.end, now + link.max_delay,
                      absl::UnavailableError("peer closed the connection"));
  connection.is_open[record.end] = false;
  peers_.erase(it);
  for (const auto& [send, to] : sends_)
    if (to == peer) Put(now, SendDone{send, absl::CancelledError("disconnected")});
  for (auto& [receive, pull] : pulls_) {
    if (!pull.has_source || pull.peer != peer) continue;
    pull.is_closing = true;
    waiting_pulls_.erase(receive);
    Put(now + network_.Between(link.min_pull, link.max_pull), PullDone{receive});
  }
  std::erase_if(network_.offers_, [&](const auto& entry) {
    const bool is_ours =
        entry.second.connection == record.connection && entry.second.to_end == record.end;
    if (is_ours) AnswerOffer(entry.second, absl::UnavailableError("peer closed"));
    return is_ours;
  });
}

int InprocTransport::Progress(TransportEvents& events) {
  int delivered = 0;
  while (!is_dead_ && !is_stopped_ && !inbox_.empty()) {
    const auto first = inbox_.begin();
    if (first->first.first > network_.clock_.Now()) break;
    const Item item = std::move(first->second);
    inbox_.erase(first);
    std::visit([&](const auto& i) { Deliver(i, events); }, item);
    ++delivered;
  }
  return delivered;
}

void InprocTransport::Deliver(const Hello& item, TransportEvents& events) {
  InprocNetwork::Connection& connection = network_.connections_.at(item.connection);
  InprocTransport* other = network_.Node(connection.node[0]);
  if (other == nullptr || !connection.is_open[0]) return;
  const absl::Time at = network_.ArrivalAt(connection, 1);
  if (item.expected != incarnation_) {
    other->Put(at, StateChange{connection.peer[0], PeerState::kDown,
                               absl::FailedPreconditionError(absl::StrFormat(
                                   "%s is incarnation %016x, expected %016x", address_,
                                   incarnation_.value, item.expected.value))});
    return;
  }
  const PeerId peer{network_.next_id_++};
  connection.peer[1] = peer;
  connection.is_open[1] = true;
  peers_[peer] = {.connection = item.connection, .end = 1};
  other->Put(at, StateChange{connection.peer[0], PeerState::kUp, absl::OkStatus()});
  events.OnPeer(peer, PeerState::kUp, absl::OkStatus());
}

void InprocTransport::Deliver(const StateChange& item, TransportEvents& events) {
  const auto it = peers_.find(item.peer);
  if (it == peers_.end() || it->second.is_down) return;
  if (item.state == PeerState::kDown) it->second.is_down = true;
  events.OnPeer(item.peer, item.state, item.status);
}

void InprocTransport::Deliver(const FrameArrival& item, TransportEvents& events) {
  const PeerId peer = network_.connections_.at(item.connection).peer[item.end];
  if (IsKnown(peer)) events.OnFrame(peer, item.bytes);
}

void InprocTransport::Deliver(const OfferArrival& item, TransportEvents& events) {
  const auto offer = network_.offers_.find(item.offer);
  if (offer == network_.offers_.end()) return;
  const InprocNetwork::OfferRecord record = offer->second;
  const PeerId peer = network_.connections_.at(record.connection).peer[record.to_end];
  if (!IsKnown(peer)) {  // closed or never accepted here
    network_.offers_.erase(offer);
    AnswerOffer(record, absl::UnavailableError("peer closed"));
    return;
  }
  events.OnOffer(peer, item.offer, item.announce, item.bytes);
}

void InprocTransport::Deliver(const PullDone& item, TransportEvents& events) {
  const auto it = pulls_.find(item.receive);
  if (it == pulls_.end()) return;  // completed by Disconnect before it was due
  const OpenPull pull = it->second;
  const InprocTransport* source = pull.has_source ? network_.Node(pull.offer.source_node) : nullptr;
  const bool must_wait = source != nullptr && source->is_stopped_ && !pull.is_closing &&
                         network_.LinkOf(pull.offer.source_node, node_).is_pull_tied_to_source;
  if (must_wait) {
    waiting_pulls_.insert(item.receive);
    return;
  }
  const absl::Status status = Copy(pull);
  pulls_.erase(it);
  waiting_pulls_.erase(item.receive);
  if (pull.has_source) AnswerOffer(pull.offer, status);
  events.OnPulled(item.receive, status);
}

absl::Status InprocTransport::Copy(const OpenPull& pull) {
  if (!pull.has_source) return absl::UnavailableError("the offer is gone");
  const InprocTransport* source = network_.Node(pull.offer.source_node);
  if (source == nullptr) return absl::UnavailableError("the sender's process is gone");
  const std::span<std::byte> to = Bytes(pull.to);
  std::memcpy(to.data(), source->Bytes(pull.offer.from).data(), to.size());
  if (network_.Chance(network_.LinkOf(pull.offer.source_node, node_).corrupt_block))
    FlipOneBit(network_.rng_, to);
  // After a close either outcome is possible, and the bytes may be there all the same.
  if (pull.is_closing && network_.Chance(0.5)) return absl::UnavailableError("disconnected");
  return absl::OkStatus();
}

void InprocTransport::Deliver(const SendDone& item, TransportEvents& events) {
  if (sends_.erase(item.send) == 0) return;
  events.OnSent(item.send, item.status);
}

}  // namespace baton::kvtransfer
