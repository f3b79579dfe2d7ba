#include "kvtransfer/receiver.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

constexpr int kMaxFailures = 2;  // of one block in one attempt: offered, offered once more

FrameHead ReplyTo(const FrameHead& head) {
  FrameHead reply = head;
  std::swap(reply.sender, reply.receiver);
  return reply;
}

FrameBytes DigestHeader(const FrameHead& head, AnnounceBody announce) {
  announce.digest = Digest128{};
  return EncodeFrame({head, announce});
}

}  // namespace

TransferReceiver::TransferReceiver(const OpenLanding& open, const TransferLimits& limits)
    : open_(open),
      limits_(limits),
      attempt_(open.attempt),
      blocks_(open.num_pages + size_t{1}),
      num_expected_(open.num_pages + (open.tail_bytes > 0 ? size_t{1} : size_t{0})) {}

void TransferReceiver::On(const ReceiverEvent& event, absl::Time now,
                          std::vector<TransferAction>& out) {
  now_ = now;
  out_ = &out;
  std::visit([this](const auto& e) { Handle(e); }, event);
  out_ = nullptr;
}

int TransferReceiver::SlotOf(uint32_t block) const {
  if (block == kTailBlock) return static_cast<int>(open_.num_pages);
  return block < open_.num_pages ? static_cast<int>(block) : -1;
}

TransferReceiver::Block& TransferReceiver::BlockOf(uint32_t block) {
  const int slot = SlotOf(block);
  CHECK(slot >= 0);
  return blocks_[static_cast<size_t>(slot)];
}

void TransferReceiver::SendRefuse(const FrameHead& head, const AnnounceBody& announce, PeerId peer,
                                  RefuseReason reason) {
  Do(SendToPeer{peer,
                {ReplyTo(head),
                 RefuseBody{.block = announce.block, .shard = announce.shard, .reason = reason}}});
}

void TransferReceiver::RefuseOffer(const BlockOffered& event, RefuseReason wire,
                                   StaleReason counted) {
  Do(CountStale{counted});
  Do(DropOffer{event.offer, wire});
  SendRefuse(event.head, event.announce, event.peer, wire);
}

bool TransferReceiver::Admit(const BlockOffered& event) {
  const AnnounceBody& announce = event.announce;
  auto refuse = [&](RefuseReason wire, StaleReason counted) {
    RefuseOffer(event, wire, counted);
    return false;
  };
  if (event.head.secret != open_.secret)
    return refuse(RefuseReason::kUnknown, StaleReason::kSecret);
  if (state_ != State::kOpen) return refuse(RefuseReason::kStale, StaleReason::kTransfer);
  if (event.head.attempt != attempt_) return refuse(RefuseReason::kStale, StaleReason::kAttempt);
  if (SlotOf(announce.block) < 0) return refuse(RefuseReason::kUnknown, StaleReason::kBlock);
  const uint64_t expected = announce.block == kTailBlock ? open_.tail_bytes : open_.page_bytes;
  const bool fits = announce.layout == open_.layout && announce.shard == 0 &&
                    announce.num_shards == 1 && announce.bytes == expected &&
                    event.bytes == expected;
  if (!fits) return refuse(RefuseReason::kLayout, StaleReason::kLayout);
  const BlockState state = BlockOf(announce.block).state;
  if (state == BlockState::kMissing) {
    const size_t unacked =
        pending_.size() + bindings_.size() - static_cast<size_t>(num_quarantined_);
    if (unacked < open_.window) return true;
    Do(DropOffer{event.offer, RefuseReason::kFull});
    SendRefuse(event.head, announce, event.peer, RefuseReason::kFull);
    return false;
  }
  // A repeat is no offence: what is verified is acked again, what is on its way will be.
  Do(CountStale{StaleReason::kDuplicate});
  Do(DropOffer{event.offer, RefuseReason::kStale});
  if (state == BlockState::kVerified) {
    Do(SendToPeer{
        event.peer,
        {ReplyTo(event.head), AckBody{.block = announce.block, .shard = announce.shard}}});
  }
  return false;
}

void TransferReceiver::Handle(const BlockOffered& event) {
  if (!Admit(event)) return;
  peers_[event.peer] = event.head;
  BlockOf(event.announce.block).state = BlockState::kPending;
  pending_.push_back({event.peer, event.offer, event.head, event.announce, now_});
  BindPending();
}

