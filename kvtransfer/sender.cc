#include "kvtransfer/sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

constexpr int kMaxOffers = 2;  // of one block in one attempt

// A refusal that ends the attempt, as the status of its failure.
absl::Status StatusOfRefusal(RefuseReason reason, uint32_t block, const OpenSend& open) {
  const std::string text = absl::StrFormat("block %d of transfer %s attempt %d refused: reason %d",
                                           static_cast<int32_t>(block), open.transfer.Hex(),
                                           open.attempt, static_cast<uint16_t>(reason));
  switch (reason) {
    case RefuseReason::kFull:
      return absl::ResourceExhaustedError(text);
    case RefuseReason::kDraining:
      return absl::UnavailableError(text);
    case RefuseReason::kLayout:
      return absl::FailedPreconditionError(text);
    case RefuseReason::kDataLoss:
      return absl::DataLossError(text);
    case RefuseReason::kStale:
    case RefuseReason::kUnknown:
      break;
  }
  return absl::CancelledError(text);
}

}  // namespace

TransferSender::TransferSender(const OpenSend& open, const Link& link, const TransferLimits& limits)
    : open_(open), link_(link), limits_(limits) {}

void TransferSender::On(const SenderEvent& event, absl::Time now,
                        std::vector<TransferAction>& out) {
  now_ = now;
  out_ = &out;
  std::visit([this](const auto& e) { Handle(e); }, event);
  out_ = nullptr;
}

FrameHead TransferSender::Head() const {
  return {.transfer = open_.transfer,
          .attempt = open_.attempt,
          .sender = link_.own,
          .receiver = open_.incarnation,
          .secret = open_.secret};
}

Frame TransferSender::Announce(uint32_t number, const Block& block) const {
  return {Head(), AnnounceBody{.block = number,
                               .shard = 0,
                               .num_shards = 1,
                               .bytes = block.memory.place.bytes,
                               .layout = open_.layout,
                               .name = block.name,
                               .digest = block.digest.value_or(Digest128{})}};
}

bool TransferSender::IsComplete() const {
  return blocks_.contains(kTailBlock) && num_acked_ == blocks_.size();
}

void TransferSender::Handle(const BlockSealed& event) {
  if (state_ != State::kSending) return;  // the failure was told; CloseSend follows
  const uint32_t number = event.memory.block;
  const bool is_known = number == kTailBlock || number < open_.num_pages;
  if (!is_known || event.memory.place.bytes == 0 || blocks_.contains(number)) {
    Fail(absl::InternalError(absl::StrFormat(
        "transfer %s: block %d of %d pages, %d bytes: not offerable, or offered before",
        open_.transfer.Hex(), static_cast<int32_t>(number), open_.num_pages,
        event.memory.place.bytes)));
    return;
  }
  blocks_.emplace(number, Block{.memory = event.memory, .name = event.name});
  if (number == kTailBlock) {
    queued_tail_ = true;
  } else {
    queue_.push_back(number);
  }
  FillWindow();
}

std::optional<uint32_t> TransferSender::PopQueue() {
  if (!queue_.empty()) {
    const uint32_t number = queue_.front();
    queue_.pop_front();
    return number;
  }
  if (!queued_tail_ || num_digesting_ > 0) return std::nullopt;  // those pages come before it
  queued_tail_ = false;
  return kTailBlock;
}

void TransferSender::FillWindow() {
  while (state_ == State::kSending && num_unacked_ < open_.window) {
    const std::optional<uint32_t> number = PopQueue();
    if (!number) return;
    Block& block = blocks_.at(*number);
    ++num_unacked_;
    if (block.digest) {
      Offer(*number, block);
    } else {
      StartDigest(*number, block);
    }
  }
}

void TransferSender::StartDigest(uint32_t number, Block& block) {
  block.state = BlockState::kDigesting;
  ++num_digesting_;
  const Ticket ticket = NewTicket();
  open_digests_.emplace(ticket, number);
  Do(DigestBlock{ticket, block.memory.place, open_.secret, EncodeFrame(Announce(number, block))});
}

void TransferSender::Offer(uint32_t number, Block& block) {
  block.state = BlockState::kOffered;
  ++block.num_offers;
  const Ticket ticket = NewTicket();
  open_sends_.emplace(ticket, number);
  Do(OfferToPeer{ticket, link_.peer, EncodeFrame(Announce(number, block)), block.memory.place});
}

void TransferSender::Handle(const BlockDigested& event) {
  auto it = open_digests_.find(event.ticket);
  CHECK(it != open_digests_.end());
  const uint32_t number = it->second;
  open_digests_.erase(it);
  --num_digesting_;
  if (state_ != State::kSending) {
    ReleaseIfQuiet();
    return;
  }
  if (!event.digest.ok()) {
    Fail(event.digest.status());
    return;
  }
  Block& block = blocks_.at(number);
  block.digest = *event.digest;
  Offer(number, block);
  FillWindow();
}

