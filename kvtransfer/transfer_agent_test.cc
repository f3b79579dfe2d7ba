#include "kvtransfer/transfer_agent.h"

#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "kvtransfer/test_process.h"

namespace baton::kvtransfer {
namespace {

// The parameter: whether the memory is staged.
class TransferAgentTest : public ::testing::TestWithParam<bool> {
 protected:
  TransferAgentTest() { Start(); }
  void Start() {
    source_ = std::make_unique<TestProcess>(network_, TestProcess::Name{"p:1", Incarnation{11}},
                                            GetParam(), clock_);
    sink_ = std::make_unique<TestProcess>(network_, TestProcess::Name{"d:1", Incarnation{22}},
                                          GetParam(), clock_);
  }

  // Advances to the next event or timer until `done` or until `limit` has passed.
  bool RunUntil(const std::function<bool()>& done, absl::Duration limit = absl::Seconds(30)) {
    const absl::Time end = clock_.Now() + limit;
    while (!done()) {
      absl::Time next = absl::InfiniteFuture();
      for (TestProcess* process : {is_source_stopped_ ? nullptr : source_.get(), sink_.get()}) {
        if (process == nullptr) continue;
        process->Run();
        next = std::min(next, process->NextTime());
      }
      if (done()) return true;
      next = std::min(next, network_.NextEventTime());
      if (next > end) return false;
      clock_.Set(std::max(next, clock_.Now()));
    }
    return true;
  }
  void RunFor(absl::Duration time) {
    const absl::Time end = clock_.Now() + time;
    RunUntil([] { return false; }, time);
    clock_.Set(end);
  }

  void OpenLandingOf(uint32_t num_pages, Attempt attempt = 1) {
    sink_->agent().Execute(OpenLanding{.transfer = transfer_,
                                       .attempt = attempt,
                                       .secret = secret_,
                                       .num_pages = num_pages,
                                       .page_bytes = kPageBytes,
                                       .tail_bytes = kTailBytes,
                                       .layout = layout_});
  }
  void Credit(int first, int count, bool with_tail = true) {
    AddCredit credit{.transfer = transfer_, .memory = {}};
    for (int i = first; i < first + count; ++i) credit.memory.push_back(sink_->Page(i));
    if (with_tail) credit.memory.push_back(sink_->Tail());
    sink_->agent().Execute(std::move(credit));
  }
  void OpenSendOf(uint32_t num_pages, Attempt attempt = 1) {
    source_->agent().Execute(OpenSend{.transfer = transfer_,
                                      .attempt = attempt,
                                      .secret = secret_,
                                      .address = "d:1",
                                      .incarnation = Incarnation{22},
                                      .num_pages = num_pages,
                                      .layout = layout_});
  }
  void OfferAll(uint32_t num_pages, const std::vector<bool>& verified = {}) {
    for (uint32_t i = 0; i < num_pages; ++i) {
      if (i < verified.size() && verified[i]) continue;
      const BlockMemory page = source_->Page(static_cast<int>(i), i);
      source_->Fill(page.place, 1000 + i);
      source_->agent().Execute(OfferBlock{.transfer = transfer_, .memory = page});
    }
    source_->Fill(source_->Tail().place, 77);
    source_->agent().Execute(OfferBlock{.transfer = transfer_, .memory = source_->Tail()});
  }
  // What landed is what was sent, at the place the event names.
  void ExpectLandedBytes() {
    for (const BlockLanded& landed : sink_->Got<BlockLanded>()) {
      SeededRng rng(landed.memory.block == kTailBlock ? 77 : 1000 + landed.memory.block);
      for (const uint8_t b : sink_->Bytes(landed.memory.place))
        ASSERT_EQ(b, static_cast<uint8_t>(rng.Next()));
    }
  }
  size_t NumLanded() const { return sink_->Got<BlockLanded>().size(); }

