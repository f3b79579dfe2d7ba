#include "kvtransfer/receiver.h"

#include <gtest/gtest.h>
#include <string>

#include "absl/strings/str_format.h"

#include "common/rng.h"

namespace baton::kvtransfer {
namespace {

constexpr PeerId kPeer{5};

// Drives one receiver and writes what it does as short words, in order.
class ReceiverTest : public ::testing::Test {
 protected:
  ReceiverTest() { Open(3, 4); }

  void Open(uint32_t num_pages, uint16_t window) {
    open_ = {.transfer = rng_.DrawBytes<TransferId>(),
             .attempt = 1,
             .secret = rng_.DrawBytes<Secret>(),
             .num_pages = num_pages,
             .page_bytes = 100,
             .tail_bytes = 50,
             .layout = rng_.DrawBytes<LayoutId>(),
             .window = window};
    receiver_ = std::make_unique<TransferReceiver>(open_, TransferLimits{});
    offer_ = {.peer = kPeer,
              .offer = {},
              .head = {.transfer = open_.transfer,
                       .attempt = 1,
                       .sender = Incarnation{1},
                       .receiver = Incarnation{2},
                       .secret = open_.secret},
              .announce = {.layout = open_.layout, .digest = Digest128{{1}}},
              .bytes = 0};
  }
  std::string On(const ReceiverEvent& event) {
    std::vector<TransferAction> actions;
    receiver_->On(event, now_, actions);
    std::string words;
    for (const TransferAction& action : actions) words += (words.empty() ? "" : " ") + Word(action);
    return words;
  }
  BlockOffered Offered(uint32_t block) {
    BlockOffered event = offer_;
    event.offer = OfferId{next_offer_++};
    event.announce.block = block;
    event.bytes = event.announce.bytes = block == kTailBlock ? open_.tail_bytes : open_.page_bytes;
    return event;
  }
  std::string Offer(uint32_t block) { return On(Offered(block)); }
  std::string Credit(int first, int count, bool with_tail = false) {
    CreditAdded event;
    for (int i = first; i < first + count; ++i)
      event.memory.push_back(
          {.memory = i, .place = {RegionId{0}, static_cast<uint64_t>(i) * 128, 128}});
    if (with_tail)
      event.memory.push_back(
          {.block = kTailBlock, .memory = 900, .place = {RegionId{0}, 90000, 64}});
    return On(event);
  }
  std::string Pulled(uint64_t ticket, absl::Status status = absl::OkStatus()) {
    return On(BlockPulled{Ticket{ticket}, std::move(status)});
  }
  std::string Digest(uint64_t ticket, bool is_good = true) {
    return On(BlockDigested{Ticket{ticket}, Digest128{{static_cast<uint8_t>(is_good ? 1 : 2)}}});
  }
  // Offer, pull and digest of one block with credit in place.
  void Land(uint32_t block, uint64_t ticket) {
    Offer(block);
    Pulled(ticket);
    Digest(ticket);
  }
  static std::string Block(uint32_t block) {
    return block == kTailBlock ? "tail" : absl::StrFormat("%d", block);
  }
  static std::string EventWord(const AgentEvent& event) {
    if (const auto* e = std::get_if<BlockLanded>(&event)) return "landed:" + Block(e->memory.block);
    if (const auto* e = std::get_if<LandingFailed>(&event))
      return "failed:" + absl::StatusCodeToString(e->status.code());
    if (const auto* e = std::get_if<MemoryReturned>(&event))
      return absl::StrFormat("returned:%d", e->memory.memory);
    if (const auto* e = std::get_if<LandingRetargeted>(&event)) {
      std::string bits;
      for (const bool bit : e->verified) bits += bit ? '1' : '0';
      for (const BlockMemory& m : e->quarantined) bits += absl::StrFormat(":q%d", m.memory);
      return absl::StrFormat("retargeted:%d:%s", e->attempt, bits);
    }
    return std::holds_alternative<LandingClosed>(event) ? "closed" : "?";
  }
  static std::string Word(const TransferAction& action) {
    if (const auto* a = std::get_if<PullBlock>(&action))
      return absl::StrFormat("pull:%d@%d", a->ticket.value, a->to.offset / 128);
    if (std::holds_alternative<DropOffer>(action)) return "drop";
    if (const auto* a = std::get_if<DigestBlock>(&action))
      return absl::StrFormat("digest:%d", a->ticket.value);
    if (std::holds_alternative<ForceClose>(action)) return "force";
    if (const auto* a = std::get_if<CountStale>(&action))
      return "stale:" + std::string(StaleReasonName(a->reason));
    if (const auto* a = std::get_if<Notify>(&action)) return EventWord(a->event);
    if (const auto* a = std::get_if<SendToPeer>(&action)) {
      if (const auto* ack = std::get_if<AckBody>(&a->frame.body)) return "ack:" + Block(ack->block);
      if (const auto* refuse = std::get_if<RefuseBody>(&a->frame.body))
        return "refuse:" + std::string(RefuseReasonName(refuse->reason));
      return "abort";
    }
    if (std::holds_alternative<CountDigestFailure>(action)) return "bad_digest";
    if (std::holds_alternative<CountPullFailure>(action)) return "bad_pull";
    return "timed";
  }

