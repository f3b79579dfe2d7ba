#pragma once

#include <cstdint>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/ids.h"
#include "kvtransfer/agent.h"
#include "kvtransfer/frame.h"
#include "kvtransfer/metrics.h"
#include "kvtransfer/transport.h"

// Events and actions that TransferReceiver and TransferSender share. The machines know no I/O and
// no clock: the agent turns transport events into these events and executes the actions in order.
namespace baton::kvtransfer {

// One piece of memory in use by one block; never used twice by a machine.
using Ticket = StrongId<struct TicketTag, uint64_t>;

// --- events of both machines
struct BlockDigested {
  Ticket ticket;
  absl::StatusOr<Digest128> digest;
};
struct PeerLost {  // down or silent: nothing more is sent to it; its open pulls and sends still
                   // complete
  PeerId peer;
};
struct PeerAborted {
  PeerId peer;
  Attempt attempt = 0;
  AbortReason reason = AbortReason::kCancelled;
};
struct Cancelled {};   // CloseLanding or CloseSend
struct TimePassed {};  // at least twice per beat, for the force-close timer

// --- actions
struct PullBlock {  // answered by BlockPulled
  Ticket ticket;
  OfferId offer;
  PeerId peer;
  Place to;
};
struct DropOffer {
  OfferId offer;
  RefuseReason reason = RefuseReason::kStale;
};
struct OfferToPeer {  // answered by BlockSent
  Ticket ticket;
  PeerId peer;
  FrameBytes announce;
  Place from;
};
struct DigestBlock {  // answered by BlockDigested
  Ticket ticket;
  Place place;
  Secret secret;
  FrameBytes header;  // the announce with its digest zero
};
struct SendToPeer {
  PeerId peer;
  Frame frame;
};
struct ForceClose {  // Transport::Disconnect
  PeerId peer;
};
struct Notify {  // the engine
  AgentEvent event;
};
struct CountStale {
  StaleReason reason = StaleReason::kTransfer;
};
struct CountRetry {};
struct CountDigestFailure {};
struct CountPullFailure {};
struct CountLanded {
  absl::Duration took;
};

using TransferAction =
    std::variant<PullBlock, DropOffer, OfferToPeer, DigestBlock, SendToPeer, ForceClose, Notify,
                 CountStale, CountRetry, CountDigestFailure, CountPullFailure, CountLanded>;

}  // namespace baton::kvtransfer
