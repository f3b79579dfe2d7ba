#include "kvtransfer/transfer_agent.h"

#include <limits>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {

// Executes one machine's actions.
class TransferAgent::ActionRunner {
 public:
  ActionRunner(TransferAgent& agent, TransferId transfer, Attempt attempt, bool is_sender)
      : agent_(agent), key_{transfer, attempt}, is_sender_(is_sender) {}

  void operator()(const PullBlock& a) const {
    const ReceiveId receive = agent_.transport_.Pull(a.offer, a.to);
    agent_.pulls_[receive] = {key_.transfer, a.ticket, a.to.bytes};
  }
  void operator()(const DropOffer& a) const { agent_.transport_.Refuse(a.offer, a.reason); }
  void operator()(const OfferToPeer& a) const {
    const SendId send = agent_.transport_.Offer(a.peer, a.announce.view(), a.from);
    agent_.offers_[send] = {key_, a.ticket};
    ++agent_.metrics_.blocks_offered;
    agent_.metrics_.bytes_offered += a.from.bytes;
  }
  void operator()(const DigestBlock& a) const {
    const DigestJob job{agent_.next_job_++};
    if (is_sender_) {
      agent_.digests_.emplace(job, SendOwner{key_, a.ticket});
    } else {
      agent_.digests_.emplace(job, PullOwner{key_.transfer, a.ticket});
    }
    agent_.digester_.Begin(job, a.place, a.secret, a.header.view());
  }
  void operator()(const SendToPeer& a) const {
    if (const auto* refuse = std::get_if<RefuseBody>(&a.frame.body))
      ++agent_.metrics_.refusals_sent[static_cast<size_t>(refuse->reason)];
    agent_.peers_.Send(a.peer, EncodeFrame(a.frame));
  }
  void operator()(const ForceClose& a) const { agent_.lost_.insert(a.peer); }
  void operator()(const Notify& a) const {
    if (std::holds_alternative<BlockAcked>(a.event)) ++agent_.metrics_.blocks_acked;
    agent_.events_.push_back(a.event);
  }
  void operator()(const CountStale& a) const { agent_.Count(a.reason); }
  void operator()(const CountRetry&) const { ++agent_.metrics_.block_retries; }
  void operator()(const CountDigestFailure&) const { ++agent_.metrics_.digest_failures; }
  void operator()(const CountPullFailure&) const { ++agent_.metrics_.pull_failures; }
  void operator()(const CountLanded& a) const {
    ++agent_.metrics_.blocks_landed;
    ObserveBlockSeconds(agent_.metrics_, absl::ToDoubleSeconds(a.took));
  }

 private:
  TransferAgent& agent_;
  const SendKey key_;
  const bool is_sender_;
};

TransferAgent::TransferAgent(const AgentConfig& config, Transport& transport, Digester& digester,
                             const Clock& clock)
    : config_(config),
      transport_(transport),
      digester_(digester),
      clock_(clock),
      peers_(config.incarnation, config.limits, transport, metrics_) {}

void TransferAgent::Execute(AgentCommand command) {
  std::visit([this](const auto& c) { Run(c); }, command);
}

int TransferAgent::RunOnce() {
  int happened = transport_.Progress(*this);
  while (const int count = RunDigests()) happened += count;
  peers_.Flush();
  happened += RunTimers();
  happened += RunLostPeers() + peers_.RunDisconnects();
  UpdateGauges();
  return happened;
}

absl::Time TransferAgent::NextTimer() const {
  const bool is_idle = landings_.empty() && sends_.empty() && peers_.IsEmpty();
  return is_idle ? absl::InfiniteFuture() : next_tick_;
}

void TransferAgent::Tell(TransferId transfer, const ReceiverEvent& event) {
  const auto it = landings_.find(transfer);
  CHECK(it != landings_.end());
  std::vector<TransferAction> actions;
  it->second->On(event, clock_.Now(), actions);
  const ActionRunner runner(*this, transfer, 0, /*is_sender=*/false);
  for (const TransferAction& action : actions) std::visit(runner, action);
  if (it->second->IsClosed()) landings_.erase(it);
}

