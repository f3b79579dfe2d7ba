#include "kvtransfer/ucx/ucx_transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

// Active message ids: one per frame type of contracts.md 4.1, and 0 for the hello.
constexpr unsigned kHelloId = 0;
constexpr unsigned kAnnounceId = 1;
constexpr unsigned kFirstFrameId = 2;
constexpr unsigned kLastFrameId = 6;
constexpr size_t kTypeOffset = 4;  // of the type byte in a frame
constexpr size_t kMaxFrame = 1024;
constexpr int kMaxProgress = 64;  // UCX rounds before events are delivered

// First message on an endpoint, either way: who speaks and whom the connecting side expects.
// Little-endian.
struct Hello {
  uint32_t magic = 0x484e5442;
  uint8_t kind = 1;  // 1 hello, 2 welcome
  uint8_t version = 1;
  uint16_t zero = 0;
  uint64_t own = 0;
  uint64_t expected = 0;  // of a hello
};
static_assert(sizeof(Hello) == 24);

}  // namespace

absl::StatusOr<std::unique_ptr<UcxTransport>> UcxTransport::Create(const UcxConfig& config) {
  std::unique_ptr<UcxTransport> self(new UcxTransport(config));
  if (absl::Status status = self->Start(); !status.ok()) return status;
  return self;
}

absl::Status UcxTransport::Start() {
  auto worker = UcxWorker::Create(config_);
  if (!worker.ok()) return worker.status();
  worker_ = *std::move(worker);
  auto address = SocketAddress::Parse(config_.listen);
  if (!address.ok()) return address.status();
  absl::Status status = worker_->Handle(kHelloId, &OnHello, this, /*is_data_kept=*/false);
  if (status.ok()) status = worker_->Handle(kAnnounceId, &OnAnnounce, this, /*is_data_kept=*/true);
  for (unsigned id = kFirstFrameId; id <= kLastFrameId && status.ok(); ++id)
    status = worker_->Handle(id, &OnFrameMessage, this, /*is_data_kept=*/false);
  if (status.ok()) status = worker_->Listen(*address, &OnConnect, this);
  if (!status.ok()) return status;
  address_ = worker_->ListenAddress(config_.advertise);
  return absl::OkStatus();
}

UcxTransport::~UcxTransport() {
  if (worker_ == nullptr) return;
  while (!peers_.empty()) Disconnect(peers_.begin()->first);
  // Forced closes end within a few rounds; what does not is ended by the worker's destruction.
  for (int round = 0; round < 10000 && !closing_.empty(); ++round) {
    ucp_worker_progress(worker_->get());
    FreeClosedPeers();
  }
  worker_->Shutdown();
}

absl::StatusOr<RegionId> UcxTransport::Register(std::span<std::byte> memory, MemoryKind kind) {
  if (memory.empty()) return absl::InvalidArgumentError("region of 0 bytes");
  const bool is_device = kind == MemoryKind::kDevice;
  if (is_device && !config_.can_pull_devices)
    return absl::FailedPreconditionError(
        absl::StrFormat("device memory over %s: stage it through pinned memory", config_.tls));
  auto map = worker_->Map(memory.data(), memory.size(), is_device);
  if (!map.ok()) return map.status();
  regions_.push_back({memory, is_device, *map});
  return RegionId{static_cast<uint32_t>(regions_.size() - 1)};
}

void UcxTransport::Unregister(RegionId region) {
  CHECK(region.value < regions_.size());
  worker_->Unmap(regions_[region.value].map);
  regions_[region.value] = {};
}

std::span<std::byte> UcxTransport::Bytes(const Place& place) const {
  CHECK(place.region.value < regions_.size());
  const std::span<std::byte> region = regions_[place.region.value].memory;
  CHECK(place.offset <= region.size() && place.bytes <= region.size() - place.offset);
  return region.subspan(place.offset, place.bytes);
}

UcxTransport::Peer* UcxTransport::AddPeer(bool is_outgoing) {
  auto peer = std::make_unique<Peer>();
  peer->owner = this;
  peer->id = PeerId{next_id_++};
  peer->is_outgoing = is_outgoing;
  Peer* raw = peer.get();
  peers_[raw->id] = std::move(peer);
  return raw;
}