  ManualClock clock_;
  SeededRng rng_{1};
  InprocNetwork network_{clock_, rng_};
  const TransferId transfer_ = rng_.DrawBytes<TransferId>();
  const Secret secret_ = rng_.DrawBytes<Secret>();
  const LayoutId layout_ = rng_.DrawBytes<LayoutId>();
  std::unique_ptr<TestProcess> source_, sink_;
  bool is_source_stopped_ = false;
};

TEST_P(TransferAgentTest, MovesAllPagesAndTheTailAndAcksEach) {
  OpenLandingOf(80);
  Credit(0, 80);
  OpenSendOf(80);
  OfferAll(80);
  ASSERT_TRUE(RunUntil([&] { return source_->Got<BlockAcked>().size() == 81; }));
  EXPECT_EQ(NumLanded(), 81u);
  EXPECT_EQ(std::ranges::count_if(
                sink_->Got<BlockLanded>(),
                [](const BlockLanded& landed) { return landed.memory.block == kTailBlock; }),
            1);
  ExpectLandedBytes();
  source_->agent().Execute(CloseSend{transfer_});
  sink_->agent().Execute(CloseLanding{transfer_});
  ASSERT_TRUE(RunUntil([&] {
    return !source_->Got<SendReleased>().empty() && !sink_->Got<LandingClosed>().empty();
  }));
  EXPECT_EQ(sink_->Got<MemoryReturned>().size(), 81u);
  EXPECT_EQ(source_->agent().metrics().blocks_acked, 81u);
  EXPECT_EQ(sink_->agent().metrics().bytes_pulled, 80 * kPageBytes + kTailBytes);
}

TEST_P(TransferAgentTest, OffersABlockOnceMoreWhoseCopyFailed) {
  source_->copier().Set({.failure = 0.05});
  OpenLandingOf(80);
  Credit(0, 80);
  OpenSendOf(80);
  OfferAll(80);
  ASSERT_TRUE(RunUntil([&] { return source_->Got<BlockAcked>().size() == 81; }));
  ExpectLandedBytes();
  const StagingStats& stats = source_->staging();
  EXPECT_EQ(source_->agent().metrics().block_retries, stats.copy_failures);
  EXPECT_TRUE(GetParam() ? stats.copy_failures > 0 && stats.offers_waited > 0
                         : stats.copy_failures == 0);
}

TEST_P(TransferAgentTest, HoldsOffersThatCameBeforeTheirCredit) {
  OpenLandingOf(10);
  OpenSendOf(10);
  OfferAll(10);
  RunFor(absl::Milliseconds(100));
  EXPECT_EQ(NumLanded(), 0u);
  Credit(0, 4, /*with_tail=*/false);
  RunFor(absl::Milliseconds(100));
  EXPECT_EQ(NumLanded(), 4u);
  Credit(4, 6);
  EXPECT_TRUE(RunUntil([&] { return NumLanded() == 11; }));
  ExpectLandedBytes();
}

TEST_P(TransferAgentTest, NeverSurfacesACorruptBlockAndSendsItOnceMore) {
  LinkSettings link;
  link.corrupt_block = 0.05;
  network_.SetLink("p:1", "d:1", link);
  OpenLandingOf(60);
  Credit(0, 90);
  OpenSendOf(60);
  OfferAll(60);
  RunFor(absl::Seconds(1));
  ExpectLandedBytes();
  const TransferMetrics& sink = sink_->agent().metrics();
  EXPECT_GT(sink.digest_failures, 0u);
  EXPECT_EQ(sink.digest_failures, sink_->Got<MemoryReturned>().size());
  EXPECT_GT(source_->agent().metrics().block_retries, 0u);
}

TEST_P(TransferAgentTest, FailsBothSidesAfterTheSecondBadDigest) {
  LinkSettings link;
  link.corrupt_block = 1;
  network_.SetLink("p:1", "d:1", link);
  OpenLandingOf(1);
  Credit(0, 4);
  OpenSendOf(1);
  OfferAll(1);
  ASSERT_TRUE(RunUntil([&] { return !source_->Got<SendFailed>().empty(); }));
  EXPECT_EQ(source_->Got<SendFailed>()[0].status.code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(sink_->Got<LandingFailed>().size(), 1u);
  EXPECT_EQ(sink_->Got<LandingFailed>()[0].status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(NumLanded(), 0u);
}

TEST_P(TransferAgentTest, KeepsVerifiedPagesAcrossAttemptsAndRefusesTheOldOne) {
  OpenLandingOf(20);
  Credit(0, 8, /*with_tail=*/false);
  OpenSendOf(20);
  OfferAll(20);
  ASSERT_TRUE(RunUntil([&] { return NumLanded() == 8; }));
  sink_->agent().Execute(RetargetLanding{.transfer = transfer_, .attempt = 2});
  ASSERT_TRUE(RunUntil([&] { return !source_->Got<SendFailed>().empty(); }));
  EXPECT_EQ(source_->Got<SendFailed>()[0].attempt, 1u);
  ASSERT_EQ(sink_->Got<LandingRetargeted>().size(), 1u);
  const auto verified = sink_->Got<LandingRetargeted>()[0].verified;
  EXPECT_EQ(std::ranges::count(verified, true), 8);
  // The same worker serves attempt 2 while attempt 1 drains.
  source_->agent().Execute(CloseSend{transfer_});
  OpenSendOf(20, /*attempt=*/2);
  OfferAll(20, verified);
  Credit(8, 30);
  ASSERT_TRUE(RunUntil([&] { return NumLanded() == 21; }));
  ExpectLandedBytes();
  std::set<uint32_t> blocks;
  for (const BlockLanded& landed : sink_->Got<BlockLanded>())
    EXPECT_TRUE(blocks.insert(landed.memory.block).second);
}

TEST_P(TransferAgentTest, RefusesUnknownTransfersAndWrongSecrets) {
  OpenSendOf(2);
  OfferAll(2);
  ASSERT_TRUE(RunUntil([&] { return !source_->Got<SendFailed>().empty(); }));
  EXPECT_EQ(source_->Got<SendFailed>()[0].status.code(), absl::StatusCode::kCancelled);
  EXPECT_GT(sink_->agent().metrics().stale_frames[static_cast<size_t>(StaleReason::kTransfer)], 0u);
  source_->agent().Execute(CloseSend{transfer_});
  OpenLandingOf(2, 2);
  Credit(0, 2);
  source_->agent().Execute(OpenSend{.transfer = transfer_,
                                    .attempt = 2,
                                    .secret = Secret{},
                                    .address = "d:1",
                                    .incarnation = Incarnation{22},
                                    .num_pages = 2,
                                    .layout = layout_});
  OfferAll(2);
  ASSERT_TRUE(RunUntil([&] { return source_->Got<SendFailed>().size() == 2; }));
  EXPECT_GT(sink_->agent().metrics().stale_frames[static_cast<size_t>(StaleReason::kSecret)], 0u);
  EXPECT_EQ(NumLanded(), 0u);
}

TEST_P(TransferAgentTest, ReportsAWrongIncarnationAsPeerDown) {
  source_->agent().Execute(OpenSend{.transfer = transfer_,
                                    .attempt = 1,
                                    .secret = secret_,
                                    .address = "d:1",
                                    .incarnation = Incarnation{99},
                                    .num_pages = 1,
                                    .layout = layout_});
  ASSERT_TRUE(RunUntil([&] { return !source_->Got<SendFailed>().empty(); }));
  EXPECT_EQ(source_->Got<SendFailed>()[0].status.code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransferAgentTest, NoticesAKilledSenderAndReceiver) {
  OpenLandingOf(40);
  Credit(0, 20, /*with_tail=*/false);
  OpenSendOf(40);
  OfferAll(40);
  ASSERT_TRUE(RunUntil([&] { return NumLanded() >= 5; }));
  network_.Kill("p:1");
  source_.reset();
  ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingFailed>().empty(); }, absl::Seconds(1)));
  EXPECT_EQ(sink_->Got<LandingFailed>()[0].status.code(), absl::StatusCode::kUnavailable);
  sink_->agent().Execute(CloseLanding{transfer_});
  ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingClosed>().empty(); }, absl::Seconds(1)));
  EXPECT_EQ(sink_->Got<MemoryReturned>().size(), 20u);
}

