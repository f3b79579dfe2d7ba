#include "kvtransfer/inproc/transport.h"

#include <gtest/gtest.h>
#include <string>

#include "common/clock.h"

namespace baton::kvtransfer {
namespace {

// Writes down everything a transport says, as one line of words.
class Log final : public TransportEvents {
 public:
  void OnFrame(PeerId from, std::span<const std::byte> frame) override {
    Add("frame" + std::to_string(std::to_integer<int>(frame[0])));
    peer = from;
  }
  void OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
               uint64_t bytes) override {
    Add("offer" + std::to_string(std::to_integer<int>(announce[0])) + ":" + std::to_string(bytes));
    peer = from;
    offers.push_back(offer);
  }
  void OnPulled(ReceiveId, const absl::Status& status) override {
    Add(status.ok() ? "pulled" : "lost");
  }
  void OnSent(SendId, const absl::Status& status) override { Add(status.ok() ? "sent" : "unsent"); }
  void OnPeer(PeerId from, PeerState state, const absl::Status& status) override {
    Add(state == PeerState::kUp ? "up" : "down:" + absl::StatusCodeToString(status.code()));
    peer = from;
  }
  std::string Take() { return std::exchange(words_, ""); }

  PeerId peer;
  std::vector<OfferId> offers;

 private:
  void Add(const std::string& word) { words_ += (words_.empty() ? "" : " ") + word; }
  std::string words_;
};

class InprocTest : public ::testing::Test {
 protected:
  InprocTest()
      : a_(network_.Create("a", Incarnation{1})), b_(network_.Create("b", Incarnation{2})) {
    for (std::vector<std::byte>* memory : {&memory_a_, &memory_b_}) memory->resize(1000);
    region_a_ = *a_->Register(memory_a_, MemoryKind::kHost);
    region_b_ = *b_->Register(memory_b_, MemoryKind::kHost);
    std::fill(memory_a_.begin(), memory_a_.end(), std::byte{0xaa});
  }
  // Lets `time` pass event by event.
  void Pass(absl::Duration time) {
    const absl::Time end = clock_.Now() + time;
    while (true) {
      const int a = a_ ? a_->Progress(log_a_) : 0;
      const int b = b_ ? b_->Progress(log_b_) : 0;
      if (a + b > 0) continue;
      const absl::Time next = network_.NextEventTime();
      if (next > end) break;
      clock_.Set(std::max(next, clock_.Now()));
    }
    clock_.Set(end);
  }
  PeerId ConnectUp() {
    const PeerId peer = a_->Connect("b", Incarnation{2});
    Pass(absl::Milliseconds(5));
    EXPECT_EQ(log_a_.Take(), "up");
    EXPECT_EQ(log_b_.Take(), "up");
    return peer;
  }
  void Offer(PeerId peer, uint8_t number, uint64_t bytes = 100) {
    const std::byte announce{number};
    a_->Offer(peer, std::span(&announce, 1), {region_a_, 0, bytes});
  }
  void Frame(InprocTransport& from, PeerId peer, uint8_t number) {
    const std::byte frame{number};
    EXPECT_TRUE(from.SendFrame(peer, std::span(&frame, 1)).ok());
  }
  LinkSettings Links(const std::function<void(LinkSettings&)>& change) {
    LinkSettings link;
    change(link);
    network_.SetDefaultLink(link);
    return link;
  }

  ManualClock clock_;
  SeededRng rng_{9};
  InprocNetwork network_{clock_, rng_};
  std::vector<std::byte> memory_a_, memory_b_;
  std::unique_ptr<InprocTransport> a_, b_;
  RegionId region_a_, region_b_;
  Log log_a_, log_b_;
};

TEST_F(InprocTest, DeliversInOrderBothWays) {
  const PeerId peer = a_->Connect("b", Incarnation{2});
  for (uint8_t i = 1; i <= 5; ++i) Frame(*a_, peer, i);  // before it is up
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_b_.Take(), "up frame1 frame2 frame3 frame4 frame5");
  Frame(*b_, log_b_.peer, 7);
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "up frame7");
}