UcxTransport::Peer* UcxTransport::Find(PeerId id) const {
  const auto it = peers_.find(id);
  return it == peers_.end() ? nullptr : it->second.get();
}

void UcxTransport::KeepSelfTest(PeerId peer, double gbps) {
  const Peer* found = Find(peer);
  facts_ = {.transports = found == nullptr ? "" : EndpointTransports(found->endpoint),
            .self_test_gbps = gbps};
}

UcxTransport::Peer* UcxTransport::FindReplyPeer(const ucp_am_recv_param_t* param) const {
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return nullptr;
  const auto it = by_endpoint_.find(param->reply_ep);
  return it == by_endpoint_.end() || it->second->is_down ? nullptr : it->second;
}

PeerId UcxTransport::Connect(std::string_view address, Incarnation expected) {
  Peer& peer = *AddPeer(/*is_outgoing=*/true);
  peer.expected = expected;
  const auto parsed = SocketAddress::Parse(address);
  if (!parsed.ok()) {
    MarkDown(peer, parsed.status());
    return peer.id;
  }
  const auto endpoint = worker_->Connect(*parsed, &OnEndpointError, &peer);
  if (!endpoint.ok()) {
    MarkDown(peer, endpoint.status());
    return peer.id;
  }
  peer.endpoint = *endpoint;
  by_endpoint_[peer.endpoint] = &peer;
  SendHello(peer, /*is_welcome=*/false);
  return peer.id;
}

void UcxTransport::SendHello(Peer& peer, bool is_welcome) {
  Hello hello;
  hello.kind = is_welcome ? 2 : 1;
  hello.own = config_.incarnation.value;
  hello.expected = is_welcome ? 0 : peer.expected.value;
  Post(NewMessage(peer, kHelloId, std::as_bytes(std::span(&hello, 1))));
}

std::unique_ptr<UcxTransport::Message> UcxTransport::NewMessage(Peer& peer, unsigned am_id,
                                                                std::span<const std::byte> header) {
  auto message = std::make_unique<Message>();
  message->owner = this;
  message->id = next_id_++;
  message->peer = &peer;
  message->am_id = am_id;
  message->header.assign(header.begin(), header.end());
  return message;
}

void UcxTransport::PostOrWait(std::unique_ptr<Message> message) {
  Peer& peer = *message->peer;
  if (peer.is_up) {
    Post(std::move(message));
  } else {
    if (message->send.value == 0) ++peer.open_frames;
    peer.waiting.push_back(std::move(message));
  }
}

void UcxTransport::DropWaiting(Peer& peer) {
  for (const auto& message : peer.waiting)
    if (message->send.value != 0)
      queue_.push_back(SendDone{message->send, absl::UnavailableError("peer was never up")});
  peer.waiting.clear();
}

void UcxTransport::Post(std::unique_ptr<Message> owned) {
  Message& message = *owned;
  messages_[message.id] = std::move(owned);
  if (message.send.value == 0) ++message.peer->open_frames;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.flags = message.flags | UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &OnMessageSent;
  param.user_data = &message;
  param.memory_type = message.is_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(message.peer->endpoint, message.am_id, message.header.data(),
                      message.header.size(), message.data.data(), message.data.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) MessageDone(message, UCS_PTR_STATUS(request));
}

void UcxTransport::MessageDone(Message& message, ucs_status_t status) {
  if (message.send.value == 0) {
    --message.peer->open_frames;
  } else {
    queue_.push_back(
        SendDone{message.send, status == UCS_OK ? absl::OkStatus() : UcxError(status, "send")});
  }
  messages_.erase(message.id);
}

void UcxTransport::OnMessageSent(void* request, ucs_status_t status, void* user_data) {
  auto& message = *static_cast<Message*>(user_data);
  message.owner->MessageDone(message, status);
  ucp_request_free(request);
}