void TransferAgent::Tell(const SendKey& key, const SenderEvent& event) {
  const auto it = sends_.find(key);
  CHECK(it != sends_.end());
  std::vector<TransferAction> actions;
  it->second->On(event, clock_.Now(), actions);
  const ActionRunner runner(*this, key.transfer, key.attempt, /*is_sender=*/true);
  for (const TransferAction& action : actions) std::visit(runner, action);
  if (it->second->IsReleased()) sends_.erase(it);
}

void TransferAgent::TellAll(const ReceiverEvent& to_landings, const SenderEvent& to_sends) {
  for (auto it = landings_.begin(); it != landings_.end();) Tell((it++)->first, to_landings);
  for (auto it = sends_.begin(); it != sends_.end();) Tell((it++)->first, to_sends);
}

int TransferAgent::RunDigests() {
  std::vector<DigestDone> done;
  digester_.Poll(done);
  for (const DigestDone& d : done) {
    const auto it = digests_.find(d.job);
    CHECK(it != digests_.end());
    const Owner owner = it->second;
    digests_.erase(it);
    if (const auto* pull = std::get_if<PullOwner>(&owner)) {
      Tell(pull->transfer, BlockDigested{pull->ticket, d.digest});
    } else {
      const auto& send = std::get<SendOwner>(owner);
      Tell(send.key, BlockDigested{send.ticket, d.digest});
    }
  }
  return static_cast<int>(done.size());
}

int TransferAgent::RunTimers() {
  const absl::Time now = clock_.Now();
  if (now < next_tick_) return 0;
  next_tick_ = now + config_.limits.beat / 2;
  TellAll(TimePassed{}, TimePassed{});
  std::set<PeerId> active;
  bool is_wedged = false;
  for (const auto& [transfer, landing] : landings_) {
    landing->AddActivePeers(active);
    is_wedged = is_wedged || landing->IsWedged(now);
  }
  for (const auto& [key, send] : sends_) active.insert(send->peer());
  metrics_.is_wedged = is_wedged;
  for (const PeerId peer : peers_.Tick(active, now)) lost_.insert(peer);
  return 1;  // it may have sent beats: the transport is to be looked at once more
}

int TransferAgent::RunLostPeers() {
  int count = 0;
  while (!lost_.empty()) {
    const PeerId peer = *lost_.begin();
    lost_.erase(lost_.begin());
    if (!peers_.Contains(peer)) continue;
    ++metrics_.peers_lost;
    ++count;
    peers_.Drop(peer);  // first: nothing more is sent to it
    TellAll(PeerLost{peer}, PeerLost{peer});
  }
  return count;
}

void TransferAgent::UpdateGauges() {
  int64_t quarantined = 0;
  for (const auto& [transfer, landing] : landings_) quarantined += landing->NumQuarantined();
  metrics_.quarantined = quarantined;
  metrics_.open_receives = static_cast<int64_t>(pulls_.size());
  metrics_.open_landings = static_cast<int64_t>(landings_.size());
  metrics_.open_sends = static_cast<int64_t>(sends_.size());
}

// --- commands

void TransferAgent::Run(const OpenLanding& command) {
  if (landings_.contains(command.transfer)) {
    events_.push_back(
        LandingFailed{.transfer = command.transfer,
                      .attempt = command.attempt,
                      .status = absl::InternalError(absl::StrFormat(
                          "transfer %s has a landing already", command.transfer.Hex()))});
    return;
  }
  landings_[command.transfer] = std::make_unique<TransferReceiver>(command, config_.limits);
}

void TransferAgent::Run(const AddCredit& command) {
  if (landings_.contains(command.transfer)) {
    Tell(command.transfer, CreditAdded{command.memory});
    return;
  }
  for (const BlockMemory& memory : command.memory)
    events_.push_back(MemoryReturned{.transfer = command.transfer, .memory = memory});
}

