#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include <ucp/api/ucp.h>

#include "kvtransfer/transport.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace baton::kvtransfer {

// Transport over UCX active messages (contracts.md 4.6). A block rides on its announce: eagerly for
// host memory, so that the receiver copies it and nothing can land late, by rendezvous for device
// memory that a peer can pull. UCX callbacks only queue; every event is delivered, and every
// endpoint closed, outside of them. One thread.
class UcxTransport final : public Transport {
 public:
  static absl::StatusOr<std::unique_ptr<UcxTransport>> Create(const UcxConfig& config);
  ~UcxTransport() override;

  absl::StatusOr<RegionId> Register(std::span<std::byte> memory, MemoryKind kind) override;
  std::string Address() const override { return address_; }
  PeerId Connect(std::string_view address, Incarnation expected) override;
  absl::Status SendFrame(PeerId to, std::span<const std::byte> frame) override;
  SendId Offer(PeerId to, std::span<const std::byte> announce, Place from) override;
  ReceiveId Pull(OfferId offer, Place to) override;
  void Refuse(OfferId offer, RefuseReason reason) override;
  void Disconnect(PeerId peer) override;
  int Progress(TransportEvents& events) override;
  int WakeFd() const override { return worker_->event_fd(); }
  // Pulls over cuda_ipc end without a descriptor telling so, and epoll slows them down.
  bool MustPoll() const override { return num_device_pulls_ > 0; }
  TransportFacts Facts(PeerId) const override { return facts_; }

  // Ends a registration early; no send or pull may use it any more.
  void Unregister(RegionId region);
  Incarnation incarnation() const { return config_.incarnation; }
  // The self-test's result: its rate, and what carried its blocks to `peer`.
  void KeepSelfTest(PeerId peer, double gbps);

 private:
  struct Region {
    std::span<std::byte> memory;
    bool is_device = false;
    ucp_mem_h map = nullptr;
  };
  struct Message;
  struct Peer {
    UcxTransport* owner = nullptr;
    PeerId id;
    ucp_ep_h endpoint = nullptr;
    bool is_outgoing = false;
    Incarnation expected;  // of an outgoing peer
    bool is_up = false;    // hellos exchanged
    bool is_own = false;   // this process itself
    bool is_down = false;  // UCX or the hello said so
    size_t open_frames = 0;
    void* closing = nullptr;  // the close request, once disconnected
    // Until it is up: UCX 1.13 loses eager messages of several fragments that are posted while an
    // endpoint is wired up.
    std::deque<std::unique_ptr<Message>> waiting{};
  };
  // One active message on its way: UCX reads header and memory until it says so.
  struct Message {
    UcxTransport* owner = nullptr;
    uint64_t id = 0;
    Peer* peer = nullptr;
    SendId send;  // 0: a frame
    unsigned am_id = 0;
    uint32_t flags = 0;
    bool is_device = false;
    std::vector<std::byte> header;
    std::span<const std::byte> data;
  };
  struct OpenPull {
    UcxTransport* owner = nullptr;
    ReceiveId receive;
    Peer* peer = nullptr;
    bool is_device = false;
  };
  struct OpenOffer {
    Peer* peer = nullptr;
    void* data = nullptr;  // UCX's descriptor, ours to receive or release
    uint64_t bytes = 0;
    bool is_rendezvous = false;  // else `data` is the block itself
  };

  // Queued by callbacks, delivered by Progress.
  struct StateChange {
    PeerId peer;
    PeerState state = PeerState::kUp;
    absl::Status status;
  };
  struct FrameArrival {
    PeerId from;
    std::vector<std::byte> bytes;
  };
  struct OfferArrival {
    PeerId from;
    OfferId offer;
    std::vector<std::byte> announce;
  };
  struct PullDone {
    ReceiveId receive;
    absl::Status status;
  };
  struct SendDone {
    SendId send;
    absl::Status status;
  };
  using Item = std::variant<StateChange, FrameArrival, OfferArrival, PullDone, SendDone>;

  explicit UcxTransport(const UcxConfig& config) : config_(config) {}

  absl::Status Start();
  // UCX callbacks; the first argument is this, or what `user_data` named.
  static void OnConnect(ucp_conn_request_h request, void* arg);
  static void OnEndpointError(void* arg, ucp_ep_h endpoint, ucs_status_t status);
  static ucs_status_t OnHello(void* arg, const void* header, size_t header_bytes, void* data,
                              size_t bytes, const ucp_am_recv_param_t* param);
  static ucs_status_t OnFrameMessage(void* arg, const void* header, size_t header_bytes, void* data,
                                     size_t bytes, const ucp_am_recv_param_t* param);
  static ucs_status_t OnAnnounce(void* arg, const void* header, size_t header_bytes, void* data,
                                 size_t bytes, const ucp_am_recv_param_t* param);
  static void OnMessageSent(void* request, ucs_status_t status, void* user_data);
  static void OnDataReceived(void* request, ucs_status_t status, size_t bytes, void* user_data);

  // Reads a block into `to` by UCX; the answer may come later.
  void StartReceive(ReceiveId receive, const OpenOffer& offer, Place to);
  Peer* AddPeer(bool is_outgoing);
  Peer* Find(PeerId id) const;
  Peer* FindReplyPeer(const ucp_am_recv_param_t* param) const;
  void HandleHello(Peer& peer, std::span<const std::byte> hello);
  void SendHello(Peer& peer, bool is_welcome);
  std::unique_ptr<Message> NewMessage(Peer& peer, unsigned am_id,
                                      std::span<const std::byte> header);
  // Now, or when the peer is up.
  void PostOrWait(std::unique_ptr<Message> message);
  void Post(std::unique_ptr<Message> message);
  void PostWaiting();
  void EndPull(ReceiveId receive, ucs_status_t status);
  void DropWaiting(Peer& peer);
  void MessageDone(Message& message, ucs_status_t status);
  void MarkDown(Peer& peer, absl::Status status);
  void FreeClosedPeers();
  std::span<std::byte> Bytes(const Place& place) const;

  void Deliver(const StateChange& item, TransportEvents& events);
  void Deliver(const FrameArrival& item, TransportEvents& events);
  void Deliver(const OfferArrival& item, TransportEvents& events);
  void Deliver(const PullDone& item, TransportEvents& events);
  void Deliver(const SendDone& item, TransportEvents& events);

  const UcxConfig config_;
  std::unique_ptr<UcxWorker> worker_;
  std::string address_;
  TransportFacts facts_;
  std::vector<Region> regions_;
  std::map<PeerId, std::unique_ptr<Peer>> peers_;
  std::unordered_map<ucp_ep_h, Peer*> by_endpoint_;
  std::vector<std::unique_ptr<Peer>> closing_;  // until their endpoint is gone and nothing is open
  std::map<uint64_t, std::unique_ptr<Message>> messages_;
  std::map<ReceiveId, std::unique_ptr<OpenPull>> pulls_;
  size_t num_device_pulls_ = 0;  // of pulls_
  std::map<OfferId, OpenOffer> offers_;
  std::vector<PeerId> greeted_;  // came up: what waits for them is to be posted
  std::deque<Item> queue_;
  uint64_t next_id_ = 1;  // one counter for every kind of id
};

}  // namespace baton::kvtransfer