absl::Status UcxTransport::SendFrame(PeerId to, std::span<const std::byte> frame) {
  Peer* peer = Find(to);
  if (peer == nullptr || peer->is_down)
    return absl::UnavailableError(absl::StrFormat("peer %d is down", to.value));
  const unsigned id =
      frame.size() > kTypeOffset ? std::to_integer<unsigned>(frame[kTypeOffset]) : 0;
  if (frame.size() > kMaxFrame || id < kFirstFrameId || id > kLastFrameId)
    return absl::InvalidArgumentError(
        absl::StrFormat("frame of %d bytes (at most %d) and type %d", frame.size(), kMaxFrame, id));
  if (peer->open_frames >= config_.max_open_frames)
    return absl::ResourceExhaustedError(
        absl::StrFormat("%d frames wait for peer %d", peer->open_frames, to.value));
  auto message = NewMessage(*peer, id, frame);
  message->flags = UCP_AM_SEND_FLAG_EAGER;
  PostOrWait(std::move(message));
  return absl::OkStatus();
}

SendId UcxTransport::Offer(PeerId to, std::span<const std::byte> announce, Place from) {
  CHECK(announce.size() <= kMaxFrame);
  const std::span<std::byte> data = Bytes(from);
  const SendId send{next_id_++};
  Peer* peer = Find(to);
  if (peer == nullptr || peer->is_down) {
    queue_.push_back(
        SendDone{send, absl::UnavailableError(absl::StrFormat("peer %d is down", to.value))});
    return send;
  }
  const bool is_device = regions_[from.region.value].is_device;
  const bool is_pulled = is_device || config_.can_pull_hosts;
  auto message = NewMessage(*peer, kAnnounceId, announce);
  message->send = send;
  message->flags = is_pulled ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
  message->is_device = is_device;
  message->data = data;
  PostOrWait(std::move(message));
  return send;
}

ReceiveId UcxTransport::Pull(OfferId offer_id, Place to) {
  const std::span<std::byte> target = Bytes(to);
  const ReceiveId receive{next_id_++};
  const auto it = offers_.find(offer_id);
  if (it == offers_.end()) {
    queue_.push_back(PullDone{receive, absl::UnavailableError("the offer's peer is gone")});
    return receive;
  }
  const OpenOffer offer = it->second;
  offers_.erase(it);
  CHECK(offer.bytes == to.bytes);
  if (offer.is_rendezvous || regions_[to.region.value].is_device) {
    StartReceive(receive, offer, to);
    return receive;
  }
  // UCX 1.13 leaks the descriptor of a message of several fragments in ucp_am_recv_data_nbx.
  std::memcpy(target.data(), offer.data, target.size());
  ucp_am_data_release(worker_->get(), offer.data);
  queue_.push_back(PullDone{receive, absl::OkStatus()});
  return receive;
}

void UcxTransport::StartReceive(ReceiveId receive, const OpenOffer& offer, Place to) {
  const std::span<std::byte> target = Bytes(to);
  auto owned = std::make_unique<OpenPull>();
  owned->owner = this;
  owned->receive = receive;
  owned->peer = offer.peer;
  owned->is_device = regions_[to.region.value].is_device;
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.recv_am = &OnDataReceived;
  param.user_data = owned.get();
  param.memory_type = owned->is_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  if (owned->is_device) ++num_device_pulls_;
  pulls_[receive] = std::move(owned);
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_->get(), offer.data, target.data(), target.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) EndPull(receive, UCS_PTR_STATUS(request));
}

void UcxTransport::EndPull(ReceiveId receive, ucs_status_t status) {
  const auto it = pulls_.find(receive);
  if (it->second->is_device) --num_device_pulls_;
  pulls_.erase(it);
  queue_.push_back(
      PullDone{receive, status == UCS_OK ? absl::OkStatus() : UcxError(status, "pull")});
}

void UcxTransport::OnDataReceived(void* request, ucs_status_t status, size_t, void* user_data) {
  const auto& pull = *static_cast<OpenPull*>(user_data);
  pull.owner->EndPull(pull.receive, status);
  ucp_request_free(request);
}

void UcxTransport::Refuse(OfferId offer_id, RefuseReason) {
  const auto it = offers_.find(offer_id);
  if (it == offers_.end()) return;
  ucp_am_data_release(worker_->get(), it->second.data);
  offers_.erase(it);
}

