#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/ids.h"

namespace baton::kvtransfer {

using RegionId = StrongId<struct RegionIdTag, uint32_t>;
using PeerId = StrongId<struct PeerIdTag, uint64_t>;
using SendId = StrongId<struct SendIdTag, uint64_t>;
using ReceiveId = StrongId<struct ReceiveIdTag, uint64_t>;
using OfferId = StrongId<struct OfferIdTag, uint64_t>;

enum class MemoryKind { kHost, kPinnedHost, kDevice };

// Wire values of a Refuse frame (contracts.md 4.1).
enum class RefuseReason : uint16_t {
  kStale = 1,
  kUnknown = 2,
  kFull = 3,
  kDraining = 4,
  kLayout = 5,
  kDataLoss = 6
};

// A stretch of registered memory.
struct Place {
  RegionId region;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

enum class PeerState { kUp, kDown };

// Which wires carry a peer's blocks, for logs and metrics.
struct TransportFacts {
  std::string transports;     // that carried the self-test, e.g. "rc_mlx5"; empty before it ran
  double self_test_gbps = 0;  // GB/s of the self-test
};

// Callbacks of Transport::Progress, on its thread. Spans are valid during the call only.
class TransportEvents {
 public:
  virtual ~TransportEvents() = default;
  virtual void OnFrame(PeerId from, std::span<const std::byte> frame) = 0;
  // A peer offers a block of `bytes`. Answer with Pull or Refuse, inside the call or later.
  virtual void OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
                       uint64_t bytes) = 0;
  // Exactly once per Pull: the block lies at its place (ok), or never will (any error).
  virtual void OnPulled(ReceiveId receive, const absl::Status& status) = 0;
  // Exactly once per Offer: the transport no longer reads the memory. It proves nothing about
  // arrival. kDataLoss (the memory could not be read) and kFailedPrecondition (this transport will
  // never carry the block) say that it was not announced, though the peer may be well.
  virtual void OnSent(SendId send, const absl::Status& status) = 0;
  // Also tells of peers that connected to us (kUp), before anything else of theirs.
  virtual void OnPeer(PeerId peer, PeerState state, const absl::Status& status) = 0;
};

// Moves registered bytes between processes. Owned by one thread; callbacks run only inside Progress
// (contracts.md 4.6, 6).
class Transport {
 public:
  virtual ~Transport() = default;
  // The memory stays registered as long as the transport lives.
  virtual absl::StatusOr<RegionId> Register(std::span<std::byte> memory, MemoryKind kind) = 0;
  virtual std::string Address() const = 0;
  // Result: OnPeer(kUp | kDown). Frames and offers may be queued before kUp.
  virtual PeerId Connect(std::string_view address, Incarnation expected) = 0;
  // At most 1,024 bytes, copied. kResourceExhausted when the peer's queue is full, kUnavailable
  // when it is down.
  virtual absl::Status SendFrame(PeerId to, std::span<const std::byte> frame) = 0;
  // `from` stays pinned until OnSent.
  virtual SendId Offer(PeerId to, std::span<const std::byte> announce, Place from) = 0;
  virtual ReceiveId Pull(OfferId offer, Place to) = 0;
  // Lets go of the offer: nothing is pulled and the peer's OnSent follows. The Refuse frame that
  // says so on the wire is the caller's to send (SendFrame). An offer of a disconnected peer may
  // still be refused, or pulled with an error.
  virtual void Refuse(OfferId offer, RefuseReason reason) = 0;
  // There is no cancel: the peer's open sends and pulls then complete, and nothing lands
  // afterwards. No OnPeer, OnFrame or OnOffer of that peer follows. Also due after OnPeer(kDown),
  // which by itself completes nothing.
  virtual void Disconnect(PeerId peer) = 0;
  // Does what can be done without waiting; returns how many events were delivered.
  virtual int Progress(TransportEvents& events) = 0;
  // Readable when there is work for Progress, once a Progress has returned 0; -1: poll.
  virtual int WakeFd() const = 0;
  // Something is under way that no descriptor tells of: poll rather than sleep.
  virtual bool MustPoll() const = 0;
  virtual TransportFacts Facts(PeerId peer) const = 0;
};

}  // namespace baton::kvtransfer
