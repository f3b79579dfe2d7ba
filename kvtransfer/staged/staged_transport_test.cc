#include "kvtransfer/staged/staged_transport.h"

#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <string>

#include "common/clock.h"
#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"
#include "kvtransfer/staged/test_copier.h"
#include "kvtransfer/transfer_agent.h"

namespace baton::kvtransfer {
namespace {

constexpr uint64_t kSlotBytes = 100;
constexpr size_t kNumSlots = 2;  // of each share
constexpr uint64_t kRegionBytes = 2000;

// One process: device and host memory of kRegionBytes each, and what its transport said as words.
class Node final : public TransportEvents {
 public:
  Node(InprocNetwork& network, const std::string& address, uint64_t incarnation, TestCopier& copier)
      : staging_(2 * kNumSlots * kSlotBytes),
        device(kRegionBytes),
        host(kRegionBytes),
        inner(network.Create(address, Incarnation{incarnation})),
        transport(*StagedTransport::Create(*inner, copier,
                                           {.memory = staging_,
                                            .slot_bytes = kSlotBytes,
                                            .num_offer_slots = kNumSlots,
                                            .num_pull_slots = kNumSlots})),
        device_region(*transport->Register(device, MemoryKind::kDevice)),
        host_region(*transport->Register(host, MemoryKind::kHost)) {}

  void OnFrame(PeerId, std::span<const std::byte> frame) override {
    Add("frame" + std::to_string(std::to_integer<int>(frame[0])));
  }
  void OnOffer(PeerId, OfferId offer, std::span<const std::byte> announce, uint64_t) override {
    Add("offer" + std::to_string(std::to_integer<int>(announce[0])));
    offers.push_back(offer);
  }
  void OnPulled(ReceiveId receive, const absl::Status& status) override {
    Add("pulled" + std::to_string(NumberOf(pulls, receive)) + Suffix(status));
  }
  void OnSent(SendId send, const absl::Status& status) override {
    Add("sent" + std::to_string(NumberOf(sends, send)) + Suffix(status));
  }
  void OnPeer(PeerId from, PeerState state, const absl::Status&) override {
    Add(state == PeerState::kUp ? "up" : "down");
    peer = from;
  }

  // Offers and pulls are numbered from 0, and offer number i is full of the byte i + 1.
  void Offer(uint64_t bytes = kSlotBytes, bool is_device = true) {
    const auto number = static_cast<uint8_t>(sends.size());
    const std::byte announce{number};
    const Place from{is_device ? device_region : host_region, number * kSlotBytes, bytes};
    auto& memory = is_device ? device : host;
    const auto first = memory.begin() + static_cast<int64_t>(from.offset);
    std::fill(first, first + static_cast<int64_t>(bytes), std::byte(number + 1));
    sends.push_back(transport->Offer(peer, std::span(&announce, 1), from));
  }
  void Pull(size_t offer, uint64_t bytes = kSlotBytes, bool is_device = true) {
    const Place to{is_device ? device_region : host_region, pulls.size() * kSlotBytes, bytes};
    pulls.push_back(transport->Pull(offers.at(offer), to));
  }
  int64_t Count(int value) const { return std::ranges::count(device, std::byte(value)); }
  std::string Take() { return std::exchange(words_, ""); }
  const StagingStats& stats() const { return transport->stats(); }
  bool IsQuiet() const {
    return stats().offer_slots_in_use == 0 && stats().pull_slots_in_use == 0 &&
           stats().offers_waiting == 0 && stats().pulls_waiting == 0 && !transport->MustPoll();
  }

 private:
  template <typename Id>
  static int64_t NumberOf(const std::vector<Id>& ids, Id id) {
    const auto it = std::ranges::find(ids, id);
    return it == ids.end() ? -1 : it - ids.begin();
  }
  static std::string Suffix(const absl::Status& status) {
    return status.ok() ? "" : ":" + absl::StatusCodeToString(status.code());
  }
  void Add(const std::string& word) { words_ += (words_.empty() ? "" : " ") + word; }

