#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kvtransfer/inproc/network.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

// Transport of one simulated process; made by InprocNetwork::Create. Bytes move when a pull's
// completion is delivered, so a page that was given away too early is visibly overwritten. One
// thread.
class InprocTransport final : public Transport {
 public:
  ~InprocTransport() override;

  absl::StatusOr<RegionId> Register(std::span<std::byte> memory, MemoryKind kind) override;
  std::string Address() const override { return address_; }
  PeerId Connect(std::string_view address, Incarnation expected) override;
  absl::Status SendFrame(PeerId to, std::span<const std::byte> frame) override;
  SendId Offer(PeerId to, std::span<const std::byte> announce, Place from) override;
  ReceiveId Pull(OfferId offer, Place to) override;
  void Refuse(OfferId offer, RefuseReason reason) override;
  void Disconnect(PeerId peer) override;
  int Progress(TransportEvents& events) override;
  int WakeFd() const override { return -1; }
  bool MustPoll() const override { return false; }
  TransportFacts Facts(PeerId) const override { return {.transports = "inproc"}; }

 private:
  friend class InprocNetwork;

  // What waits in the inbox.
  struct Hello {
    uint64_t connection;
    Incarnation expected;
  };
  struct StateChange {
    PeerId peer;
    PeerState state;
    absl::Status status;
  };
  struct FrameArrival {
    uint64_t connection;
    int end;  // ours: both ends of a connection may lie in one process
    std::vector<std::byte> bytes;
  };
  struct OfferArrival {
    OfferId offer;
    std::vector<std::byte> announce;
    uint64_t bytes;
  };
  struct PullDone {
    ReceiveId receive;
  };
  struct SendDone {
    SendId send;
    absl::Status status;
  };
  using Item = std::variant<Hello, StateChange, FrameArrival, OfferArrival, PullDone, SendDone>;

  struct PeerRecord {
    uint64_t connection = 0;
    int end = 0;
    bool is_down = false;
  };
  struct OpenPull {
    PeerId peer{};
    InprocNetwork::OfferRecord offer{};
    Place to;
    bool is_closing = false;  // its peer was disconnected: completes now, whatever the source does
    bool has_source = true;   // false: the offer was gone when it was pulled
  };

  InprocTransport(InprocNetwork& network, uint64_t node, std::string address,
                  Incarnation incarnation);

  void Put(absl::Time at, Item item);
  std::span<std::byte> Bytes(const Place& place) const;
  // The connection of a peer that may be written to, or null.
  InprocNetwork::Connection* OpenConnection(PeerId peer, int& end);
  bool IsKnown(PeerId peer) const;

  void Deliver(const Hello& item, TransportEvents& events);
  void Deliver(const StateChange& item, TransportEvents& events);
  void Deliver(const FrameArrival& item, TransportEvents& events);
  void Deliver(const OfferArrival& item, TransportEvents& events);
  void Deliver(const PullDone& item, TransportEvents& events);
  void Deliver(const SendDone& item, TransportEvents& events);

  // Moves the bytes of a pull that is due; ok if they lie at their place.
  absl::Status Copy(const OpenPull& pull);
  // One answer to one announce; the send completes with its last.
  void AnswerOffer(const InprocNetwork::OfferRecord& offer, const absl::Status& status);
  void AnnounceOnce(uint64_t connection, int end, SendId send,
                    std::pair<std::span<const std::byte>, Place> what);

  InprocNetwork& network_;
  const uint64_t node_;
  const std::string address_;
  const Incarnation incarnation_;
  bool is_dead_ = false;
  bool is_stopped_ = false;
  std::vector<std::span<std::byte>> regions_;
  std::map<std::pair<absl::Time, uint64_t>, Item> inbox_;
  std::map<PeerId, PeerRecord> peers_;
  std::map<ReceiveId, OpenPull> pulls_;
  std::set<ReceiveId> waiting_pulls_;  // due, but their source is stopped
  std::map<SendId, PeerId> sends_;     // open
};

}  // namespace baton::kvtransfer
