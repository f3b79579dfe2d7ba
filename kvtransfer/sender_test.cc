#include "kvtransfer/sender.h"

#include <gtest/gtest.h>
#include <string>

#include "absl/strings/str_format.h"

#include "common/rng.h"

namespace baton::kvtransfer {
namespace {

constexpr PeerId kPeer{5};

// Drives one sender and writes what it does as short words, in order.
class SenderTest : public ::testing::Test {
 protected:
  SenderTest() { Open(4); }

  void Open(uint16_t window) {
    open_ = {.transfer = rng_.DrawBytes<TransferId>(),
             .attempt = 3,
             .secret = rng_.DrawBytes<Secret>(),
             .address = "d:1",
             .incarnation = Incarnation{2},
             .num_pages = 8,
             .layout = rng_.DrawBytes<LayoutId>(),
             .window = window};
    sender_ = std::make_unique<TransferSender>(open_, TransferSender::Link{kPeer, Incarnation{1}},
                                               TransferLimits{});
  }
  std::string On(const SenderEvent& event) {
    actions_.clear();
    sender_->On(event, now_, actions_);
    std::string words;
    for (const TransferAction& action : actions_)
      words += (words.empty() ? "" : " ") + Word(action);
    return words;
  }
  std::string Seal(uint32_t block) {
    return On(BlockSealed{.memory = {.block = block, .memory = 1, .place = {RegionId{0}, 0, 100}},
                          .name = {}});
  }
  std::string Digest(uint64_t ticket) { return On(BlockDigested{Ticket{ticket}, Digest128{{9}}}); }
  std::string Sent(uint64_t ticket) { return On(BlockSent{Ticket{ticket}, absl::OkStatus()}); }
  // Seals blocks 0..count-1 and digests them: tickets 2i+1 are digests, 2i+2 sends.
  void Announce(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      Seal(i);
      Digest(2 * i + 1);
    }
  }
  static std::string Block(uint32_t block) {
    return block == kTailBlock ? "tail" : absl::StrFormat("%d", block);
  }
  static uint32_t BlockOf(const FrameBytes& bytes) {
    return std::get<AnnounceBody>(std::get<Frame>(DecodeFrame(bytes.view())).body).block;
  }
  static std::string Word(const TransferAction& action) {
    if (const auto* a = std::get_if<DigestBlock>(&action))
      return absl::StrFormat("digest:%d:%s", a->ticket.value, Block(BlockOf(a->header)));
    if (const auto* a = std::get_if<OfferToPeer>(&action))
      return absl::StrFormat("offer:%d:%s", a->ticket.value, Block(BlockOf(a->announce)));
    if (const auto* a = std::get_if<CountStale>(&action))
      return "stale:" + std::string(StaleReasonName(a->reason));
    if (std::holds_alternative<SendToPeer>(action)) return "abort";
    if (std::holds_alternative<ForceClose>(action)) return "force";
    if (std::holds_alternative<CountRetry>(action)) return "retry";
    if (const auto* a = std::get_if<Notify>(&action)) {
      if (const auto* e = std::get_if<BlockAcked>(&a->event)) return "acked:" + Block(e->block);
      if (const auto* e = std::get_if<SendFailed>(&a->event))
        return "failed:" + absl::StatusCodeToString(e->status.code());
      return std::holds_alternative<SendReleased>(a->event) ? "released" : "?";
    }
    return "?";
  }

