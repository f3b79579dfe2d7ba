#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kvtransfer/block_copier.h"
#include "kvtransfer/staged/staging.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

// Device memory over a transport that only reads and writes host memory (contracts.md 4.6): keeps
// every promise of Transport, for regions of either kind. Transfer thread only.
//
// A block offered from a device region is copied into a slot, offered from there, and the slot is
// free again at the inner OnSent. A block pulled into a device region is pulled into a slot, copied
// to its place if that went well, and then told. Blocks of host regions go straight through.
// Region, send and receive ids are this class's own, peer and offer ids are the inner transport's.
//
// Order: offers to one peer are announced in the order of the calls, whatever memory they come from
// (the tail is announced last: contracts.md 4.1). Frames wait for no block.
//
// Without a free slot an offer or pull waits in the order of the calls. A transfer agent lets at
// most `window` offers per open send wait, and one pull per piece of memory given to a landing;
// each costs one record, no block. Waiting cannot lock up. A pull's slot needs the source's
// transport and our copier to go on, and no slot of any kind. An offer's slot needs the peer to
// pull or refuse: that takes a pull slot there, and memory that was booked before the peer let
// anybody offer. A peer that does neither keeps its slots until Disconnect, and others wait so
// long: at most the agent's `silence`.
//
// Nothing is pulled from a peer that is known to be down: such pulls complete with kUnavailable.
// After Disconnect what waited or lay ready completes with kCancelled, what the inner transport has
// completes as it says, what is being copied completes after its copy. A peer that still reads a
// slot which the inner transport called sent finds another block there, and that block's digest
// does not fit (contracts.md 4.6: a completed send proves nothing).
class StagedTransport final : public Transport, private TransportEvents {
 public:
  // Registers the staging memory with `inner`. Inner transport, copier and memory outlive this; the
  // copier ends before any memory it may touch. kInvalidArgument: see StagingArea; else the inner
  // error.
  static absl::StatusOr<std::unique_ptr<StagedTransport>> Create(Transport& inner,
                                                                 BlockCopier& copier,
                                                                 const StagingArea& area);

  // kDevice: known here alone. Other kinds: registered with the inner transport.
  absl::StatusOr<RegionId> Register(std::span<std::byte> memory, MemoryKind kind) override;
  std::string Address() const override { return inner_.Address(); }
  PeerId Connect(std::string_view address, Incarnation expected) override;
  absl::Status SendFrame(PeerId to, std::span<const std::byte> frame) override {
    return inner_.SendFrame(to, frame);
  }
  // OnSent tells of kDataLoss when the copy failed, of kFailedPrecondition when the block is larger
  // than a slot: it was never announced.
  SendId Offer(PeerId to, std::span<const std::byte> announce, Place from) override;
  // OnPulled tells of the same; a block larger than a slot is let go of as by Refuse.
  ReceiveId Pull(OfferId offer, Place to) override;
  void Refuse(OfferId offer, RefuseReason reason) override;
  void Disconnect(PeerId peer) override;
  // Counts finished copies too: 0 means that nothing happened.
  int Progress(TransportEvents& events) override;
  int WakeFd() const override { return inner_.WakeFd(); }
  // Copies are under way, or completions wait for Progress.
  bool MustPoll() const override;
  TransportFacts Facts(PeerId peer) const override { return inner_.Facts(peer); }

  // May be read by any thread.
  const StagingStats& stats() const { return stats_; }

 private:
  struct Region {
    std::span<std::byte> memory;
    std::optional<RegionId> inner;  // none: device memory
  };
  // What we know of a peer until Disconnect.
  struct Peer {
    bool is_down = false;
    std::deque<SendId> unannounced;  // the inner transport has not got them yet; in order
  };
  enum class OfferStep { kWaiting, kCopying, kReady, kOffered };
  struct OpenOffer {
    PeerId to;
    std::vector<std::byte> announce;
    Place from;
    OfferStep step = OfferStep::kReady;
    std::optional<uint64_t> slot{};
    bool is_closed = false;  // its peer was disconnected during the copy
  };
  struct OpenPull {
    PeerId from;
    OfferId offer;
    Place to;
    std::optional<uint64_t> slot{};
  };
  struct SendDone {
    SendId send;
    absl::Status status;
  };
  struct PullDone {
    ReceiveId receive;
    absl::Status status;
  };

  StagedTransport(Transport& inner, BlockCopier& copier, const StagingArea& area, RegionId staging);

  // TransportEvents of the inner transport.
  void OnFrame(PeerId from, std::span<const std::byte> frame) override;
  void OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
               uint64_t bytes) override;
  void OnPulled(ReceiveId receive, const absl::Status& status) override;
  void OnSent(SendId send, const absl::Status& status) override;
  void OnPeer(PeerId peer, PeerState state, const absl::Status& status) override;

  // The region of a place that lies within it.
  const Region& RegionOf(const Place& place) const;
  std::span<std::byte> Slot(uint64_t slot, uint64_t bytes) const {
    return area_.memory.subspan(slot, bytes);
  }
  absl::Status CheckFits(const char* what, uint64_t bytes) const;

  // Give free slots to what waits.
  void StartOffers();
  void StartPulls();
  // Hands what is ready to the inner transport, up to the first that is not.
  void Announce(PeerId id, Peer& peer);
  void CloseOffer(SendId send);
  // Frees its slot and queues its completion; the caller starts the next one.
  void EndOffer(SendId send, const absl::Status& status);
  void EndPull(ReceiveId receive, const absl::Status& status);
  void EndWaitingPulls(PeerId from, const absl::Status& status);
  bool IsDown(PeerId id) const {
    const auto peer = peers_.find(id);
    return peer != peers_.end() && peer->second.is_down;
  }

  int PollCopies();
  void Copied(SendId send, const absl::Status& status);
  void Copied(ReceiveId receive, const absl::Status& status);
  int DeliverDone();
  void UpdateGauges();

  Transport& inner_;
  BlockCopier& copier_;
  const StagingArea area_;
  const RegionId staging_;  // of the inner transport
  StagingStats stats_;
  SlotShare offer_slots_, pull_slots_;
  std::vector<Region> regions_;
  std::map<PeerId, Peer> peers_;
  std::map<OfferId, PeerId> offered_;  // by peers, unanswered
  std::map<SendId, OpenOffer> offers_;
  std::map<ReceiveId, OpenPull> pulls_;
  std::deque<SendId> waiting_offers_;    // for a slot
  std::deque<ReceiveId> waiting_pulls_;  // for a slot
  std::map<SendId, SendId> inner_sends_;
  std::map<ReceiveId, ReceiveId> inner_pulls_;
  std::map<CopyJob, std::variant<SendId, ReceiveId>> copies_;
  std::deque<std::variant<SendDone, PullDone>> done_;
  uint64_t next_id_ = 1;               // sends, receives and copies
  TransportEvents* events_ = nullptr;  // set for the duration of Progress
};

}  // namespace baton::kvtransfer