TEST_F(InprocTest, PullsToThePlaceTheReceiverNames) {
  const PeerId peer = ConnectUp();
  Offer(peer, 3);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(log_b_.Take(), "offer3:100");
  b_->Pull(log_b_.offers[0], {region_b_, 50, 100});
  EXPECT_EQ(memory_b_[50], std::byte{0});  // nothing lands before its time
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_b_.Take(), "pulled");
  EXPECT_EQ(log_a_.Take(), "sent");
  EXPECT_EQ(std::ranges::count(memory_b_, std::byte{0xaa}), 100);
}

TEST_F(InprocTest, ChecksTheIncarnationAndTheAddress) {
  a_->Connect("b", Incarnation{5});
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "down:FAILED_PRECONDITION");
  a_->Connect("c", Incarnation{5});
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "down:UNAVAILABLE");
  EXPECT_EQ(log_b_.Take(), "");
}

TEST_F(InprocTest, ARefusedOfferCompletesItsSend) {
  Offer(ConnectUp(), 1);
  Pass(absl::Milliseconds(1));
  b_->Refuse(log_b_.offers[0], RefuseReason::kStale);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(log_a_.Take(), "unsent");
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(log_b_.Take(), "offer1:100 lost");
}

TEST_F(InprocTest, DropsDuplicatesAndReorders) {
  const PeerId peer = ConnectUp();
  Links([](LinkSettings& link) { link.drop = 1; });
  Frame(*a_, peer, 1);
  Offer(peer, 1);
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_b_.Take(), "");
  EXPECT_EQ(log_a_.Take(), "sent");  // a completed send proves nothing
  Links([](LinkSettings& link) { link.duplicate = 1; });
  Frame(*a_, peer, 2);
  Offer(peer, 2);
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_b_.Take(), "frame2 frame2 offer2:100 offer2:100");
  EXPECT_EQ(log_a_.Take(), "");
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "");  // its copy may still be pulled
  b_->Refuse(log_b_.offers[1], RefuseReason::kStale);
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "unsent");
  log_b_.Take();
  Links([](LinkSettings& link) { link.reorder = 0.5; });
  std::string in_order;
  for (uint8_t i = 10; i < 40; ++i) {
    Frame(*a_, peer, i);
    in_order += (in_order.empty() ? "frame" : " frame") + std::to_string(i);
  }
  Pass(absl::Milliseconds(5));
  const std::string got = log_b_.Take();
  EXPECT_NE(got, in_order);
  EXPECT_EQ(got.size(), in_order.size());
}

TEST_F(InprocTest, CorruptsExactlyOneBitOfABlock) {
  const PeerId peer = ConnectUp();
  Links([](LinkSettings& link) { link.corrupt_block = 1; });
  Offer(peer, 1);
  Pass(absl::Milliseconds(1));
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(std::ranges::count(memory_b_, std::byte{0xaa}), 99);
  EXPECT_EQ(std::ranges::count(memory_a_, std::byte{0xaa}), 1000);
}

TEST_F(InprocTest, AStuckPullCompletesAtDisconnectAndNothingLandsAfter) {
  const PeerId peer = ConnectUp();
  Links([](LinkSettings& link) { link.stuck_pull = 1; });
  Offer(peer, 1);
  Pass(absl::Milliseconds(1));
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  Pass(absl::Minutes(5));
  EXPECT_EQ(log_b_.Take(), "offer1:100");
  b_->Disconnect(log_b_.peer);
  Pass(absl::Seconds(1));
  const std::string end = log_b_.Take();
  EXPECT_TRUE(end == "pulled" || end == "lost") << end;
  std::fill(memory_b_.begin(), memory_b_.end(), std::byte{1});
  Pass(absl::Minutes(5));
  EXPECT_EQ(std::ranges::count(memory_b_, std::byte{1}), 1000);
  EXPECT_NE(log_a_.Take().find("down:"), std::string::npos);
}

