#include "kvtransfer/inproc/network.h"

#include <algorithm>

#include "common/check.h"
#include "kvtransfer/inproc/transport.h"

namespace baton::kvtransfer {

std::unique_ptr<InprocTransport> InprocNetwork::Create(const std::string& address,
                                                       Incarnation incarnation) {
  CHECK(!addresses_.contains(address));
  const uint64_t id = next_id_++;
  // The constructor is private: only a network makes transports.
  std::unique_ptr<InprocTransport> transport(new InprocTransport(*this, id, address, incarnation));
  addresses_[address] = id;
  nodes_[id] = transport.get();
  names_[id] = address;
  return transport;
}

InprocTransport* InprocNetwork::Node(uint64_t id) const {
  const auto it = nodes_.find(id);
  return it == nodes_.end() ? nullptr : it->second;
}

const LinkSettings& InprocNetwork::LinkOf(uint64_t from_node, uint64_t to_node) const {
  const auto it = links_.find({names_.at(from_node), names_.at(to_node)});
  return it == links_.end() ? default_link_ : it->second;
}

absl::Duration InprocNetwork::Between(absl::Duration low, absl::Duration high) {
  return low + (high - low) * rng_.Uniform();
}

absl::Time InprocNetwork::ArrivalAt(Connection& connection, int from_end) {
  const int to_end = 1 - from_end;
  const LinkSettings& link = LinkOf(connection.node[from_end], connection.node[to_end]);
  const absl::Time at = clock_.Now() + Between(link.min_delay, link.max_delay);
  if (Chance(link.reorder))
    return std::max(at + 2 * Between(link.min_delay, link.max_delay), connection.hello_arrival);
  connection.last_arrival[to_end] = std::max(connection.last_arrival[to_end], at);
  return connection.last_arrival[to_end];
}

void InprocNetwork::Stop(const std::string& address) {
  if (InprocTransport* node = Node(addresses_.at(address))) node->is_stopped_ = true;
}

void InprocNetwork::Continue(const std::string& address) {
  InprocTransport* node = Node(addresses_.at(address));
  if (node == nullptr) return;
  node->is_stopped_ = false;
  for (const auto& [id, other] : nodes_) {
    std::erase_if(other->waiting_pulls_, [&, reader = other](ReceiveId receive) {
      if (reader->pulls_.at(receive).offer.source_node != node->node_) return false;
      reader->Put(clock_.Now() + Between(default_link_.min_pull, default_link_.max_pull),
                  InprocTransport::PullDone{receive});
      return true;
    });
  }
}

void InprocNetwork::TellDown(uint64_t connection, int end, absl::Time at,
                             const absl::Status& status) {
  const Connection& c = connections_.at(connection);
  InprocTransport* node = Node(c.node[end]);
  if (node == nullptr || !c.is_open[end]) return;
  node->Put(at, InprocTransport::StateChange{c.peer[end], PeerState::kDown, status});
}

void InprocNetwork::Kill(const std::string& address, absl::Duration notice) {
  Remove(addresses_.at(address), notice);
}

void InprocNetwork::Remove(uint64_t node, absl::Duration notice) {
  InprocTransport* dead = Node(node);
  if (dead == nullptr) return;
  dead->is_dead_ = true;
  dead->inbox_.clear();
  nodes_.erase(node);
  addresses_.erase(names_.at(node));
  const absl::Time at = clock_.Now() + notice;
  for (auto& [id, connection] : connections_) {
    for (int end = 0; end < 2; ++end) {
      if (connection.node[end] != node) continue;
      connection.is_open[end] = false;
      TellDown(id, 1 - end, at, absl::UnavailableError("peer process is gone"));
    }
  }
  for (const auto& [id, other] : nodes_) {
    std::erase_if(other->waiting_pulls_, [&, reader = other](ReceiveId receive) {
      if (reader->pulls_.at(receive).offer.source_node != node) return false;
      reader->Put(at, InprocTransport::PullDone{receive});
      return true;
    });
  }
}

absl::Time InprocNetwork::NextEventTime() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, node] : nodes_)
    if (!node->is_stopped_ && !node->inbox_.empty())
      next = std::min(next, node->inbox_.begin()->first.first);
  return next;
}

}  // namespace baton::kvtransfer
