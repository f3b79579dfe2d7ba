#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"

#include "common/clock.h"
#include "kvtransfer/agent.h"
#include "kvtransfer/digester.h"
#include "kvtransfer/limits.h"
#include "kvtransfer/metrics.h"
#include "kvtransfer/peer_table.h"
#include "kvtransfer/receiver.h"
#include "kvtransfer/sender.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

struct AgentConfig {
  Incarnation incarnation;  // of this process; the transport's peers expect the same
  TransferLimits limits;
};

// Everything between the engine and a Transport: routes frames to the machines of their transfers,
// executes the machines' actions, beats, and gives up on silent peers. Lives on the transfer thread
// (AgentThread), or on the one thread of a simulation; only metrics() may be read elsewhere.
class TransferAgent final : private TransportEvents {
 public:
  TransferAgent(const AgentConfig& config, Transport& transport, Digester& digester,
                const Clock& clock);
  ~TransferAgent() override = default;

  void Execute(AgentCommand command);
  // Progress, digests, timers. Never waits; returns how much happened (0: nothing to do before
  // NextTimer or a wake-up).
  int RunOnce();
  // Events for the engine, oldest first.
  std::vector<AgentEvent> TakeEvents() { return std::exchange(events_, {}); }

  // A receive stays open though its landing is long closed: readiness off (contracts.md 4.3).
  bool IsWedged() const { return metrics_.is_wedged; }
  // When RunOnce is due even if nothing arrives; InfiniteFuture if nothing is going on.
  absl::Time NextTimer() const;
  // Digests or copies are running, or frames wait for room: poll rather than sleep.
  bool MustPoll() const { return !digests_.empty() || peers_.HasUnsent() || transport_.MustPoll(); }
  size_t NumOpenReceives() const { return pulls_.size(); }
  const TransferMetrics& metrics() const { return metrics_; }

 private:
  // Names one attempt at the source.
  struct SendKey {
    TransferId transfer;
    Attempt attempt = 0;
    auto operator<=>(const SendKey&) const = default;
  };
  struct PullOwner {
    TransferId transfer;
    Ticket ticket;
    uint64_t bytes = 0;
  };
  struct SendOwner {
    SendKey key;
    Ticket ticket;
  };
  using Owner = std::variant<PullOwner, SendOwner>;  // of a digest
  using Senders = std::map<SendKey, std::unique_ptr<TransferSender>>;
  class ActionRunner;

  // TransportEvents
  void OnFrame(PeerId from, std::span<const std::byte> frame) override;
  void OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
               uint64_t bytes) override;
  void OnPulled(ReceiveId receive, const absl::Status& status) override;
  void OnSent(SendId send, const absl::Status& status) override;
  void OnPeer(PeerId peer, PeerState state, const absl::Status& status) override;

  void Run(const OpenLanding& command);
  void Run(const AddCredit& command);
  void Run(const RetargetLanding& command);
  void Run(const CloseLanding& command);
  void Run(const OpenSend& command);
  void Run(const OfferBlock& command);
  void Run(const CloseSend& command);

  // Feeds one machine and executes what it asks for. Forgets a machine that is done.
  void Tell(TransferId transfer, const ReceiverEvent& event);
  void Tell(const SendKey& key, const SenderEvent& event);
  void TellAll(const ReceiverEvent& to_landings, const SenderEvent& to_sends);

  void OnBlockAnswer(PeerId from, const Frame& frame, const SenderEvent& event);
  void OnAbort(PeerId from, const FrameHead& head, AbortReason reason);
  // The sender a frame names, if all it names fits; else counted.
  TransferSender* MatchSend(PeerId from, const FrameHead& head);
  // The newest attempt of a transfer, or end().
  Senders::iterator NewestSend(TransferId transfer);
  void Count(StaleReason reason) { ++metrics_.stale_frames[static_cast<size_t>(reason)]; }

  int RunDigests();
  int RunTimers();
  // Peers that are down, silent or to be closed: tells the machines, then the transport.
  int RunLostPeers();
  void UpdateGauges();

  const AgentConfig config_;
  Transport& transport_;
  Digester& digester_;
  const Clock& clock_;
  TransferMetrics metrics_;
  PeerTable peers_;
  std::map<TransferId, std::unique_ptr<TransferReceiver>> landings_;
  Senders sends_;
  std::map<ReceiveId, PullOwner> pulls_;
  std::map<SendId, SendOwner> offers_;
  std::map<DigestJob, Owner> digests_;
  uint64_t next_job_ = 1;
  std::set<PeerId> lost_;
  absl::Time next_tick_ = absl::InfinitePast();
  std::vector<AgentEvent> events_;
};

}  // namespace baton::kvtransfer