  std::vector<std::byte> staging_;
  std::string words_;

 public:
  std::vector<std::byte> device, host;
  std::unique_ptr<InprocTransport> inner;
  std::unique_ptr<StagedTransport> transport;
  const RegionId device_region, host_region;
  PeerId peer;  // that came up last
  std::vector<SendId> sends;
  std::vector<ReceiveId> pulls;
  std::vector<OfferId> offers;
};

class StagedTransportTest : public ::testing::Test {
 protected:
  StagedTransportTest() {
    LinkSettings link;  // as many events as possible at times that a test can tell apart
    link.min_delay = link.max_delay = absl::Microseconds(100);
    link.min_pull = link.max_pull = absl::Microseconds(100);
    network_.SetDefaultLink(link);
    SetCopies(copier_a_, absl::Microseconds(10));
    SetCopies(copier_b_, absl::Microseconds(10));
    a_.transport->Connect("b", Incarnation{2});
    Pass(absl::Milliseconds(1));
    EXPECT_EQ(a_.Take(), "up");
    EXPECT_EQ(b_.Take(), "up");
  }
  static void SetCopies(TestCopier& copier, absl::Duration delay, double failure = 0) {
    copier.Set({.min_delay = delay, .max_delay = delay, .failure = failure});
  }
  // Lets `time` pass event by event.
  void Pass(absl::Duration time) {
    const absl::Time end = clock_.Now() + time;
    while (true) {
      if (a_.transport->Progress(a_) + b_.transport->Progress(b_) > 0) continue;
      const absl::Time next =
          std::min({network_.NextEventTime(), copier_a_.NextTime(), copier_b_.NextTime()});
      if (next > end) break;
      clock_.Set(std::max(next, clock_.Now()));
    }
    clock_.Set(end);
  }
  // a offers `count` blocks of device memory, and b has been told of as many as a's slots allow.
  void OfferAll(size_t count) {
    for (size_t i = 0; i < count; ++i) a_.Offer();
    Pass(absl::Milliseconds(1));
  }

