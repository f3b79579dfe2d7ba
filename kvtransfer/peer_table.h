#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "common/ids.h"
#include "kvtransfer/frame.h"
#include "kvtransfer/limits.h"
#include "kvtransfer/metrics.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

// The agent's connections: one outgoing per address and incarnation, and whoever connected to us.
// Keeps the beats (contracts.md 4.5), what could not be sent yet, and closes what is lost or
// unused. Transfer thread.
class PeerTable {
 public:
  PeerTable(Incarnation own, const TransferLimits& limits, Transport& transport,
            TransferMetrics& metrics)
      : own_(own), limits_(limits), transport_(transport), metrics_(metrics) {}

  // The connection to that process, new or in use.
  PeerId Connect(const std::string& address, Incarnation incarnation, absl::Time now);
  // Somebody connected to us; false: too many peers, and the transport is told to disconnect it.
  bool Accept(PeerId peer, absl::Time now);
  bool Contains(PeerId peer) const { return peers_.contains(peer); }
  // Anything from the peer proves it alive; `incarnation` is what its frames say.
  void Heard(PeerId peer, Incarnation incarnation, absl::Time now);
  void Heard(PeerId peer, absl::Time now);

  // Sends now or later, in order. A peer whose queue is full or that is gone loses the frame.
  void Send(PeerId peer, const FrameBytes& frame);
  void Answer(PeerId peer, const PingBody& ping);
  void Flush();

  // Pings the active peers and returns those that are silent too long; closes unused outgoing
  // connections.
  std::vector<PeerId> Tick(const std::set<PeerId>& active, absl::Time now);
  // Forgets the peer; the transport is told in RunDisconnects, outside its callbacks.
  void Drop(PeerId peer);
  int RunDisconnects();
  bool IsEmpty() const { return peers_.empty(); }
  bool HasUnsent() const { return num_unsent_ > 0; }

 private:
  struct Peer {
    bool is_outgoing = false;
    std::string address;
    Incarnation incarnation;  // 0: not known yet
    absl::Time last_heard;
    absl::Time last_ping = absl::InfinitePast();
    absl::Time last_active;
    bool was_active = false;
    std::deque<FrameBytes> unsent;
  };

  void Beat(PeerId id, Peer& peer, absl::Time now);

  const Incarnation own_;
  const TransferLimits limits_;
  Transport& transport_;
  TransferMetrics& metrics_;
  std::map<PeerId, Peer> peers_;
  std::map<std::pair<std::string, uint64_t>, PeerId> outgoing_;
  std::vector<PeerId> to_disconnect_;
  size_t num_unsent_ = 0;
  uint64_t next_nonce_ = 1;
};

}  // namespace baton::kvtransfer