TEST_F(InprocTest, AStoppedProcessHoldsItsPullsUntilItGoesOn) {
  const PeerId peer = ConnectUp();
  Offer(peer, 1);
  Pass(absl::Milliseconds(1));
  network_.Stop("a");
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  Frame(*b_, log_b_.peer, 4);
  Pass(absl::Minutes(1));
  EXPECT_EQ(log_b_.Take(), "offer1:100");
  EXPECT_EQ(log_a_.Take(), "");
  network_.Continue("a");
  Pass(absl::Seconds(1));
  EXPECT_EQ(log_b_.Take(), "pulled");
  EXPECT_EQ(log_a_.Take(), "frame4 sent");
}

TEST_F(InprocTest, AKilledProcessIsNoticedLaterAndItsMemoryIsNotRead) {
  const PeerId peer = ConnectUp();
  Offer(peer, 1);
  Offer(peer, 2);
  Pass(absl::Milliseconds(1));
  log_b_.Take();
  b_->Pull(log_b_.offers[0], {region_b_, 0, 100});
  network_.Kill("a", absl::Milliseconds(210));
  a_.reset();
  memory_a_.clear();
  memory_a_.shrink_to_fit();
  b_->Pull(log_b_.offers[1], {region_b_, 100, 100});
  Pass(absl::Milliseconds(200));
  EXPECT_EQ(log_b_.Take(), "lost lost");
  Pass(absl::Milliseconds(20));
  EXPECT_EQ(log_b_.Take(), "down:UNAVAILABLE");
  // A new start under the same address is another process.
  a_ = network_.Create("a", Incarnation{3});
  const PeerId again = b_->Connect("a", Incarnation{3});
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_b_.Take(), "up");
  EXPECT_NE(again, peer);
}

TEST_F(InprocTest, TalksToItself) {
  const PeerId peer = a_->Connect("a", Incarnation{1});
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "up up");
  Frame(*a_, peer, 9);
  Pass(absl::Milliseconds(5));
  EXPECT_EQ(log_a_.Take(), "frame9");
  EXPECT_NE(log_a_.peer, peer);  // it came in at the other end
}

TEST_F(InprocTest, IsDeterministicForASeed) {
  auto run = [](uint64_t seed) {
    ManualClock clock;
    SeededRng rng(seed);
    InprocNetwork network(clock, rng);
    LinkSettings link;
    link.drop = link.duplicate = link.reorder = 0.2;
    network.SetDefaultLink(link);
    auto a = network.Create("a", Incarnation{1}), b = network.Create("b", Incarnation{2});
    Log log_a, log_b;
    const PeerId peer = a->Connect("b", Incarnation{2});
    for (uint8_t i = 0; i < 50; ++i)
      EXPECT_TRUE(a->SendFrame(peer, std::as_bytes(std::span(&i, 1))).ok());
    while (network.NextEventTime() < absl::InfiniteFuture()) {
      clock.Set(network.NextEventTime());
      a->Progress(log_a);
      b->Progress(log_b);
    }
    return log_b.Take();
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

TEST_F(InprocTest, LimitsFrames) {
  const PeerId peer = ConnectUp();
  EXPECT_EQ(a_->SendFrame(peer, std::vector<std::byte>(1025)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(a_->SendFrame(peer, std::vector<std::byte>(1024)).ok());
  a_->Disconnect(peer);
  EXPECT_EQ(a_->SendFrame(peer, std::vector<std::byte>(10)).code(), absl::StatusCode::kUnavailable);
  Offer(peer, 1);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(log_a_.Take(), "unsent");
}

}  // namespace
}  // namespace baton::kvtransfer