void TransferAgent::Run(const RetargetLanding& command) {
  if (landings_.contains(command.transfer)) {
    Tell(command.transfer, AttemptChanged{command.attempt});
    return;
  }
  events_.push_back(LandingFailed{.transfer = command.transfer,
                                  .attempt = command.attempt,
                                  .status = absl::InternalError(absl::StrFormat(
                                      "transfer %s has no landing", command.transfer.Hex()))});
}

void TransferAgent::Run(const CloseLanding& command) {
  if (landings_.contains(command.transfer)) {
    Tell(command.transfer, Cancelled{});
  } else {
    events_.push_back(LandingClosed{command.transfer});
  }
}

TransferAgent::Senders::iterator TransferAgent::NewestSend(TransferId transfer) {
  auto it = sends_.upper_bound({transfer, std::numeric_limits<Attempt>::max()});
  if (it == sends_.begin() || (--it)->first.transfer != transfer) return sends_.end();
  return it;
}

void TransferAgent::Run(const OpenSend& command) {
  const auto newest = NewestSend(command.transfer);
  const bool is_taken = newest != sends_.end() &&
                        (newest->first.attempt >= command.attempt || !newest->second->IsDraining());
  if (is_taken) {
    events_.push_back(SendFailed{.transfer = command.transfer,
                                 .attempt = command.attempt,
                                 .status = absl::InternalError(absl::StrFormat(
                                     "transfer %s is still being sent, attempt %d",
                                     command.transfer.Hex(), newest->first.attempt))});
    return;
  }
  const PeerId peer = peers_.Connect(command.address, command.incarnation, clock_.Now());
  sends_[{command.transfer, command.attempt}] = std::make_unique<TransferSender>(
      command, TransferSender::Link{peer, config_.incarnation}, config_.limits);
}

void TransferAgent::Run(const OfferBlock& command) {
  const auto it = NewestSend(command.transfer);
  if (it == sends_.end()) return;  // released already: the engine holds the memory
  Tell(SendKey(it->first), BlockSealed{command.memory, command.name});
}

void TransferAgent::Run(const CloseSend& command) {
  const auto it = NewestSend(command.transfer);
  if (it == sends_.end()) {
    events_.push_back(SendReleased{.transfer = command.transfer});
  } else {
    Tell(SendKey(it->first), Cancelled{});
  }
}

// --- transport events

void TransferAgent::OnFrame(PeerId from, std::span<const std::byte> bytes) {
  if (!peers_.Contains(from)) return;
  const auto decoded = DecodeFrame(bytes);
  if (const auto* error = std::get_if<FrameError>(&decoded)) {
    ++metrics_.bad_frames[static_cast<size_t>(*error)];
    return;
  }
  const Frame& frame = std::get<Frame>(decoded);
  if (frame.head.receiver != config_.incarnation) {
    Count(StaleReason::kIncarnation);
    return;
  }
  peers_.Heard(from, frame.head.sender, clock_.Now());
  if (const auto* ack = std::get_if<AckBody>(&frame.body)) {
    OnBlockAnswer(from, frame, AckReceived{ack->block});
  } else if (const auto* refuse = std::get_if<RefuseBody>(&frame.body)) {
    ++metrics_.refusals_received[static_cast<size_t>(refuse->reason)];
    OnBlockAnswer(from, frame, RefuseReceived{refuse->block, refuse->reason});
  } else if (const auto* abort = std::get_if<AbortBody>(&frame.body)) {
    OnAbort(from, frame.head, abort->reason);
  } else if (const auto* ping = std::get_if<PingBody>(&frame.body)) {
    peers_.Answer(from, *ping);
  } else if (std::holds_alternative<AnnounceBody>(frame.body)) {
    ++metrics_.bad_frames[static_cast<size_t>(FrameError::kType)];  // an announce without its block
  }
}