void UcxTransport::Disconnect(PeerId id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  std::unique_ptr<Peer> peer = std::move(it->second);
  peers_.erase(it);
  peer->is_down = true;
  DropWaiting(*peer);
  std::erase_if(offers_, [&](const auto& entry) {
    if (entry.second.peer != peer.get()) return false;
    ucp_am_data_release(worker_->get(), entry.second.data);
    return true;
  });
  if (peer->endpoint != nullptr) {
    by_endpoint_.erase(peer->endpoint);
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    const ucs_status_ptr_t request = ucp_ep_close_nbx(peer->endpoint, &param);
    if (UCS_PTR_IS_PTR(request)) peer->closing = request;
  }
  closing_.push_back(std::move(peer));
}

void UcxTransport::FreeClosedPeers() {
  std::erase_if(closing_, [this](const std::unique_ptr<Peer>& peer) {
    if (peer->closing != nullptr) {
      if (ucp_request_check_status(peer->closing) == UCS_INPROGRESS) return false;
      ucp_request_free(peer->closing);
      peer->closing = nullptr;
    }
    const auto is_of_peer = [&](const auto& entry) { return entry.second->peer == peer.get(); };
    return std::ranges::none_of(messages_, is_of_peer) && std::ranges::none_of(pulls_, is_of_peer);
  });
}

void UcxTransport::MarkDown(Peer& peer, absl::Status status) {
  if (peer.is_down) return;
  peer.is_down = true;
  queue_.push_back(StateChange{peer.id, PeerState::kDown, std::move(status)});
}

void UcxTransport::OnConnect(ucp_conn_request_h request, void* arg) {
  auto& self = *static_cast<UcxTransport*>(arg);
  if (self.peers_.size() >= self.config_.max_peers) {
    self.worker_->Reject(request);
    return;
  }
  Peer& peer = *self.AddPeer(/*is_outgoing=*/false);
  const auto endpoint = self.worker_->Accept(request, &OnEndpointError, &peer);
  if (!endpoint.ok()) {
    self.peers_.erase(peer.id);
    return;
  }
  peer.endpoint = *endpoint;
  self.by_endpoint_[peer.endpoint] = &peer;
}

void UcxTransport::OnEndpointError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto& peer = *static_cast<Peer*>(arg);
  peer.owner->MarkDown(peer, UcxError(status, absl::StrFormat("peer %d", peer.id.value)));
}

ucs_status_t UcxTransport::OnHello(void* arg, const void* header, size_t header_bytes, void*,
                                   size_t, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxTransport*>(arg);
  Peer* peer = self.FindReplyPeer(param);
  if (peer != nullptr)
    self.HandleHello(*peer, {static_cast<const std::byte*>(header), header_bytes});
  return UCS_OK;
}

void UcxTransport::HandleHello(Peer& peer, std::span<const std::byte> bytes) {
  Hello hello;
  const Hello ours;
  if (bytes.size() == sizeof(hello)) std::memcpy(&hello, bytes.data(), sizeof(hello));
  const uint8_t kind = peer.is_outgoing ? 2 : 1;
  if (bytes.size() != sizeof(hello) || hello.magic != ours.magic || hello.version != ours.version ||
      hello.kind != kind) {
    MarkDown(peer, absl::FailedPreconditionError(
                       absl::StrFormat("hello of %d bytes, version %d, kind %d", bytes.size(),
                                       hello.version, hello.kind)));
    return;
  }
  const uint64_t expected = peer.is_outgoing ? peer.expected.value : hello.expected;
  const uint64_t found = peer.is_outgoing ? hello.own : config_.incarnation.value;
  // The welcome names our incarnation even to a peer that expects another, so that it learns why.
  if (!peer.is_outgoing) SendHello(peer, /*is_welcome=*/true);
  if (expected != found) {
    if (peer.is_outgoing)
      MarkDown(peer, absl::FailedPreconditionError(absl::StrFormat(
                         "peer is incarnation %016x, expected %016x", found, expected)));
    return;  // an accepted peer stays silent until it closes
  }
  if (peer.is_up) return;
  peer.is_own = hello.own == config_.incarnation.value;
  if (config_.can_pull_devices && !peer.is_own) {
    absl::Status lane = CheckDeviceLane(peer.endpoint, config_.tls);
    if (!lane.ok()) return MarkDown(peer, std::move(lane));
  }
  peer.is_up = true;
  queue_.push_back(StateChange{peer.id, PeerState::kUp, absl::OkStatus()});
  // Posted by Progress, outside the callback that brought the welcome.
  greeted_.push_back(peer.id);
}

