#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "kvtransfer/agent.h"
#include "kvtransfer/limits.h"
#include "kvtransfer/machine.h"

namespace baton::kvtransfer {

// An Announce that names this transfer; the agent has checked that it is meant for this process.
struct BlockOffered {
  PeerId peer;
  OfferId offer;
  FrameHead head;
  AnnounceBody announce;
  uint64_t bytes = 0;  // that the transport would move
};
struct BlockPulled {
  Ticket ticket;
  absl::Status status;
};
struct CreditAdded {
  std::vector<BlockMemory> memory;
};
struct AttemptChanged {
  Attempt attempt = 0;
};

using ReceiverEvent = std::variant<BlockOffered, BlockPulled, BlockDigested, CreditAdded,
                                   AttemptChanged, PeerAborted, PeerLost, Cancelled, TimePassed>;

// One landing (contracts.md 4.3) as a state machine: open (Reserved, Filling, Ready), closing,
// closed. Memory under a posted pull or a running digest goes back to the engine only when that has
// completed. One thread.
class TransferReceiver {
 public:
  TransferReceiver(const OpenLanding& open, const TransferLimits& limits);

  // Appends what is to be done, in order.
  void On(const ReceiverEvent& event, absl::Time now, std::vector<TransferAction>& out);

  bool IsClosed() const { return state_ == State::kClosed; }
  // All pages and the tail are verified.
  bool IsComplete() const { return num_verified_ == num_expected_; }
  // Closing, and a receive is open longer than any transport should take (contracts.md 4.5).
  bool IsWedged(absl::Time now) const;
  int NumOpenPulls() const { return num_pulling_; }
  int NumQuarantined() const { return num_quarantined_; }
  const OpenLanding& open() const { return open_; }
  // Peers whose silence would harm this landing.
  void AddActivePeers(std::set<PeerId>& peers) const;

 private:
  enum class State { kOpen, kClosing, kClosed };
  enum class BlockState { kMissing, kPending, kBound, kVerified };
  enum class Step { kPulling, kDigesting };

  struct Block {
    BlockState state = BlockState::kMissing;
    int failures = 0;      // of this attempt
    BlockMemory memory{};  // kVerified only
  };
  struct Offer {
    PeerId peer;
    OfferId id;
    FrameHead head;
    AnnounceBody announce;
    absl::Time since;
  };
  struct Binding {
    Offer offer;
    BlockMemory memory;
    Step step = Step::kPulling;
    bool is_quarantined = false;  // its attempt or landing is over
  };

  void Handle(const BlockOffered& event);
  void Handle(const BlockPulled& event);
  void Handle(const BlockDigested& event);
  void Handle(const CreditAdded& event);
  void Handle(const AttemptChanged& event);
  void Handle(const PeerAborted& event);
  void Handle(const PeerLost& event);
  void Handle(const Cancelled& event);
  void Handle(const TimePassed& event);

  // Checks everything an announce names before anything is bound; false: refused, and said so.
  bool Admit(const BlockOffered& event);
  void RefuseOffer(const BlockOffered& event, RefuseReason wire, StaleReason counted);
  void SendRefuse(const FrameHead& head, const AnnounceBody& announce, PeerId peer,
                  RefuseReason reason);
  void BindPending();
  void Land(const Offer& offer, const BlockMemory& memory);
  void Retry(const Offer& offer, const char* what);
  void Fail(absl::Status status);
  void QuarantineAll();
  // Ends a binding: nothing reads or writes its memory any more.
  Binding Unbind(Ticket ticket);
  void RefusePending();
  void Return(const BlockMemory& memory);
  void CloseIfQuiet();
  // Slot in blocks_, or -1.
  int SlotOf(uint32_t block) const;
  Block& BlockOf(uint32_t block);
  void Do(TransferAction action) { out_->push_back(std::move(action)); }

  const OpenLanding open_;
  const TransferLimits limits_;
  State state_ = State::kOpen;
  Attempt attempt_;
  std::vector<Block> blocks_;  // the pages, then the tail
  size_t num_verified_ = 0;
  const size_t num_expected_;
  bool has_failed_ = false;  // this attempt
  std::map<PeerId, FrameHead>
      peers_;  // that offered in this attempt, with the head of their last announce
  std::deque<BlockMemory> free_pages_, free_tails_;
  std::deque<Offer> pending_;  // admitted, without memory yet; at most the window
  std::map<Ticket, Binding> bindings_;
  int num_pulling_ = 0;      // of bindings_
  int num_quarantined_ = 0;  // of bindings_
  Ticket next_ticket_{1};
  absl::Time closing_since_ = absl::InfiniteFuture();
  bool was_force_closed_ = false;

  // Set for the duration of On.
  absl::Time now_;
  std::vector<TransferAction>* out_ = nullptr;
};

}  // namespace baton::kvtransfer