  ManualClock clock_;
  SeededRng rng_{3};
  InprocNetwork network_{clock_, rng_};
  TestCopier copier_a_{clock_, rng_}, copier_b_{clock_, rng_};
  Node a_{network_, "a", 1, copier_a_}, b_{network_, "b", 2, copier_b_};
};

TEST_F(StagedTransportTest, MovesABlockFromDeviceToDevice) {
  OfferAll(1);
  EXPECT_EQ(b_.Take(), "offer0");
  EXPECT_EQ(a_.stats().offer_slots_in_use, 1);
  b_.Pull(0);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "pulled0");
  EXPECT_EQ(a_.Take(), "sent0");
  EXPECT_EQ(b_.Count(1), 100);
  EXPECT_EQ(a_.stats().bytes_to_host, kSlotBytes);
  EXPECT_EQ(b_.stats().bytes_to_device, kSlotBytes);
  EXPECT_TRUE(a_.IsQuiet() && b_.IsQuiet());
}

TEST_F(StagedTransportTest, HostRegionsPassStraightThrough) {
  a_.Offer(1000, /*is_device=*/false);  // no slot limits it
  EXPECT_FALSE(a_.transport->MustPoll());
  Pass(absl::Milliseconds(1));
  b_.Pull(0, 1000, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "offer0 pulled0");
  EXPECT_EQ(a_.Take(), "sent0");
  EXPECT_EQ(std::ranges::count(b_.host, std::byte{1}), 1000);
  EXPECT_EQ(copier_a_.NumBegun() + copier_b_.NumBegun(), 0u);
}

TEST_F(StagedTransportTest, EitherEndMayBeHostMemory) {
  a_.Offer();
  a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  b_.Pull(0, kSlotBytes, /*is_device=*/false);
  b_.Pull(1);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(a_.Take(), "sent0 sent1");
  EXPECT_EQ(std::ranges::count(b_.host, std::byte{1}), 100);
  EXPECT_EQ(b_.Count(2), 100);
}

TEST_F(StagedTransportTest, AnnouncesInTheOrderOfTheCallsAndFramesDoNotWait) {
  SetCopies(copier_a_, absl::Milliseconds(3));
  a_.Offer();
  SetCopies(copier_a_, absl::Milliseconds(1));
  a_.Offer();                                 // copied before the first
  a_.Offer(kSlotBytes, /*is_device=*/false);  // needs no copy
  const std::byte frame{9};
  EXPECT_TRUE(a_.transport->SendFrame(a_.peer, std::span(&frame, 1)).ok());
  Pass(absl::Milliseconds(2));
  EXPECT_EQ(b_.Take(), "frame9");
  Pass(absl::Milliseconds(3));
  EXPECT_EQ(b_.Take(), "offer0 offer1 offer2");
}

TEST_F(StagedTransportTest, OffersWaitForASlotInOrder) {
  OfferAll(5);
  EXPECT_EQ(b_.Take(), "offer0 offer1");
  EXPECT_EQ(a_.stats().offers_waiting, 3);
  EXPECT_EQ(a_.stats().offers_waited, 3u);
  EXPECT_FALSE(a_.transport->MustPoll());  // nothing is being copied
  b_.transport->Refuse(b_.offers[1], RefuseReason::kStale);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "offer2");
  EXPECT_EQ(a_.Take(), "sent1:CANCELLED");
  for (size_t i : {0, 2, 3, 4}) {
    b_.Pull(i);
    Pass(absl::Milliseconds(1));
  }
  EXPECT_EQ(a_.Take(), "sent0 sent2 sent3 sent4");
  EXPECT_EQ(b_.Take(), "pulled0 offer3 pulled1 offer4 pulled2 pulled3");
  for (int value : {1, 3, 4, 5}) EXPECT_EQ(b_.Count(value), 100) << value;
  EXPECT_TRUE(a_.IsQuiet() && b_.IsQuiet());
}

TEST_F(StagedTransportTest, PullsWaitForASlotInOrderAndAreAnswers) {
  for (int i = 0; i < 4; ++i) a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  for (size_t i = 0; i < 4; ++i) b_.Pull(i);
  EXPECT_EQ(b_.stats().pulls_waiting, 2);
  EXPECT_EQ(b_.stats().pulls_waited, 2u);
  b_.transport->Refuse(b_.offers[3], RefuseReason::kStale);  // too late: it is being pulled
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "offer0 offer1 offer2 offer3 pulled0 pulled1 pulled2 pulled3");
  EXPECT_EQ(a_.Take(), "sent0 sent1 sent2 sent3");
  for (int value : {1, 2, 3, 4}) EXPECT_EQ(b_.Count(value), 100) << value;
  EXPECT_TRUE(b_.IsQuiet());
}