  SeededRng rng_{3};
  OpenLanding open_;
  BlockOffered offer_;
  std::unique_ptr<TransferReceiver> receiver_;
  uint64_t next_offer_ = 1;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(ReceiverTest, BindsPullsDigestsThenAcks) {
  EXPECT_EQ(Credit(10, 3, true), "");
  EXPECT_EQ(Offer(2), "pull:1@10");
  EXPECT_EQ(Offer(kTailBlock), absl::StrFormat("pull:2@%d", 90000 / 128));
  EXPECT_EQ(Pulled(1), "digest:1");
  EXPECT_EQ(Digest(1), "ack:2 timed landed:2");
  EXPECT_EQ(Pulled(2), "digest:2");
  EXPECT_EQ(Digest(2), "ack:tail timed landed:tail");
  EXPECT_FALSE(receiver_->IsComplete());
  Land(0, 3);
  Land(1, 4);
  EXPECT_TRUE(receiver_->IsComplete());
}

TEST_F(ReceiverTest, RefusesBeforeAnythingIsBound) {
  Credit(0, 3, true);
  struct Case {
    const char* name;
    std::function<void(BlockOffered&)> change;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"old attempt", [](auto& o) { o.head.attempt = 0; }, "stale:attempt drop refuse:stale"},
      {"new attempt", [](auto& o) { o.head.attempt = 2; }, "stale:attempt drop refuse:stale"},
      {"secret", [](auto& o) { o.head.secret.bytes[3] ^= 1; }, "stale:secret drop refuse:unknown"},
      {"block", [](auto& o) { o.announce.block = 3; }, "stale:block drop refuse:unknown"},
      {"layout", [](auto& o) { o.announce.layout.bytes[0] ^= 1; },
       "stale:layout drop refuse:layout"},
      {"bytes", [](auto& o) { o.announce.bytes = 99; }, "stale:layout drop refuse:layout"},
      {"data", [](auto& o) { o.bytes = 101; }, "stale:layout drop refuse:layout"},
      {"shard", [](auto& o) { o.announce.num_shards = 2; }, "stale:layout drop refuse:layout"},
      {"tail size", [](auto& o) { o.announce.block = kTailBlock; },
       "stale:layout drop refuse:layout"}};
  for (const Case& c : cases) {
    BlockOffered offer = Offered(1);
    c.change(offer);
    EXPECT_EQ(On(offer), c.expected) << c.name;
  }
  EXPECT_EQ(receiver_->NumOpenPulls(), 0);
  EXPECT_EQ(Offer(1), "pull:1@0");  // the credit is all there
}

TEST_F(ReceiverTest, RepliesToTheSenderOfTheFrame) {
  std::vector<TransferAction> actions;
  BlockOffered offer = Offered(1);
  offer.head.attempt = 9;
  receiver_->On(offer, now_, actions);
  const auto& sent = std::get<SendToPeer>(actions.back());
  EXPECT_EQ(sent.peer, kPeer);
  EXPECT_EQ(sent.frame.head.attempt, 9u);
  EXPECT_EQ(sent.frame.head.sender, Incarnation{2});
  EXPECT_EQ(sent.frame.head.receiver, Incarnation{1});
}

TEST_F(ReceiverTest, HoldsOffersWithoutCreditUpToTheWindow) {
  Open(8, 2);
  EXPECT_EQ(Offer(0), "");
  EXPECT_EQ(Offer(1), "");
  EXPECT_EQ(Offer(2), "drop refuse:full");
  EXPECT_EQ(Credit(20, 1), "pull:1@20");
  EXPECT_EQ(Offer(2), "drop refuse:full");
  Pulled(1);
  EXPECT_EQ(Digest(1), "ack:0 timed landed:0");
  EXPECT_EQ(Offer(2), "");
  EXPECT_EQ(Credit(21, 2), "pull:2@21 pull:3@22");
}

TEST_F(ReceiverTest, AcksARepeatOfAVerifiedBlockAndDropsOneOnItsWay) {
  Credit(0, 3);
  EXPECT_EQ(Offer(1), "pull:1@0");
  EXPECT_EQ(Offer(1), "stale:duplicate drop");
  Pulled(1);
  EXPECT_EQ(Offer(1), "stale:duplicate drop");
  Digest(1);
  EXPECT_EQ(Offer(1), "stale:duplicate drop ack:1");
}

TEST_F(ReceiverTest, TakesOneRepeatAfterABadDigestThenFailsOnce) {
  Credit(0, 4);
  Offer(1);
  Pulled(1);
  EXPECT_EQ(Digest(1, false), "bad_digest returned:0 refuse:data_loss");
  EXPECT_EQ(Offer(1), "pull:2@1");  // a fresh page
  Pulled(2);
  EXPECT_EQ(Digest(2, false), "bad_digest returned:1 refuse:data_loss failed:DATA_LOSS");
  EXPECT_EQ(Offer(1), "pull:3@2");
  EXPECT_EQ(Pulled(3, absl::InternalError("x")),
            "returned:2 bad_pull refuse:data_loss");  // told once
}

TEST_F(ReceiverTest, ADigestThatCannotBeTakenIsABadOne) {
  Credit(0, 1);
  Offer(0);
  Pulled(1);
  EXPECT_EQ(On(BlockDigested{Ticket{1}, absl::InternalError("device")}),
            "bad_digest returned:0 refuse:data_loss");
}

TEST_F(ReceiverTest, RetargetKeepsWhatIsVerifiedAndQuarantinesTheRest) {
  Credit(0, 3, true);
  Land(1, 1);
  Offer(0);  // pulling
  Offer(2);  // digesting
  Pulled(3);
  Offer(kTailBlock);
  EXPECT_EQ(On(AttemptChanged{2}), "retargeted:2:010:q1:q2:q900");
  EXPECT_EQ(receiver_->NumQuarantined(), 3);
  EXPECT_EQ(On(AttemptChanged{2}), "retargeted:2:010:q1:q2:q900");  // a repeat of the command
  EXPECT_EQ(Offer(0), "stale:attempt drop refuse:stale");
  EXPECT_EQ(Pulled(2), "returned:1");  // right or wrong, its attempt is over
  offer_.head.attempt = 2;
  EXPECT_EQ(Offer(1), "stale:duplicate drop ack:1");
  EXPECT_EQ(Offer(0), "");  // no credit left but under quarantine
  EXPECT_EQ(Digest(3), "returned:2");
  EXPECT_EQ(Pulled(4, absl::UnavailableError("gone")), "returned:900 bad_pull");
  EXPECT_EQ(receiver_->NumQuarantined(), 0);
  EXPECT_EQ(Credit(7, 1), "pull:5@7");
}

TEST_F(ReceiverTest, RetargetRefusesOffersThatWaitForCredit) {
  Offer(0);
  EXPECT_EQ(On(AttemptChanged{2}), "drop refuse:stale retargeted:2:000");
  EXPECT_EQ(Credit(0, 1), "");
}

TEST_F(ReceiverTest, FailuresAreCountedPerAttempt) {
  Credit(0, 8);
  Offer(1);
  Pulled(1);
  Digest(1, false);
  On(AttemptChanged{2});
  offer_.head.attempt = 2;
  Offer(1);
  Pulled(2);
  EXPECT_EQ(Digest(2, false), "bad_digest returned:1 refuse:data_loss");
}

TEST_F(ReceiverTest, CloseReturnsAllMemoryButWhatIsUnderAPull) {
  Credit(0, 3, true);
  Land(1, 1);
  Offer(0);
  EXPECT_EQ(On(Cancelled{}), "abort returned:2 returned:900 returned:0");
  EXPECT_EQ(On(Cancelled{}), "");
  EXPECT_EQ(Offer(2), "stale:transfer drop refuse:stale");
  EXPECT_EQ(Credit(5, 1), "returned:5");
  EXPECT_EQ(On(AttemptChanged{3}), "");
  EXPECT_FALSE(receiver_->IsClosed());
  EXPECT_EQ(Pulled(2), "returned:1 closed");
  EXPECT_TRUE(receiver_->IsClosed());
}

TEST_F(ReceiverTest, ACompleteLandingClosesWithoutAbort) {
  Credit(0, 3, true);
  for (uint32_t i = 0; i < 3; ++i) Land(i, i + 1);
  Land(kTailBlock, 4);
  EXPECT_EQ(On(PeerLost{kPeer}), "");
  EXPECT_EQ(On(Cancelled{}), "returned:0 returned:1 returned:2 returned:900 closed");
}

TEST_F(ReceiverTest, ForceClosesOnceAndIsWedgedLater) {
  Credit(0, 1);
  Offer(0);
  On(Cancelled{});
  now_ += absl::Seconds(1.99);
  EXPECT_EQ(On(TimePassed{}), "");
  now_ += absl::Seconds(0.01);
  EXPECT_EQ(On(TimePassed{}), "force");
  EXPECT_EQ(On(TimePassed{}), "");
  EXPECT_FALSE(receiver_->IsWedged(now_));
  now_ += absl::Seconds(8);
  EXPECT_TRUE(receiver_->IsWedged(now_));
  EXPECT_EQ(Pulled(1, absl::CancelledError("closed")), "returned:0 bad_pull closed");
  EXPECT_FALSE(receiver_->IsWedged(now_));
}

TEST_F(ReceiverTest, ALostSenderFailsTheAttemptButItsOpenPullsMayStillCount) {
  Credit(0, 1);
  Offer(0);
  Offer(1);  // waits for credit
  EXPECT_EQ(On(PeerLost{PeerId{77}}), "");
  EXPECT_EQ(On(PeerLost{kPeer}), "drop failed:UNAVAILABLE");
  EXPECT_EQ(On(PeerLost{kPeer}), "");
  EXPECT_EQ(Pulled(1), "digest:1");
  EXPECT_EQ(Digest(1), "ack:0 timed landed:0");
}

TEST_F(ReceiverTest, APullThatFailsWithItsPeerIsNotAskedForAgain) {
  Credit(0, 2);
  Offer(0);
  On(PeerLost{kPeer});
  EXPECT_EQ(Pulled(1, absl::UnavailableError("down")), "returned:0 bad_pull");
}

TEST_F(ReceiverTest, AnAbortOfThisAttemptFailsIt) {
  Credit(0, 1);
  Offer(0);
  EXPECT_EQ(On(PeerAborted{kPeer, 3, AbortReason::kFailed}), "stale:attempt");
  EXPECT_EQ(On(PeerAborted{kPeer, 1, AbortReason::kFailed}), "failed:UNAVAILABLE");
}

TEST_F(ReceiverTest, NamesThePeersItDependsOn) {
  std::set<PeerId> peers;
  Credit(0, 3, true);
  receiver_->AddActivePeers(peers);
  EXPECT_TRUE(peers.empty());
  Land(0, 1);
  receiver_->AddActivePeers(peers);
  EXPECT_EQ(peers, std::set<PeerId>{kPeer});
  peers.clear();
  Offer(1);
  On(Cancelled{});
  receiver_->AddActivePeers(peers);  // its pull is open
  EXPECT_EQ(peers, std::set<PeerId>{kPeer});
  Pulled(2);
  peers.clear();
  receiver_->AddActivePeers(peers);
  EXPECT_TRUE(peers.empty());
}

}  // namespace
}  // namespace baton::kvtransfer
