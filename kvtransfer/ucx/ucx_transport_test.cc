#include "kvtransfer/ucx/ucx_transport.h"

#include <gtest/gtest.h>
#include <set>
#include <string>

#include "common/clock.h"
#include "kvtransfer/agent_thread.h"
#include "kvtransfer/ucx/self_test.h"
#include "kvtransfer/ucx/test_node.h"

namespace baton::kvtransfer {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

UcxConfig ConfigOf(uint64_t incarnation, const std::string& tls = "tcp,self") {
  UcxConfig config;
  config.incarnation = Incarnation{incarnation};
  config.tls = tls;
  return config;
}

// Records what a transport says.
class Recorder final : public TransportEvents {
 public:
  void OnFrame(PeerId from, std::span<const std::byte> frame) override {
    last_from = from;
    frames.emplace_back(frame.begin(), frame.end());
  }
  void OnOffer(PeerId, OfferId offer, std::span<const std::byte> announce,
               uint64_t bytes) override {
    offers.push_back(offer);
    announces.emplace_back(announce.begin(), announce.end());
    offered_bytes = bytes;
  }
  void OnPulled(ReceiveId, const absl::Status& status) override { pulled.push_back(status); }
  void OnSent(SendId, const absl::Status& status) override { sent.push_back(status); }
  void OnPeer(PeerId peer, PeerState state, const absl::Status& status) override {
    (state == PeerState::kUp ? up : down).push_back(peer);
    last_status = status;
  }

  PeerId last_from;
  std::vector<std::vector<std::byte>> frames, announces;
  std::vector<OfferId> offers;
  uint64_t offered_bytes = 0;
  std::vector<absl::Status> pulled, sent;
  std::vector<PeerId> up, down;
  absl::Status last_status;
};

TEST(UcxTransport, SaysWhereUcxCannotReachGpuMemory) {
  UcxConfig config = ConfigOf(1, "tcp,cuda_ipc,cuda_copy,self");
  config.can_pull_devices = true;
  unsetenv("UCX_MEMTYPE_CACHE");
  absl::Status status = UcxTransport::Create(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("UCX_MEMTYPE_CACHE"), absl::string_view::npos) << status;
  setenv("UCX_MEMTYPE_CACHE", "n", 1);
  status = UcxTransport::Create(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("cannot reach GPU memory"), absl::string_view::npos) << status;
}

class UcxTransportTest : public ::testing::Test {
 protected:
  UcxTransportTest()
      : a_(*UcxTransport::Create(ConfigOf(1))), b_(*UcxTransport::Create(ConfigOf(2))) {
    for (std::vector<std::byte>* memory : {&memory_a_, &memory_b_}) memory->resize(1 << 20);
    region_a_ = *a_->Register(memory_a_, MemoryKind::kHost);
    region_b_ = *b_->Register(memory_b_, MemoryKind::kHost);
  }
  bool RunUntil(const std::function<bool()>& done) {
    const absl::Time end = clock_.Now() + kPatience;
    while (!done() && clock_.Now() < end) {
      a_->Progress(events_a_);
      b_->Progress(events_b_);
    }
    return done();
  }