TEST_F(StagedTransportTest, ABlockLargerThanASlotCompletesWithAnErrorThatNamesBothSizes) {
  class Keep final : public TransportEvents {
   public:
    void OnFrame(PeerId, std::span<const std::byte>) override {}
    void OnOffer(PeerId, OfferId, std::span<const std::byte>, uint64_t) override {}
    void OnPulled(ReceiveId, const absl::Status& s) override { message = s.ToString(); }
    void OnSent(SendId, const absl::Status& s) override { message = s.ToString(); }
    void OnPeer(PeerId, PeerState, const absl::Status&) override {}
    std::string message;
  } keep;
  a_.Offer(kSlotBytes + 1);
  EXPECT_TRUE(a_.transport->MustPoll());
  a_.transport->Progress(keep);
  EXPECT_NE(keep.message.find("FAILED_PRECONDITION: offer of a block of 101 bytes"),
            std::string::npos);
  EXPECT_NE(keep.message.find("holds 100"), std::string::npos);

  a_.Offer(150, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  b_.Pull(0, 150);
  b_.transport->Progress(keep);
  EXPECT_NE(keep.message.find("FAILED_PRECONDITION: pull of a block of 150 bytes"),
            std::string::npos);
  EXPECT_NE(keep.message.find("holds 100"), std::string::npos);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(a_.Take(), "sent1:CANCELLED");  // let go of
  EXPECT_TRUE(a_.IsQuiet() && b_.IsQuiet());
}

TEST_F(StagedTransportTest, AFailedCopyFailsThatBlockOnly) {
  a_.Offer();
  SetCopies(copier_a_, absl::Microseconds(10), /*failure=*/1);
  a_.Offer();
  SetCopies(copier_a_, absl::Microseconds(10));
  Pass(absl::Milliseconds(1));
  a_.Offer();
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "offer0 offer2");
  EXPECT_EQ(a_.Take(), "sent1:DATA_LOSS");
  SetCopies(copier_b_, absl::Microseconds(10), /*failure=*/1);
  b_.Pull(0);
  Pass(absl::Milliseconds(1));
  SetCopies(copier_b_, absl::Microseconds(10));
  b_.Pull(1);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "pulled0:DATA_LOSS pulled1");
  EXPECT_EQ(b_.Count(3), 100);
  EXPECT_EQ(a_.stats().copy_failures, 1u);
  EXPECT_EQ(b_.stats().copy_failures, 1u);
  EXPECT_TRUE(a_.IsQuiet() && b_.IsQuiet());
}

TEST_F(StagedTransportTest, AFailedOfferHoldsUpNoneBehindIt) {
  SetCopies(copier_a_, absl::Milliseconds(2), /*failure=*/1);
  a_.Offer();
  SetCopies(copier_a_, absl::Milliseconds(1));
  a_.Offer();
  a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(3));
  EXPECT_EQ(a_.Take(), "sent0:DATA_LOSS");
  EXPECT_EQ(b_.Take(), "offer1 offer2");
}

TEST_F(StagedTransportTest, AFailedPullCopiesNothingToTheDevice) {
  for (int i = 0; i < 3; ++i) a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  network_.Kill("a");
  for (size_t i = 0; i < 3; ++i) b_.Pull(i);  // the last one waits for a slot
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(),
            "offer0 offer1 offer2 pulled0:UNAVAILABLE pulled1:UNAVAILABLE pulled2:UNAVAILABLE");
  EXPECT_EQ(copier_b_.NumBegun(), 0u);
  EXPECT_EQ(b_.Count(0), static_cast<int64_t>(kRegionBytes));
  EXPECT_TRUE(b_.IsQuiet());
}

TEST_F(StagedTransportTest, DisconnectCompletesOffersInEveryState) {
  OfferAll(1);  // 0: with the inner transport
  SetCopies(copier_a_, absl::Milliseconds(10));
  for (int i = 0; i < 3; ++i) a_.Offer();     // 1: being copied; 2, 3: waiting
  a_.Offer(kSlotBytes, /*is_device=*/false);  // 4: behind them
  a_.transport->Disconnect(a_.peer);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(a_.Take(), "sent2:CANCELLED sent3:CANCELLED sent4:CANCELLED sent0:CANCELLED");
  EXPECT_EQ(a_.stats().offer_slots_in_use, 1);
  Pass(absl::Milliseconds(10));
  EXPECT_EQ(a_.Take(), "sent1:CANCELLED");  // the copier read its memory until now
  EXPECT_EQ(b_.Take(), "offer0 down");
  EXPECT_TRUE(a_.IsQuiet());
  EXPECT_EQ(copier_a_.NumBegun(), 2u);
}