TEST_P(TransferAgentTest, NoticesAStoppedSenderByItsSilence) {
  OpenLandingOf(40);
  Credit(0, 40);
  OpenSendOf(40);
  ASSERT_TRUE(RunUntil([&] { return network_.NextEventTime() == absl::InfiniteFuture(); }));
  for (uint32_t i = 0; i < 3; ++i)
    source_->agent().Execute(
        OfferBlock{.transfer = transfer_, .memory = source_->Page(static_cast<int>(i), i)});
  ASSERT_TRUE(RunUntil([&] { return NumLanded() == 3; }));
  RunFor(absl::Seconds(20));  // idle but alive: the beats go on
  EXPECT_TRUE(sink_->Got<LandingFailed>().empty());
  const absl::Time stopped = clock_.Now();
  network_.Stop("p:1");
  is_source_stopped_ = true;
  ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingFailed>().empty(); }));
  EXPECT_LE(clock_.Now() - stopped, absl::Seconds(2.6));
}

TEST_P(TransferAgentTest, KeepsMemoryUnderAStuckPullUntilDisconnect) {
  LinkSettings link;
  link.stuck_pull = 1;
  network_.SetLink("p:1", "d:1", link);
  OpenLandingOf(2);
  Credit(0, 2);
  OpenSendOf(2);
  OfferAll(2);
  RunFor(absl::Milliseconds(50));
  const absl::Time closed = clock_.Now();
  sink_->agent().Execute(CloseLanding{transfer_});
  RunFor(absl::Seconds(1.9));
  EXPECT_TRUE(sink_->Got<LandingClosed>().empty());
  EXPECT_TRUE(sink_->Got<MemoryReturned>().empty());  // all three are under open pulls
  EXPECT_EQ(sink_->agent().metrics().quarantined, 3);
  ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingClosed>().empty(); }));
  EXPECT_GE(clock_.Now() - closed, absl::Seconds(2));  // force-closed
  EXPECT_EQ(sink_->Got<MemoryReturned>().size(), 3u);
  EXPECT_EQ(sink_->agent().metrics().quarantined, 0);
  EXPECT_FALSE(sink_->agent().IsWedged());
}

