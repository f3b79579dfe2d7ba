#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "kvtransfer/agent.h"
#include "kvtransfer/limits.h"
#include "kvtransfer/machine.h"

namespace baton::kvtransfer {

// A block whose bytes will not change any more; offered when the window allows.
struct BlockSealed {
  BlockMemory memory;
  PageName name;
};
struct BlockSent {  // the transport no longer reads the memory; the status as in Transport::OnSent
  Ticket ticket;
  absl::Status status;
};
struct AckReceived {
  uint32_t block = 0;
};
struct RefuseReceived {
  uint32_t block = 0;
  RefuseReason reason = RefuseReason::kUnknown;
};

using SenderEvent = std::variant<BlockSealed, BlockDigested, BlockSent, AckReceived, RefuseReceived,
                                 PeerAborted, PeerLost, Cancelled, TimePassed>;

// One attempt of one transfer at the source (contracts.md 4.4, Sending and Draining) as a state
// machine. Never more than `window` un-acked blocks are announced; the tail is announced after all
// pages known by then. Send memory is the transport's until BlockSent, and the digest's until
// BlockDigested. One thread.
class TransferSender {
 public:
  struct Link {
    PeerId peer;
    Incarnation own;
  };
  TransferSender(const OpenSend& open, const Link& link, const TransferLimits& limits);

  // Appends what is to be done, in order.
  void On(const SenderEvent& event, absl::Time now, std::vector<TransferAction>& out);

  bool IsReleased() const { return state_ == State::kReleased; }
  bool IsDraining() const { return state_ == State::kDraining; }
  PeerId peer() const { return link_.peer; }
  const OpenSend& open() const { return open_; }
  // Announced and neither acked nor refused, plus those being digested.
  int NumUnacked() const { return num_unacked_; }
  // Waiting for the window.
  size_t NumQueued() const { return queue_.size() + (queued_tail_ ? 1 : 0); }

 private:
  enum class State { kSending, kFailed, kDraining, kReleased };
  enum class BlockState { kQueued, kDigesting, kOffered, kAcked };

  struct Block {
    BlockMemory memory;
    PageName name;
    BlockState state = BlockState::kQueued;
    std::optional<Digest128>
        digest{};  // of the first offer: a later one would bless changed memory
    int num_offers = 0;
  };

  void Handle(const BlockSealed& event);
  void Handle(const BlockDigested& event);
  void Handle(const BlockSent& event);
  void Handle(const AckReceived& event);
  void Handle(const RefuseReceived& event);
  void Handle(const PeerAborted& event);
  void Handle(const PeerLost& event);
  void Handle(const Cancelled& event);
  void Handle(const TimePassed& event);

  void FillWindow();
  // The block that may be announced next.
  std::optional<uint32_t> PopQueue();
  void StartDigest(uint32_t number, Block& block);
  void Offer(uint32_t number, Block& block);
  // The offer reached nobody, or no whole block: once more, if that was the first.
  bool OfferAgain(uint32_t number, Block& block);
  void Fail(absl::Status status);
  void ReleaseIfQuiet();
  Frame Announce(uint32_t number, const Block& block) const;
  FrameHead Head() const;
  bool IsComplete() const;
  Ticket NewTicket() { return Ticket{next_ticket_++}; }
  void Do(TransferAction action) { out_->push_back(std::move(action)); }

  const OpenSend open_;
  const Link link_;
  const TransferLimits limits_;
  State state_ = State::kSending;
  std::map<uint32_t, Block> blocks_;
  std::deque<uint32_t> queue_;  // pages; those offered again come first
  bool queued_tail_ = false;
  int num_unacked_ = 0;
  int num_digesting_ = 0;
  size_t num_acked_ = 0;
  bool is_peer_gone_ = false;  // nothing is sent to it any more
  std::map<Ticket, uint32_t> open_sends_, open_digests_;
  uint64_t next_ticket_ = 1;
  absl::Time draining_since_ = absl::InfiniteFuture();
  bool was_force_closed_ = false;

  // Set for the duration of On.
  absl::Time now_;
  std::vector<TransferAction>* out_ = nullptr;
};

}  // namespace baton::kvtransfer