TEST_F(StagedTransportTest, DisconnectCompletesAnOfferThatIsReadyBehindAnother) {
  SetCopies(copier_a_, absl::Milliseconds(10));
  a_.Offer();
  SetCopies(copier_a_, absl::Milliseconds(1));
  a_.Offer();
  Pass(absl::Milliseconds(2));
  a_.transport->Disconnect(a_.peer);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(a_.Take(), "sent1:CANCELLED");
  Pass(absl::Milliseconds(10));
  EXPECT_EQ(a_.Take(), "sent0:CANCELLED");
  EXPECT_EQ(b_.Take(), "down");
  EXPECT_TRUE(a_.IsQuiet());
}

TEST_F(StagedTransportTest, DisconnectCompletesPullsInEveryState) {
  for (int i = 0; i < 4; ++i) a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  SetCopies(copier_b_, absl::Milliseconds(20));
  b_.Pull(0);
  Pass(absl::Milliseconds(1));  // 0: being copied
  LinkSettings link;
  link.stuck_pull = 1;
  network_.SetDefaultLink(link);
  b_.Pull(1);  // 1: with the inner transport
  b_.Pull(2);  // 2: waiting
  b_.transport->Disconnect(b_.peer);
  b_.Pull(3);  // 3: of a peer that is gone
  Pass(absl::Milliseconds(5));
  EXPECT_TRUE(
      b_.Take().starts_with("offer0 offer1 offer2 offer3 pulled2:CANCELLED pulled3:UNAVAILABLE"));
  Pass(absl::Milliseconds(40));
  const std::string end = b_.Take();  // the inner transport may say either of a closed pull
  EXPECT_NE(end.find("pulled0"), std::string::npos) << end;
  EXPECT_EQ(b_.Count(1), 100);
  EXPECT_TRUE(b_.IsQuiet());
  // Every send of the other side ended too, and nothing lands any more.
  EXPECT_EQ(std::ranges::count(a_.Take(), 's'), 4);
  std::ranges::fill(b_.device, std::byte{0x77});
  Pass(absl::Minutes(5));
  EXPECT_EQ(b_.Count(0x77), static_cast<int64_t>(kRegionBytes));
}

TEST_F(StagedTransportTest, ADisconnectGivesItsSlotsToOffersThatWait) {
  const PeerId first = a_.peer;
  a_.transport->Connect("b", Incarnation{2});
  Pass(absl::Milliseconds(1));
  const PeerId second = std::exchange(a_.peer, first);
  SetCopies(copier_a_, absl::Milliseconds(10));
  a_.Offer();
  SetCopies(copier_a_, absl::Milliseconds(1));
  a_.Offer();  // soon ready, behind the first
  Pass(absl::Milliseconds(2));
  a_.peer = second;
  a_.Offer();  // waits
  a_.transport->Disconnect(first);
  EXPECT_EQ(a_.stats().offers_waiting, 0);
  Pass(absl::Milliseconds(2));
  EXPECT_EQ(b_.Take(), "up down offer2");
}

TEST_F(StagedTransportTest, AWaitingOfferOfOnePeerOutlivesTheDisconnectOfAnother) {
  const PeerId first = a_.peer;
  OfferAll(2);  // both slots
  a_.transport->Connect("b", Incarnation{2});
  Pass(absl::Milliseconds(1));
  a_.Offer();  // to the second connection
  EXPECT_EQ(a_.stats().offers_waiting, 1);
  a_.transport->Disconnect(first);
  Pass(absl::Milliseconds(1));
  EXPECT_EQ(b_.Take(), "offer0 offer1 up down offer2");
}