  SteadyClock clock_;
  std::vector<std::byte> memory_a_, memory_b_;
  std::unique_ptr<UcxTransport> a_, b_;
  RegionId region_a_, region_b_;
  Recorder events_a_, events_b_;
};

TEST_F(UcxTransportTest, CarriesFramesBothWays) {
  const PeerId to_b = a_->Connect(b_->Address(), Incarnation{2});
  std::vector<std::byte> frame(72, std::byte{5});
  frame[4] = std::byte{2};
  ASSERT_TRUE(a_->SendFrame(to_b, frame).ok());  // queued before the peer is up
  ASSERT_TRUE(RunUntil([&] { return events_b_.frames.size() == 1 && events_a_.up.size() == 1; }));
  EXPECT_EQ(events_b_.frames[0], frame);
  ASSERT_EQ(events_b_.up.size(), 1u);
  EXPECT_EQ(events_b_.last_from, events_b_.up[0]);
  frame[4] = std::byte{6};
  ASSERT_TRUE(b_->SendFrame(events_b_.last_from, frame).ok());
  ASSERT_TRUE(RunUntil([&] { return events_a_.frames.size() == 1; }));
  EXPECT_EQ(events_a_.frames[0], frame);
  EXPECT_EQ(events_a_.last_from, to_b);
}

TEST_F(UcxTransportTest, PullsAndRefusesOffers) {
  FillPattern(memory_a_, 9);
  const PeerId to_b = a_->Connect(b_->Address(), Incarnation{2});
  const std::vector<std::byte> announce(120, std::byte{7});
  a_->Offer(to_b, announce, {region_a_, 8, 300000});
  a_->Offer(to_b, announce, {region_a_, 0, 5});
  ASSERT_TRUE(RunUntil([&] { return events_b_.offers.size() == 2; }));
  EXPECT_EQ(events_b_.announces[0], announce);
  EXPECT_EQ(events_b_.offered_bytes, 5u);
  b_->Pull(events_b_.offers[0], {region_b_, 1000, 300000});
  b_->Refuse(events_b_.offers[1], RefuseReason::kStale);
  ASSERT_TRUE(RunUntil([&] { return events_b_.pulled.size() == 1 && events_a_.sent.size() == 2; }));
  EXPECT_TRUE(events_b_.pulled[0].ok());
  EXPECT_TRUE(
      std::equal(memory_a_.begin() + 8, memory_a_.begin() + 300008, memory_b_.begin() + 1000));
  EXPECT_EQ(memory_b_[999], std::byte{0});
  EXPECT_EQ(memory_b_[301000], std::byte{0});
}

TEST_F(UcxTransportTest, TellsAWrongIncarnation) {
  const PeerId to_b = a_->Connect(b_->Address(), Incarnation{3});
  const SendId send = a_->Offer(to_b, {}, {region_a_, 0, 100});
  EXPECT_NE(send.value, 0u);
  ASSERT_TRUE(RunUntil([&] { return events_a_.down.size() == 1; }));
  EXPECT_EQ(events_a_.last_status.code(), absl::StatusCode::kFailedPrecondition);
  a_->Disconnect(to_b);
  ASSERT_TRUE(RunUntil([&] { return events_a_.sent.size() == 1; }));
  EXPECT_FALSE(events_a_.sent[0].ok());
  EXPECT_TRUE(events_b_.up.empty());
  EXPECT_TRUE(events_b_.offers.empty());
}

TEST_F(UcxTransportTest, TellsThatNobodyListens) {
  a_->Connect("127.0.0.1:1", Incarnation{2});
  ASSERT_TRUE(RunUntil([&] { return events_a_.down.size() == 1; }));
  EXPECT_EQ(events_a_.last_status.code(), absl::StatusCode::kUnavailable);
  a_->Connect("no numeric host:5", Incarnation{2});
  ASSERT_TRUE(RunUntil([&] { return events_a_.down.size() == 2; }));
  EXPECT_EQ(events_a_.last_status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(UcxTransportTest, CompletesEverythingAfterDisconnect) {
  const PeerId to_b = a_->Connect(b_->Address(), Incarnation{2});
  for (int i = 0; i < 20; ++i)
    a_->Offer(to_b, std::vector<std::byte>(120), {region_a_, 0, 1 << 20});
  ASSERT_TRUE(RunUntil([&] { return !events_b_.offers.empty(); }));
  a_->Disconnect(to_b);
  b_->Disconnect(events_b_.up[0]);
  const size_t offers = events_b_.offers.size();
  ASSERT_TRUE(RunUntil([&] { return events_a_.sent.size() == 20; }));
  b_->Pull(events_b_.offers[0], {region_b_, 0, 1 << 20});  // gone: answered all the same
  ASSERT_TRUE(RunUntil([&] { return events_b_.pulled.size() == 1; }));
  EXPECT_FALSE(events_b_.pulled[0].ok());
  EXPECT_EQ(events_b_.offers.size(), offers);
  EXPECT_EQ(a_->SendFrame(to_b, {}).code(), absl::StatusCode::kUnavailable);
}

TEST_F(UcxTransportTest, MeasuresItselfOverLoopback) {
  ASSERT_TRUE(SelfTest(*a_, clock_, {}).ok());
  EXPECT_GT(a_->Facts(PeerId{}).self_test_gbps, 0.05);
  EXPECT_EQ(a_->Facts(PeerId{}).transports, "tcp");
  SelfTestConfig impossible;
  impossible.min_gbps = 1e6;
  EXPECT_EQ(SelfTest(*a_, clock_, impossible).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(UcxLanesTest, NamesEachTransportOnce) {
  EXPECT_EQ(TransportsOfLanes("# UCP endpoint\n#\n"
                              "#       lane[0]: cm rdmacm\n"
                              "#       lane[3]:  2:rc_mlx5/mlx5_0:1.0 md[2]  -> md[2]/ib am rndv\n"
                              "#       lane[1]:  3:rc_mlx5/mlx5_1:1.0 md[3]  -> md[3]/ib rndv\n"
                              "#       lane[2]: 14:tcp/eth0.1 md[1]  -> md[1]/tcp\n"),
            "rc_mlx5,tcp");
  EXPECT_EQ(TransportsOfLanes(""), "");
  EXPECT_EQ(TransportsOfLanes("lane[0]: cm tcp\n#  lane[1]:\nlane[\nlane[2]: 1:tcp"), "");
}

TEST(UcxConfigTest, NamesWhatItCannotDo) {
  UcxConfig bad_address = ConfigOf(1);
  bad_address.listen = "localhost";
  EXPECT_EQ(UcxTransport::Create(bad_address).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(UcxTransport::Create(ConfigOf(1, "no_such_transport")).ok());
  auto transport = *UcxTransport::Create(ConfigOf(1));
  std::byte byte{};
  EXPECT_EQ(transport->Register(std::span(&byte, 1), MemoryKind::kDevice).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SocketAddressTest, ReadsAndWritesBothFamilies) {
  for (const char* text : {"127.0.0.1:80", "[::1]:8080"}) {
    const auto address = SocketAddress::Parse(text);
    ASSERT_TRUE(address.ok());
    EXPECT_EQ(FormatSocketAddress(address->storage, ""), text);
  }
  EXPECT_EQ(FormatSocketAddress(SocketAddress::Parse("0.0.0.0:9")->storage, "10.0.0.3"),
            "10.0.0.3:9");
  for (const char* text :
       {"", ":1", "1.2.3.4", "1.2.3.4:", "1.2.3.4:99999", "1.2.3.4:1x", "a:1", "[::1:1"})
    EXPECT_FALSE(SocketAddress::Parse(text).ok()) << text;
}

// Two agents on two transfer threads of one process; `tcp` alone makes them use sockets.
class AgentsOverUcx : public ::testing::TestWithParam<bool> {};

TEST_P(AgentsOverUcx, MoveATransferBetweenTwoThreads) {
  const TestShape shape{
      .num_pages = 70, .page_bytes = 110592, .tail_bytes = 4519664, .is_staged = GetParam()};
  TestNode source(shape, ConfigOf(1, "tcp"), TransferLimits::Dev());
  TestNode sink(shape, ConfigOf(2, "tcp"), TransferLimits::Dev());
  sink.OpenLandingWithCredit(shape.num_pages);
  source.OpenSendTo(sink.transport().Address(), Incarnation{2});
  source.OfferAll();
  const SteadyClock clock;
  auto run = [&](TestNode& node) {
    auto thread = AgentThread::Create({}, node.agent(), node.transport(), clock, nullptr);
    EXPECT_TRUE(thread.ok());
    return *std::move(thread);
  };
  const auto source_thread = run(source), sink_thread = run(sink);
  std::set<uint32_t> landed;
  std::vector<AgentEvent> events;
  const absl::Time end = clock.Now() + kPatience;
  while (landed.size() < shape.num_pages + 1 && clock.Now() < end) {
    events.clear();
    sink_thread->events().Drain(events, 100, absl::Milliseconds(100));
    for (const AgentEvent& event : events)
      if (const auto* e = std::get_if<BlockLanded>(&event)) landed.insert(e->memory.block);
  }
  ASSERT_EQ(landed.size(), shape.num_pages + 1);
  for (uint32_t slot = 0; slot <= shape.num_pages; ++slot)
    EXPECT_TRUE(HasPattern(sink.Bytes(sink.Memory(slot).place), slot)) << slot;
}

INSTANTIATE_TEST_SUITE_P(IsStaged, AgentsOverUcx, ::testing::Bool(),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace baton::kvtransfer