TEST_P(TransferAgentTest, NothingLandsInReturnedMemory) {
  LinkSettings link;
  link.late_pull = 0.5;
  link.late_by = absl::Seconds(1);
  link.duplicate = 0.2;
  link.reorder = 0.3;
  network_.SetDefaultLink(link);
  OpenLandingOf(60);
  Credit(0, 90);
  OpenSendOf(60);
  OfferAll(60);
  ASSERT_TRUE(RunUntil([&] { return NumLanded() >= 10; }));
  sink_->agent().Execute(CloseLanding{transfer_});
  size_t reused = 0;
  auto reuse = [&] {  // a new owner writes its own pattern at once
    for (; reused < sink_->Got<MemoryReturned>().size(); ++reused) {
      const Place place = sink_->Got<MemoryReturned>()[reused].memory.place;
      sink_->Fill(place, 5000 + place.offset);
    }
    return !sink_->Got<LandingClosed>().empty();
  };
  ASSERT_TRUE(RunUntil(reuse));
  RunFor(absl::Seconds(10));
  EXPECT_EQ(reused, 91u);
  for (const MemoryReturned& returned : sink_->Got<MemoryReturned>()) {
    SeededRng rng(5000 + returned.memory.place.offset);
    for (const uint8_t b : sink_->Bytes(returned.memory.place))
      ASSERT_EQ(b, static_cast<uint8_t>(rng.Next()));
  }
}