TEST_F(StagedTransportTest, OffersToPeersThatAreGoneCompleteAtOnce) {
  OfferAll(2);  // both slots
  network_.Kill("b", absl::Milliseconds(1));
  Pass(absl::Milliseconds(2));
  EXPECT_EQ(a_.Take(), "down");
  a_.Offer();
  a_.transport->Disconnect(a_.peer);
  a_.Offer();
  a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  const std::string words = a_.Take();
  for (const char* word : {"sent2:UNAVAILABLE", "sent3:UNAVAILABLE", "sent4:UNAVAILABLE"})
    EXPECT_NE(words.find(word), std::string::npos) << words;
  EXPECT_TRUE(a_.IsQuiet());
}

TEST_F(StagedTransportTest, PullsFromPeersThatAreDownAreNotPosted) {
  for (int i = 0; i < 5; ++i) a_.Offer(kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  LinkSettings link;
  link.stuck_pull = 1;
  network_.SetDefaultLink(link);
  for (size_t i = 0; i < 4; ++i) b_.Pull(i);  // 2 and 3 wait for a slot
  EXPECT_EQ(b_.stats().pulls_waiting, 2);
  b_.Take();
  network_.Kill("a", absl::Milliseconds(1));
  Pass(absl::Milliseconds(2));
  EXPECT_EQ(b_.stats().pulls_waiting, 0);
  b_.Pull(4, kSlotBytes, /*is_device=*/false);
  Pass(absl::Milliseconds(1));
  const std::string words = b_.Take();
  EXPECT_TRUE(words.find("down pulled2:UNAVAILABLE pulled3:UNAVAILABLE") != std::string::npos)
      << words;
  EXPECT_TRUE(words.ends_with("pulled4:UNAVAILABLE")) << words;
}

TEST_F(StagedTransportTest, TwoNodesThatSendToEachOtherDoNotLockUp) {
  for (int i = 0; i < 10; ++i) {
    a_.Offer();
    b_.Offer();
  }
  // Each pulls into the second half of its memory; all slots of both shares are in use at times.
  for (size_t done = 0; done < 10; ++done) {
    Pass(absl::Milliseconds(1));
    for (Node* node : {&a_, &b_}) {
      ASSERT_GT(node->offers.size(), done);
      const Place to{node->device_region, 1000 + done * kSlotBytes, kSlotBytes};
      node->pulls.push_back(node->transport->Pull(node->offers[done], to));
    }
  }
  Pass(absl::Milliseconds(1));
  for (Node* node : {&a_, &b_}) {
    EXPECT_TRUE(node->IsQuiet());
    EXPECT_TRUE(std::equal(node->device.begin() + 1000, node->device.end(), node->device.begin()));
  }
}

TEST_F(StagedTransportTest, ChecksTheStagingArea) {
  std::vector<std::byte> memory(399);
  auto create = [&](const StagingArea& area) {
    return StagedTransport::Create(*a_.inner, copier_a_, area).status();
  };
  const absl::Status small = create({memory, kSlotBytes, 2, 2});
  EXPECT_EQ(small.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(small.message().find("399 bytes holds 3 slots of 100"), std::string::npos) << small;
  EXPECT_FALSE(create({memory, kSlotBytes, 0, 2}).ok());
  EXPECT_FALSE(create({memory, kSlotBytes, 2, 0}).ok());
  EXPECT_FALSE(create({memory, 0, 1, 1}).ok());
  EXPECT_TRUE(create({memory, kSlotBytes, 1, 2}).ok());
  EXPECT_FALSE(a_.transport->Register({}, MemoryKind::kDevice).ok());
}

TEST_F(StagedTransportTest, AnAgentPollsWhileCopiesAreUnderWay) {
  CpuDigester digester;
  const TransferAgent agent({.incarnation = Incarnation{1}, .limits = {}}, *a_.transport, digester,
                            clock_);
  EXPECT_FALSE(agent.MustPoll());
  a_.Offer();
  EXPECT_TRUE(agent.MustPoll());
  Pass(absl::Milliseconds(1));
  EXPECT_FALSE(agent.MustPoll());
}

}  // namespace
}  // namespace baton::kvtransfer