ucs_status_t UcxTransport::OnFrameMessage(void* arg, const void* header, size_t header_bytes, void*,
                                          size_t bytes, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxTransport*>(arg);
  const Peer* peer = self.FindReplyPeer(param);
  if (peer == nullptr || !peer->is_up || bytes != 0 || header_bytes > kMaxFrame) return UCS_OK;
  const auto* first = static_cast<const std::byte*>(header);
  self.queue_.push_back(FrameArrival{peer->id, {first, first + header_bytes}});
  return UCS_OK;
}

ucs_status_t UcxTransport::OnAnnounce(void* arg, const void* header, size_t header_bytes,
                                      void* data, size_t bytes, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxTransport*>(arg);
  Peer* peer = self.FindReplyPeer(param);
  const bool is_ours_to_keep =
      (param->recv_attr & (UCP_AM_RECV_ATTR_FLAG_DATA | UCP_AM_RECV_ATTR_FLAG_RNDV)) != 0;
  if (peer == nullptr || !peer->is_up || !is_ours_to_keep || header_bytes > kMaxFrame)
    return UCS_OK;
  const OfferId offer{self.next_id_++};
  self.offers_[offer] = {peer, data, bytes, (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0};
  const auto* first = static_cast<const std::byte*>(header);
  self.queue_.push_back(OfferArrival{peer->id, offer, {first, first + header_bytes}});
  return UCS_INPROGRESS;
}

void UcxTransport::PostWaiting() {
  for (const PeerId id : std::exchange(greeted_, {})) {
    Peer* peer = Find(id);
    while (peer != nullptr && !peer->waiting.empty()) {
      std::unique_ptr<Message> message = std::move(peer->waiting.front());
      peer->waiting.pop_front();
      if (message->send.value == 0) --peer->open_frames;  // Post counts it again
      Post(std::move(message));
    }
  }
}

int UcxTransport::Progress(TransportEvents& events) {
  int delivered = 0;
  for (int attempt = 0; attempt < 8 && delivered == 0; ++attempt) {
    for (int round = 0; round < kMaxProgress && ucp_worker_progress(worker_->get()) != 0; ++round) {
    }
    FreeClosedPeers();
    PostWaiting();
    for (size_t left = queue_.size(); left > 0; --left, ++delivered) {
      const Item item = std::move(queue_.front());
      queue_.pop_front();
      std::visit([&](const auto& i) { Deliver(i, events); }, item);
    }
    if (delivered == 0 && queue_.empty() && worker_->Arm()) return 0;
  }
  return std::max(delivered, 1);  // not armed: the caller comes again
}

void UcxTransport::Deliver(const StateChange& item, TransportEvents& events) {
  const Peer* peer = Find(item.peer);
  if (peer == nullptr) return;
  if (item.state == PeerState::kDown && !peer->is_outgoing && !peer->is_up) {
    Disconnect(item.peer);  // was never told of
    return;
  }
  events.OnPeer(item.peer, item.state, item.status);
}

void UcxTransport::Deliver(const FrameArrival& item, TransportEvents& events) {
  if (Find(item.from) != nullptr) events.OnFrame(item.from, item.bytes);
}

void UcxTransport::Deliver(const OfferArrival& item, TransportEvents& events) {
  const auto it = offers_.find(item.offer);
  if (it != offers_.end()) events.OnOffer(item.from, item.offer, item.announce, it->second.bytes);
}

void UcxTransport::Deliver(const PullDone& item, TransportEvents& events) {
  events.OnPulled(item.receive, item.status);
}

void UcxTransport::Deliver(const SendDone& item, TransportEvents& events) {
  events.OnSent(item.send, item.status);
}

}  // namespace baton::kvtransfer