void TransferReceiver::BindPending() {
  for (auto it = pending_.begin(); it != pending_.end();) {
    auto& memory = it->announce.block == kTailBlock ? free_tails_ : free_pages_;
    if (memory.empty()) {
      ++it;
      continue;
    }
    const Ticket ticket{next_ticket_.value++};
    Binding binding{.offer = *it, .memory = memory.front()};
    memory.pop_front();
    binding.memory.block = it->announce.block;
    Place to = binding.memory.place;
    to.bytes = it->announce.bytes;
    BlockOf(it->announce.block).state = BlockState::kBound;
    Do(PullBlock{ticket, it->id, it->peer, to});
    bindings_.emplace(ticket, binding);
    ++num_pulling_;
    it = pending_.erase(it);
  }
}

void TransferReceiver::Handle(const BlockPulled& event) {
  auto it = bindings_.find(event.ticket);
  CHECK(it != bindings_.end());
  Binding& binding = it->second;
  if (event.status.ok() && !binding.is_quarantined) {
    binding.step = Step::kDigesting;
    --num_pulling_;
    Place place = binding.memory.place;
    place.bytes = binding.offer.announce.bytes;
    Do(DigestBlock{event.ticket, place, open_.secret,
                   DigestHeader(binding.offer.head, binding.offer.announce)});
    return;
  }
  const Binding done = Unbind(event.ticket);
  Return(done.memory);
  if (!event.status.ok()) Do(CountPullFailure{});
  if (!done.is_quarantined) Retry(done.offer, "pull");
  CloseIfQuiet();
}

void TransferReceiver::Handle(const BlockDigested& event) {
  const Binding done = Unbind(event.ticket);
  if (done.is_quarantined) {
    Return(done.memory);
    CloseIfQuiet();
    return;
  }
  if (event.digest.ok() && *event.digest == done.offer.announce.digest) {
    Land(done.offer, done.memory);
    return;
  }
  Do(CountDigestFailure{});
  Return(done.memory);
  Retry(done.offer, "digest");
}

TransferReceiver::Binding TransferReceiver::Unbind(Ticket ticket) {
  auto it = bindings_.find(ticket);
  CHECK(it != bindings_.end());
  const Binding done = it->second;
  bindings_.erase(it);
  if (done.step == Step::kPulling) --num_pulling_;
  if (done.is_quarantined) --num_quarantined_;
  return done;
}

void TransferReceiver::Land(const Offer& offer, const BlockMemory& memory) {
  Block& block = BlockOf(offer.announce.block);
  block.state = BlockState::kVerified;
  block.memory = memory;
  ++num_verified_;
  Do(SendToPeer{offer.peer,
                {ReplyTo(offer.head),
                 AckBody{.block = offer.announce.block, .shard = offer.announce.shard}}});
  Do(CountLanded{now_ - offer.since});
  Do(Notify{
      BlockLanded{.transfer = open_.transfer, .memory = memory, .name = offer.announce.name}});
}

void TransferReceiver::Retry(const Offer& offer, const char* what) {
  Block& block = BlockOf(offer.announce.block);
  block.state = BlockState::kMissing;
  if (!peers_.contains(offer.peer)) return;  // lost: said so already, nobody left to ask
  ++block.failures;
  SendRefuse(offer.head, offer.announce, offer.peer, RefuseReason::kDataLoss);
  if (block.failures < kMaxFailures) return;
  Fail(absl::DataLossError(absl::StrFormat("block %d of transfer %s: %s failed %d times of %d",
                                           static_cast<int32_t>(offer.announce.block),
                                           open_.transfer.Hex(), what, block.failures,
                                           kMaxFailures)));
}

void TransferReceiver::Fail(absl::Status status) {
  if (has_failed_ || state_ != State::kOpen) return;
  has_failed_ = true;
  Do(Notify{
      LandingFailed{.transfer = open_.transfer, .attempt = attempt_, .status = std::move(status)}});
}

void TransferReceiver::Handle(const CreditAdded& event) {
  for (const BlockMemory& memory : event.memory) {
    const bool is_tail = memory.block == kTailBlock;
    CHECK(memory.place.bytes >= (is_tail ? open_.tail_bytes : open_.page_bytes));
    if (state_ == State::kOpen) {
      (is_tail ? free_tails_ : free_pages_).push_back(memory);
    } else {
      Return(memory);
    }
  }
  if (state_ == State::kOpen) BindPending();
}