// Whatever the links do, and wherever the landing is closed or its sender killed: landed bytes are
// the sender's, each piece of memory comes back exactly once, and nothing is written into it
// afterwards.
TEST_P(TransferAgentTest, KeepsItsPromisesOnHostileLinks) {
  for (int round = 0; round < 60; ++round) {
    source_.reset();
    sink_.reset();
    Start();
    LinkSettings link;
    link.drop = 0.02 * rng_.Uniform();
    link.duplicate = 0.2 * rng_.Uniform();
    link.reorder = 0.3 * rng_.Uniform();
    link.corrupt_block = 0.1 * rng_.Uniform();
    link.corrupt_announce = 0.05 * rng_.Uniform();
    link.late_pull = 0.2 * rng_.Uniform();
    link.stuck_pull = 0.1 * rng_.Uniform();
    link.is_close_told = rng_.Below(2) == 0;
    network_.SetDefaultLink(link);
    for (TestProcess* process : {source_.get(), sink_.get()})
      process->copier().Set({.failure = 0.02 * rng_.Uniform()});
    OpenLandingOf(40);
    Credit(0, 60);
    OpenSendOf(40);
    OfferAll(40);
    const size_t enough = rng_.Below(42);
    RunUntil([&] { return NumLanded() >= enough; }, absl::Seconds(4));
    ExpectLandedBytes();
    if (rng_.Below(2) == 0) {
      network_.Kill("p:1");
      source_.reset();
    }
    sink_->agent().Execute(CloseLanding{transfer_});
    std::map<uint64_t, Place> returned;
    size_t num_seen = 0;
    RunUntil(
        [&] {
          const auto all = sink_->Got<MemoryReturned>();
          for (; num_seen < all.size(); ++num_seen) {
            const Place place = all[num_seen].memory.place;
            EXPECT_TRUE(returned.emplace(place.offset, place).second) << "round " << round;
            sink_->Fill(place, 9000 + place.offset);
          }
          return false;
        },
        absl::Seconds(15));
    EXPECT_EQ(sink_->Got<LandingClosed>().size(), 1u) << "round " << round;
    EXPECT_EQ(returned.size(), 61u) << "round " << round;
    for (const auto& [offset, place] : returned) {
      SeededRng rng(9000 + offset);
      for (const uint8_t b : sink_->Bytes(place)) ASSERT_EQ(b, static_cast<uint8_t>(rng.Next()));
    }
  }
}

TEST_P(TransferAgentTest, TellsTheReceiverThatASendWasCancelled) {
  OpenLandingOf(4);
  Credit(0, 4);
  OpenSendOf(4);
  source_->agent().Execute(OfferBlock{.transfer = transfer_, .memory = source_->Page(0, 0)});
  ASSERT_TRUE(RunUntil([&] { return NumLanded() == 1; }));
  source_->agent().Execute(CloseSend{transfer_});
  ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingFailed>().empty(); }));
  EXPECT_FALSE(source_->Got<SendReleased>().empty());
}

TEST_P(TransferAgentTest, AnswersCommandsForTransfersItDoesNotKnow) {
  sink_->agent().Execute(CloseLanding{transfer_});
  sink_->agent().Execute(CloseSend{transfer_});
  sink_->agent().Execute(RetargetLanding{.transfer = transfer_, .attempt = 2});
  Credit(0, 3);
  sink_->agent().Execute(OfferBlock{.transfer = transfer_, .memory = sink_->Page(0)});
  sink_->Run();
  EXPECT_EQ(sink_->Got<LandingClosed>().size(), 1u);
  EXPECT_EQ(sink_->Got<SendReleased>().size(), 1u);
  EXPECT_EQ(sink_->Got<LandingFailed>().size(), 1u);
  EXPECT_EQ(sink_->Got<MemoryReturned>().size(), 4u);
  EXPECT_EQ(sink_->agent().NextTimer(), absl::InfiniteFuture());
}

TEST_P(TransferAgentTest, DetectsTenThousandCorruptions) {
  LinkSettings link;
  link.corrupt_block = 1;
  network_.SetLink("p:1", "d:1", link);
  for (int round = 0; sink_->agent().metrics().digest_failures < 10000; ++round) {
    ASSERT_LT(round, 400);
    sink_->ForgetEvents();
    OpenLandingOf(64);
    Credit(0, 90, false);
    OpenSendOf(64);
    OfferAll(64);
    RunFor(absl::Seconds(1));
    EXPECT_EQ(NumLanded(), 0u);
    source_->agent().Execute(CloseSend{transfer_});
    sink_->agent().Execute(CloseLanding{transfer_});
    ASSERT_TRUE(RunUntil([&] { return !sink_->Got<LandingClosed>().empty(); }));
    RunFor(absl::Seconds(1));
  }
  EXPECT_EQ(sink_->agent().metrics().blocks_landed, 0u);
}

INSTANTIATE_TEST_SUITE_P(IsStaged, TransferAgentTest, ::testing::Bool(),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace baton::kvtransfer