  SeededRng rng_{4};
  OpenSend open_;
  std::unique_ptr<TransferSender> sender_;
  std::vector<TransferAction> actions_;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(SenderTest, DigestsThenAnnouncesWithTheDigestOverTheZeroedFrame) {
  EXPECT_EQ(Seal(3), "digest:1:3");
  const auto& job = std::get<DigestBlock>(actions_[0]);
  const auto header = std::get<Frame>(DecodeFrame(job.header.view()));
  EXPECT_EQ(job.secret, open_.secret);
  EXPECT_TRUE(std::get<AnnounceBody>(header.body).digest.IsZero());
  EXPECT_EQ(Digest(1), "offer:2:3");
  const auto frame =
      std::get<Frame>(DecodeFrame(std::get<OfferToPeer>(actions_[0]).announce.view()));
  EXPECT_EQ(frame.head, header.head);
  EXPECT_EQ(frame.head.attempt, 3u);
  EXPECT_EQ(frame.head.receiver, Incarnation{2});
  EXPECT_EQ(std::get<AnnounceBody>(frame.body).digest, Digest128{{9}});
  EXPECT_EQ(std::get<AnnounceBody>(frame.body).bytes, 100u);
  EXPECT_EQ(On(AckReceived{3}), "acked:3");
}

TEST_F(SenderTest, NeverExceedsTheWindow) {
  Open(2);
  EXPECT_EQ(Seal(0), "digest:1:0");
  EXPECT_EQ(Seal(1), "digest:2:1");
  EXPECT_EQ(Seal(2), "");
  EXPECT_EQ(Digest(2), "offer:3:1");
  EXPECT_EQ(Digest(1), "offer:4:0");
  EXPECT_EQ(sender_->NumUnacked(), 2);
  EXPECT_EQ(Sent(3), "");  // sent is not acked
  EXPECT_EQ(On(AckReceived{1}), "acked:1 digest:5:2");
  EXPECT_EQ(On(AckReceived{1}), "stale:duplicate");
  EXPECT_EQ(sender_->NumUnacked(), 2);
}

TEST_F(SenderTest, AnnouncesTheTailAfterAllPages) {
  Open(2);
  Seal(0);
  EXPECT_EQ(Seal(kTailBlock), "");  // a page is being digested
  EXPECT_EQ(Seal(1), "digest:2:1");
  EXPECT_EQ(Digest(1), "offer:3:0");
  EXPECT_EQ(On(AckReceived{0}), "acked:0");
  EXPECT_EQ(Digest(2), "offer:4:1 digest:5:tail");
  EXPECT_EQ(Digest(5), "offer:6:tail");
}

TEST_F(SenderTest, OffersOnceMoreWithTheFirstDigestThenFails) {
  Announce(1);
  EXPECT_EQ(On(RefuseReceived{0, RefuseReason::kDataLoss}), "retry offer:3:0");
  EXPECT_EQ(On(RefuseReceived{0, RefuseReason::kDataLoss}), "failed:DATA_LOSS");
  EXPECT_EQ(On(RefuseReceived{0, RefuseReason::kDataLoss}), "");
  EXPECT_EQ(Seal(1), "");  // over
}

TEST_F(SenderTest, EveryOtherRefusalEndsTheAttempt) {
  const std::vector<std::pair<RefuseReason, const char*>> cases = {
      {RefuseReason::kStale, "failed:CANCELLED"},
      {RefuseReason::kUnknown, "failed:CANCELLED"},
      {RefuseReason::kFull, "failed:RESOURCE_EXHAUSTED"},
      {RefuseReason::kDraining, "failed:UNAVAILABLE"},
      {RefuseReason::kLayout, "failed:FAILED_PRECONDITION"}};
  for (const auto& [reason, expected] : cases) {
    Open(4);
    Announce(2);
    EXPECT_EQ(On(RefuseReceived{1, reason}), expected);
    EXPECT_EQ(On(RefuseReceived{0, reason}), "");
  }
}

TEST_F(SenderTest, CountsAnswersForBlocksThatWereNotOffered) {
  Open(1);
  Announce(1);
  Seal(1);
  EXPECT_EQ(On(AckReceived{7}), "stale:block");
  EXPECT_EQ(On(AckReceived{1}), "stale:block");  // not offered yet
  EXPECT_EQ(On(RefuseReceived{1, RefuseReason::kStale}), "stale:block");
  EXPECT_EQ(On(AckReceived{0}), "acked:0 digest:3:1");
}

TEST_F(SenderTest, AnAckMakesAWaitingRepeatNeedless) {
  Seal(kTailBlock);
  Digest(1);
  Seal(0);  // being digested, so the tail waits behind it
  EXPECT_EQ(On(RefuseReceived{kTailBlock, RefuseReason::kDataLoss}), "retry");
  EXPECT_EQ(sender_->NumQueued(), 1u);
  EXPECT_EQ(On(AckReceived{kTailBlock}), "acked:tail");
  EXPECT_EQ(sender_->NumQueued(), 0u);
  EXPECT_EQ(Digest(3), "offer:4:0");
  EXPECT_EQ(sender_->NumUnacked(), 1);
}

TEST_F(SenderTest, OffersABlockThatWasNotAnnouncedOnceMoreAndThenFails) {
  auto unsent = [this](uint64_t ticket, absl::StatusCode code) {
    return On(BlockSent{Ticket{ticket}, absl::Status(code, "copy")});
  };
  Announce(1);
  EXPECT_EQ(unsent(2, absl::StatusCode::kDataLoss), "retry offer:3:0");
  EXPECT_EQ(unsent(3, absl::StatusCode::kDataLoss), "failed:DATA_LOSS");
  EXPECT_EQ(On(Cancelled{}), "abort released");

  Open(4);
  Announce(1);
  EXPECT_EQ(unsent(2, absl::StatusCode::kFailedPrecondition), "failed:FAILED_PRECONDITION");

  Open(4);
  Announce(1);
  EXPECT_EQ(unsent(2, absl::StatusCode::kUnavailable), "");  // Ack, Refuse or PeerLost will tell
  EXPECT_EQ(sender_->NumUnacked(), 1);

  Open(4);
  Announce(1);
  On(Cancelled{});
  EXPECT_EQ(unsent(2, absl::StatusCode::kDataLoss), "released");
}

TEST_F(SenderTest, ReleasesOnlyWhenTheTransportReadsNothing) {
  Announce(2);
  Seal(2);  // being digested: ticket 5
  EXPECT_EQ(On(Cancelled{}), "abort");
  EXPECT_EQ(On(Cancelled{}), "");
  EXPECT_EQ(Sent(2), "");
  EXPECT_EQ(On(AckReceived{0}), "");
  EXPECT_EQ(Sent(4), "");
  EXPECT_EQ(Digest(5), "released");
  EXPECT_TRUE(sender_->IsReleased());
}

TEST_F(SenderTest, AbortsOnlyWhatIsIncompleteAndReachable) {
  Announce(1);
  Seal(kTailBlock);
  Digest(3);
  On(AckReceived{0});
  On(AckReceived{kTailBlock});
  Sent(2);
  EXPECT_EQ(On(Cancelled{}), "");
  EXPECT_EQ(Sent(4), "released");

  Open(4);
  Announce(1);
  EXPECT_EQ(On(PeerLost{PeerId{6}}), "");
  EXPECT_EQ(On(PeerLost{kPeer}), "failed:UNAVAILABLE");
  EXPECT_EQ(On(Cancelled{}), "");
  EXPECT_EQ(Sent(2), "released");

  Open(4);
  EXPECT_EQ(On(Cancelled{}), "abort released");
}

TEST_F(SenderTest, ForceClosesASendThatWillNotEnd) {
  Announce(1);
  On(Cancelled{});
  now_ += absl::Seconds(1.9);
  EXPECT_EQ(On(TimePassed{}), "");
  now_ += absl::Seconds(0.2);
  EXPECT_EQ(On(TimePassed{}), "force");
  EXPECT_EQ(On(TimePassed{}), "");
  EXPECT_EQ(Sent(2), "released");
}

TEST_F(SenderTest, AnAbortOfTheReceiverEndsTheAttempt) {
  Announce(1);
  EXPECT_EQ(On(PeerAborted{kPeer, 2, AbortReason::kCancelled}), "stale:attempt");
  EXPECT_EQ(On(PeerAborted{kPeer, 3, AbortReason::kCancelled}), "failed:CANCELLED");
  EXPECT_EQ(On(AckReceived{0}), "acked:0");  // what arrived, arrived
  EXPECT_EQ(On(Cancelled{}), "");
}

TEST_F(SenderTest, RefusesBlocksThatMakeNoSense) {
  for (const uint32_t block : {8u, 0u}) {
    Open(4);
    Announce(1);
    EXPECT_EQ(Seal(block), "failed:INTERNAL") << block;
  }
  Open(4);
  EXPECT_EQ(On(BlockSealed{}), "failed:INTERNAL");
}

TEST_F(SenderTest, AFailedDigestFailsTheAttempt) {
  Seal(0);
  EXPECT_EQ(On(BlockDigested{Ticket{1}, absl::InternalError("device")}), "failed:INTERNAL");
  EXPECT_EQ(On(Cancelled{}), "abort released");
}

}  // namespace
}  // namespace baton::kvtransfer
