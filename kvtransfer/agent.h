#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"

#include "common/ids.h"
#include "kvtransfer/transport.h"

// What the engine thread and the transfer thread say to each other, one queue each way. Plain
// values; the order within a transfer is kept. The agent (transfer thread, or the simulator's one
// thread) owns the Transport, every TransferSender and every TransferReceiver, and executes their
// actions.
namespace baton::kvtransfer {

// Memory the agent may land into or send from: a page of the pool, or a tail buffer, by index of
// its owner.
struct BlockMemory {
  uint32_t block = 0;  // page index within the sequence, or kTailBlock
  int32_t memory =
      0;        // PageId, or tail buffer id for kTailBlock; the agent hands it back unchanged
  Place place;  // bytes = what is sent, or the room there is
};

// --- engine -> agent: receiving side (D)
struct OpenLanding {
  TransferId transfer;
  Attempt attempt = 1;
  Secret secret;
  uint32_t num_pages = 0;   // blocks 0..num_pages-1, then the tail
  uint64_t page_bytes = 0;  // payload of one page
  uint64_t tail_bytes = 0;  // exact bytes of the tail expected
  LayoutId layout;
  uint16_t window = 64;
};
// Pages (and one tail buffer, with block == kTailBlock) the landing may bind. A page's
// `block` is ignored.
struct AddCredit {
  TransferId transfer;
  std::vector<BlockMemory> memory;
};
struct RetargetLanding {  // answered by LandingRetargeted
  TransferId transfer;
  Attempt attempt = 0;
};
struct CloseLanding {  // forget; answered by MemoryReturned for each piece of memory, then
                       // LandingClosed
  TransferId transfer;
};

// --- engine -> agent: sending side (P, or D while moving)
struct OpenSend {
  TransferId transfer;
  Attempt attempt = 1;
  Secret secret;
  std::string address;      // of the receiver's transport
  Incarnation incarnation;  // of the receiver
  uint32_t num_pages = 0;   // the sequence's pages; blocks already verified are never offered
  LayoutId layout;
  uint16_t window = 64;
};
struct OfferBlock {
  TransferId transfer;
  BlockMemory memory;
  PageName name{};  // zero: unnamed
};
struct CloseSend {  // cancel, or all acked: answered by SendReleased once the transport reads
                    // nothing any more
  TransferId transfer;
};

using AgentCommand = std::variant<OpenLanding, AddCredit, RetargetLanding, CloseLanding, OpenSend,
                                  OfferBlock, CloseSend>;

// --- agent -> engine
struct BlockLanded {  // digest held on the device that will read it; Ack sent
  TransferId transfer;
  BlockMemory memory;
  PageName name{};
};
struct LandingRetargeted {
  TransferId transfer;
  Attempt attempt = 0;
  std::vector<bool> verified{};  // per page
  // Under receives of earlier attempts that are still open; each comes back by MemoryReturned. The
  // new attempt needs other memory in their place.
  std::vector<BlockMemory> quarantined{};
};
struct LandingFailed {  // data_loss twice, or a sender's Abort; the landing stays open for Retarget
                        // or Close
  TransferId transfer;
  Attempt attempt = 0;
  absl::Status status;
};
// Unbound, quarantined or failed memory comes back: nothing can land in it any more. Verified pages
// of a closed landing come too.
struct MemoryReturned {
  TransferId transfer;
  BlockMemory memory;
};
struct LandingClosed {
  TransferId transfer;
};
struct BlockAcked {
  TransferId transfer;
  uint32_t block = 0;
  Attempt attempt = 0;
};
struct SendFailed {  // refused for good, aborted, or the peer is down; CloseSend follows from the
                     // engine
  TransferId transfer;
  Attempt attempt = 0;
  absl::Status status;
};
struct SendReleased {
  TransferId transfer;
  Attempt attempt = 0;
};

using AgentEvent = std::variant<BlockLanded, LandingRetargeted, LandingFailed, MemoryReturned,
                                LandingClosed, BlockAcked, SendFailed, SendReleased>;

}  // namespace baton::kvtransfer
