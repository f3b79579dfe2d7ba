#include "kvtransfer/peer_table.h"

namespace baton::kvtransfer {

PeerId PeerTable::Connect(const std::string& address, Incarnation incarnation, absl::Time now) {
  const auto key = std::pair(address, incarnation.value);
  if (const auto it = outgoing_.find(key); it != outgoing_.end()) return it->second;
  const PeerId id = transport_.Connect(address, incarnation);
  outgoing_[key] = id;
  Peer& peer = peers_[id];
  peer.is_outgoing = true;
  peer.address = address;
  peer.incarnation = incarnation;
  peer.last_heard = peer.last_active = now;
  return id;
}

bool PeerTable::Accept(PeerId id, absl::Time now) {
  if (peers_.contains(id)) return true;
  if (peers_.size() >= limits_.max_peers) {
    to_disconnect_.push_back(id);
    return false;
  }
  Peer& peer = peers_[id];
  peer.last_heard = peer.last_active = now;
  return true;
}

void PeerTable::Heard(PeerId id, absl::Time now) {
  if (const auto it = peers_.find(id); it != peers_.end()) it->second.last_heard = now;
}

void PeerTable::Heard(PeerId id, Incarnation incarnation, absl::Time now) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  it->second.last_heard = now;
  if (it->second.incarnation.value == 0) it->second.incarnation = incarnation;
}

void PeerTable::Send(PeerId id, const FrameBytes& frame) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  std::deque<FrameBytes>& unsent = it->second.unsent;
  if (unsent.empty()) {
    const absl::Status status = transport_.SendFrame(id, frame.view());
    if (status.code() != absl::StatusCode::kResourceExhausted) return;
  }
  if (unsent.size() >= limits_.max_queued_frames) {
    ++metrics_.frames_dropped;
    return;
  }
  unsent.push_back(frame);
  ++num_unsent_;
}

void PeerTable::Answer(PeerId id, const PingBody& ping) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  const FrameHead head{.sender = own_, .receiver = it->second.incarnation};
  Send(id, EncodeFrame({head, PongBody{.nonce = ping.nonce, .micros = ping.micros}}));
}

void PeerTable::Flush() {
  if (num_unsent_ == 0) return;
  for (auto& [id, peer] : peers_) {
    while (!peer.unsent.empty()) {
      const absl::Status status = transport_.SendFrame(id, peer.unsent.front().view());
      if (status.code() == absl::StatusCode::kResourceExhausted) break;
      peer.unsent.pop_front();
      --num_unsent_;
    }
  }
}

void PeerTable::Beat(PeerId id, Peer& peer, absl::Time now) {
  if (peer.incarnation.value == 0 || now - peer.last_ping < limits_.beat) return;
  peer.last_ping = now;
  const FrameHead head{.sender = own_, .receiver = peer.incarnation};
  Send(id, EncodeFrame({head, PingBody{.nonce = next_nonce_++,
                                       .micros = static_cast<uint64_t>(absl::ToUnixMicros(now))}}));
}

std::vector<PeerId> PeerTable::Tick(const std::set<PeerId>& active, absl::Time now) {
  std::vector<PeerId> silent, unused;
  for (auto& [id, peer] : peers_) {
    if (!active.contains(id)) {
      peer.was_active = false;
      if (peer.is_outgoing && now - peer.last_active >= limits_.idle_close) unused.push_back(id);
      continue;
    }
    // An idle peer had no reason to speak: its silence counts from now.
    if (!peer.was_active) peer.last_heard = now;
    peer.was_active = true;
    peer.last_active = now;
    if (now - peer.last_heard >= limits_.silence) {
      silent.push_back(id);
    } else {
      Beat(id, peer, now);
    }
  }
  for (const PeerId id : unused) Drop(id);
  return silent;
}

void PeerTable::Drop(PeerId id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  if (it->second.is_outgoing) outgoing_.erase({it->second.address, it->second.incarnation.value});
  num_unsent_ -= it->second.unsent.size();
  peers_.erase(it);
  to_disconnect_.push_back(id);
}

int PeerTable::RunDisconnects() {
  const int count = static_cast<int>(to_disconnect_.size());
  for (const PeerId id : to_disconnect_) transport_.Disconnect(id);
  to_disconnect_.clear();
  return count;
}

}  // namespace baton::kvtransfer