void TransferReceiver::Handle(const AttemptChanged& event) {
  if (state_ != State::kOpen) return;  // the close is answered
  if (event.attempt > attempt_) {
    RefusePending();
    QuarantineAll();
    attempt_ = event.attempt;
    has_failed_ = false;
    peers_.clear();
    for (Block& block : blocks_) {
      block.failures = 0;
      if (block.state != BlockState::kVerified) block.state = BlockState::kMissing;
    }
  }
  LandingRetargeted answer{.transfer = open_.transfer, .attempt = attempt_};
  for (uint32_t i = 0; i < open_.num_pages; ++i)
    answer.verified.push_back(blocks_[i].state == BlockState::kVerified);
  for (const auto& [ticket, binding] : bindings_)
    if (binding.is_quarantined) answer.quarantined.push_back(binding.memory);
  Do(Notify{std::move(answer)});
}

void TransferReceiver::Handle(const PeerAborted& event) {
  if (event.attempt != attempt_ || state_ != State::kOpen) {
    Do(CountStale{StaleReason::kAttempt});
    return;
  }
  if (IsComplete()) return;
  Fail(absl::UnavailableError(absl::StrFormat("sender aborted transfer %s attempt %d: reason %d",
                                              open_.transfer.Hex(), attempt_,
                                              static_cast<uint32_t>(event.reason))));
}

void TransferReceiver::Handle(const PeerLost& event) {
  for (auto it = pending_.begin(); it != pending_.end();) {
    if (it->peer != event.peer) {
      ++it;
      continue;
    }
    BlockOf(it->announce.block).state = BlockState::kMissing;
    Do(DropOffer{it->id, RefuseReason::kStale});
    it = pending_.erase(it);
  }
  if (peers_.erase(event.peer) == 0 || IsComplete()) return;
  Fail(absl::UnavailableError(
      absl::StrFormat("sender of transfer %s attempt %d is down", open_.transfer.Hex(), attempt_)));
}

void TransferReceiver::Handle(const Cancelled&) {
  if (state_ != State::kOpen) return;
  state_ = State::kClosing;
  closing_since_ = now_;
  if (!IsComplete()) {
    for (const auto& [peer, head] : peers_)
      Do(SendToPeer{peer, {ReplyTo(head), AbortBody{AbortReason::kCancelled}}});
  }
  RefusePending();
  QuarantineAll();
  for (const auto* unused : {&free_pages_, &free_tails_})
    for (const BlockMemory& memory : *unused) Return(memory);
  free_pages_.clear();
  free_tails_.clear();
  for (const Block& block : blocks_)
    if (block.state == BlockState::kVerified) Return(block.memory);
  CloseIfQuiet();
}

void TransferReceiver::Handle(const TimePassed&) {
  if (state_ != State::kClosing || was_force_closed_ || NumOpenPulls() == 0) return;
  if (now_ - closing_since_ < limits_.force_close) return;
  was_force_closed_ = true;
  std::set<PeerId> peers;
  for (const auto& [ticket, binding] : bindings_)
    if (binding.step == Step::kPulling) peers.insert(binding.offer.peer);
  for (const PeerId peer : peers) Do(ForceClose{peer});
}

void TransferReceiver::RefusePending() {
  for (const Offer& offer : pending_) {
    Do(DropOffer{offer.id, RefuseReason::kStale});
    SendRefuse(offer.head, offer.announce, offer.peer, RefuseReason::kStale);
  }
  pending_.clear();
}

void TransferReceiver::QuarantineAll() {
  for (auto& [ticket, binding] : bindings_) binding.is_quarantined = true;
  num_quarantined_ = static_cast<int>(bindings_.size());
}

void TransferReceiver::Return(const BlockMemory& memory) {
  Do(Notify{MemoryReturned{.transfer = open_.transfer, .memory = memory}});
}

void TransferReceiver::CloseIfQuiet() {
  if (state_ != State::kClosing || !bindings_.empty()) return;
  state_ = State::kClosed;
  Do(Notify{LandingClosed{open_.transfer}});
}

bool TransferReceiver::IsWedged(absl::Time now) const {
  return state_ == State::kClosing && NumOpenPulls() > 0 &&
         now - closing_since_ >= limits_.wedged_after;
}

void TransferReceiver::AddActivePeers(std::set<PeerId>& peers) const {
  if (state_ == State::kOpen && !IsComplete())
    for (const auto& [peer, head] : peers_) peers.insert(peer);
  for (const auto& [ticket, binding] : bindings_)
    if (binding.step == Step::kPulling) peers.insert(binding.offer.peer);
}

}  // namespace baton::kvtransfer