TransferSender* TransferAgent::MatchSend(PeerId from, const FrameHead& head) {
  const auto it = sends_.find({head.transfer, head.attempt});
  if (it == sends_.end()) {
    Count(NewestSend(head.transfer) == sends_.end() ? StaleReason::kTransfer
                                                    : StaleReason::kAttempt);
    return nullptr;
  }
  const OpenSend& open = it->second->open();
  if (head.secret != open.secret) {
    Count(StaleReason::kSecret);
    return nullptr;
  }
  if (head.sender != open.incarnation || from != it->second->peer()) {
    Count(StaleReason::kIncarnation);
    return nullptr;
  }
  return it->second.get();
}

void TransferAgent::OnBlockAnswer(PeerId from, const Frame& frame, const SenderEvent& event) {
  if (MatchSend(from, frame.head) != nullptr)
    Tell(SendKey{frame.head.transfer, frame.head.attempt}, event);
}

void TransferAgent::OnAbort(PeerId from, const FrameHead& head, AbortReason reason) {
  const PeerAborted event{.peer = from, .attempt = head.attempt, .reason = reason};
  const auto send = sends_.find({head.transfer, head.attempt});
  const bool is_for_sender = send != sends_.end() && send->second->peer() == from;
  const auto landing = landings_.find(head.transfer);
  if (is_for_sender || landing == landings_.end()) {
    if (MatchSend(from, head) != nullptr) Tell(SendKey{head.transfer, head.attempt}, event);
  } else if (landing->second->open().secret != head.secret) {
    Count(StaleReason::kSecret);
  } else {
    Tell(head.transfer, event);
  }
}

void TransferAgent::OnOffer(PeerId from, OfferId offer, std::span<const std::byte> bytes,
                            uint64_t size) {
  const auto decoded = DecodeFrame(bytes);
  const auto* frame = std::get_if<Frame>(&decoded);
  const auto* announce = frame != nullptr ? std::get_if<AnnounceBody>(&frame->body) : nullptr;
  const bool is_ours = announce != nullptr && frame->head.receiver == config_.incarnation;
  if (!peers_.Contains(from) || !is_ours) {
    if (announce != nullptr) {
      Count(StaleReason::kIncarnation);
    } else {
      const FrameError error = frame != nullptr ? FrameError::kType : std::get<FrameError>(decoded);
      ++metrics_.bad_frames[static_cast<size_t>(error)];
    }
    transport_.Refuse(offer, RefuseReason::kUnknown);
    return;
  }
  const FrameHead& head = frame->head;
  peers_.Heard(from, head.sender, clock_.Now());
  if (landings_.contains(head.transfer)) {
    Tell(head.transfer, BlockOffered{from, offer, head, *announce, size});
    return;
  }
  Count(StaleReason::kTransfer);
  ++metrics_.refusals_sent[static_cast<size_t>(RefuseReason::kUnknown)];
  transport_.Refuse(offer, RefuseReason::kUnknown);
  FrameHead reply = head;
  std::swap(reply.sender, reply.receiver);
  peers_.Send(
      from,
      EncodeFrame({reply, RefuseBody{announce->block, announce->shard, RefuseReason::kUnknown}}));
}

void TransferAgent::OnPulled(ReceiveId receive, const absl::Status& status) {
  const auto it = pulls_.find(receive);
  CHECK(it != pulls_.end());
  const PullOwner owner = it->second;
  pulls_.erase(it);
  if (status.ok()) {
    ++metrics_.blocks_pulled;
    metrics_.bytes_pulled += owner.bytes;
  }
  Tell(owner.transfer, BlockPulled{owner.ticket, status});
}

void TransferAgent::OnSent(SendId send, const absl::Status& status) {
  const auto it = offers_.find(send);
  CHECK(it != offers_.end());
  const SendOwner owner = it->second;
  offers_.erase(it);
  Tell(owner.key, BlockSent{owner.ticket, status});
}

void TransferAgent::OnPeer(PeerId peer, PeerState state, const absl::Status&) {
  if (state == PeerState::kDown) {
    lost_.insert(peer);
  } else if (!peers_.Contains(peer)) {
    peers_.Accept(peer, clock_.Now());
  } else {
    peers_.Heard(peer, clock_.Now());
  }
}

}  // namespace baton::kvtransfer