void TransferSender::Handle(const BlockSent& event) {
  const auto it = open_sends_.find(event.ticket);
  CHECK(it != open_sends_.end());
  const uint32_t number = it->second;
  open_sends_.erase(it);
  // A lost peer is told by PeerLost, the fate of an announced block by Ack or Refuse. Of a block
  // that was not announced nobody else will speak.
  Block& block = blocks_.at(number);
  const bool may_retry = absl::IsDataLoss(event.status);
  const bool is_lost = may_retry || absl::IsFailedPrecondition(event.status);
  if (is_lost && state_ == State::kSending && block.state == BlockState::kOffered) {
    if (!may_retry || !OfferAgain(number, block)) Fail(event.status);
  }
  ReleaseIfQuiet();
}

void TransferSender::Handle(const AckReceived& event) {
  auto it = blocks_.find(event.block);
  if (it == blocks_.end() || it->second.num_offers == 0) {
    Do(CountStale{StaleReason::kBlock});
    return;
  }
  Block& block = it->second;
  if (block.state == BlockState::kAcked) {
    Do(CountStale{StaleReason::kDuplicate});
    return;
  }
  if (block.state == BlockState::kQueued) {  // waiting to be offered again
    if (event.block == kTailBlock) {
      queued_tail_ = false;
    } else {
      std::erase(queue_, event.block);
    }
  } else {
    --num_unacked_;
  }
  block.state = BlockState::kAcked;
  ++num_acked_;
  if (state_ == State::kSending || state_ == State::kFailed)
    Do(Notify{
        BlockAcked{.transfer = open_.transfer, .block = event.block, .attempt = open_.attempt}});
  FillWindow();
}

void TransferSender::Handle(const RefuseReceived& event) {
  auto it = blocks_.find(event.block);
  if (it == blocks_.end() || it->second.state != BlockState::kOffered) {
    Do(CountStale{StaleReason::kBlock});
    return;
  }
  if (state_ != State::kSending) return;
  Block& block = it->second;
  if (event.reason != RefuseReason::kDataLoss || !OfferAgain(event.block, block))
    Fail(StatusOfRefusal(event.reason, event.block, open_));
}

bool TransferSender::OfferAgain(uint32_t number, Block& block) {
  if (block.num_offers >= kMaxOffers) return false;
  Do(CountRetry{});
  block.state = BlockState::kQueued;
  --num_unacked_;
  if (number == kTailBlock) {
    queued_tail_ = true;
  } else {
    queue_.push_front(number);
  }
  FillWindow();
  return true;
}

void TransferSender::Handle(const PeerAborted& event) {
  if (event.attempt != open_.attempt) {
    Do(CountStale{StaleReason::kAttempt});
    return;
  }
  if (state_ != State::kSending || IsComplete()) return;
  is_peer_gone_ = true;
  Fail(absl::CancelledError(absl::StrFormat("receiver aborted transfer %s attempt %d: reason %d",
                                            open_.transfer.Hex(), open_.attempt,
                                            static_cast<uint32_t>(event.reason))));
}

void TransferSender::Handle(const PeerLost& event) {
  if (event.peer != link_.peer) return;
  is_peer_gone_ = true;
  if (state_ != State::kSending || IsComplete()) return;
  Fail(absl::UnavailableError(absl::StrFormat("receiver of transfer %s attempt %d is down",
                                              open_.transfer.Hex(), open_.attempt)));
}

void TransferSender::Fail(absl::Status status) {
  if (state_ != State::kSending) return;
  state_ = State::kFailed;
  queue_.clear();
  queued_tail_ = false;
  Do(Notify{SendFailed{
      .transfer = open_.transfer, .attempt = open_.attempt, .status = std::move(status)}});
}

void TransferSender::Handle(const Cancelled&) {
  if (state_ == State::kDraining || state_ == State::kReleased) return;
  if (!IsComplete() && !is_peer_gone_) {
    const AbortReason reason =
        state_ == State::kFailed ? AbortReason::kFailed : AbortReason::kCancelled;
    Do(SendToPeer{link_.peer, {Head(), AbortBody{reason}}});
  }
  state_ = State::kDraining;
  draining_since_ = now_;
  queue_.clear();
  queued_tail_ = false;
  ReleaseIfQuiet();
}

void TransferSender::Handle(const TimePassed&) {
  if (state_ != State::kDraining || was_force_closed_ || open_sends_.empty()) return;
  if (now_ - draining_since_ < limits_.force_close) return;
  was_force_closed_ = true;
  Do(ForceClose{link_.peer});
}

void TransferSender::ReleaseIfQuiet() {
  if (state_ != State::kDraining || !open_sends_.empty() || !open_digests_.empty()) return;
  state_ = State::kReleased;
  Do(Notify{SendReleased{.transfer = open_.transfer, .attempt = open_.attempt}});
}

}  // namespace baton::kvtransfer
