#include "worker/landing_table.h"

#include <cstring>
#include <gtest/gtest.h>
#include <vector>

#include "worker/landing_table_fixture.h"

namespace baton::worker {
namespace {

TEST_F(LandingTableTest, ReserveBooksACountAndHandsOutAWindowOfPages) {
  Reserve(10 * kPageTokens);
  ASSERT_EQ(out_.To(kSession).reserved.size(), 1u);
  EXPECT_EQ(out_.To(kSession).reserved[0].landing.window, 4u);
  EXPECT_EQ(pool_.Counts().leased, 4);
  EXPECT_EQ(pool_.Counts().booked, 6 + setup_.limits.headroom_pages);
  const auto* open = std::get_if<kvtransfer::OpenLanding>(&out_.commands[0]);
  ASSERT_NE(open, nullptr);
  EXPECT_EQ(open->tail_bytes, kernels::MakeTailLayout(setup_.layout, 2560, 1).total_bytes);
}

TEST_F(LandingTableTest, EachLandedPageIsReplacedUntilAllAreThere) {
  Reserve(6 * kPageTokens);
  Land(TakeCredit(false)[0], 3);
  EXPECT_EQ(TakeCredit(false).size(), 5u);
  Land(TakeCredit(false)[1], 0);
  Land(TakeCredit(false)[2], 1);
  EXPECT_EQ(TakeCredit(false).size(), 6u);  // six pages: no more are needed
  EXPECT_EQ(table_->Find(transfer_)->state, LandingState::kFilling);
}

TEST_F(LandingTableTest, AReturnedPageIsOfferedAgain) {
  Reserve(2 * kPageTokens);
  const auto credit = TakeCredit(false);
  out_.commands.clear();
  table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = credit[1]}, out_);
  ASSERT_EQ(TakeCredit(false).size(), 1u);
  EXPECT_EQ(TakeCredit(false)[0].memory, credit[1].memory);
  const kvtransfer::BlockMemory tail = TailMemory(setup_, *table_->Find(transfer_)->agent_tail, 1);
  table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = tail}, out_);
  EXPECT_EQ(TakeCredit(true).size(), 1u);
}

TEST_F(LandingTableTest, ReadyNeedsPagesTailAndPrompt) {
  Reserve(300);
  LandEverything();
  EXPECT_TRUE(out_.To(kSession).landed.empty());
  clock_.Advance(absl::Milliseconds(3));
  SendPrompt();
  ASSERT_EQ(out_.To(kSession).landed.size(), 1u);
  EXPECT_EQ(out_.To(kSession).landed[0].tokens[0].token, 100);
  EXPECT_EQ(out_.To(kSession).landed[0].transfer_us, 3000u);
  EXPECT_TRUE(HasClose());
  const auto ref = table_->NextToStart();
  ASSERT_TRUE(ref.has_value());
  EXPECT_EQ(ref->sequence->pages.size(), 2);
  EXPECT_EQ(tails_->num_free(), kTails - 1);  // until it is unpacked
  table_->MarkRunning(*ref, SequenceId{9});
  EXPECT_EQ(tails_->num_free(), kTails);
  EXPECT_FALSE(table_->NextToStart().has_value());
}

TEST_F(LandingTableTest, ChoicesShareFullPagesAndOwnTheirPartialOne) {
  Reserve(300, 3);
  SendPrompt();
  std::memset(pool_.Data(TakeCredit(false)[1].memory), 0x5a, 100);
  LandEverything();
  const Landing& landing = *table_->Find(transfer_);
  const auto first = landing.sequences[0].pages.ids(), second = landing.sequences[1].pages.ids();
  EXPECT_EQ(first[0], second[0]);
  EXPECT_NE(first[1], second[1]);
  EXPECT_EQ(std::memcmp(pool_.Data(first[1]), pool_.Data(second[1]), pool_.payload_bytes()), 0);
  EXPECT_EQ(pool_.leases(first[0]), 3);
}

TEST_F(LandingTableTest, AHandleInUseIsRefusedByName) {
  Reserve(300);
  wire::Reserve second = MakeReserve(300);
  second.transfer = TransferId{{9}};
  table_->Reserve(kSession, second, out_);
  table_->Reserve(SessionId{2}, second, out_);  // another router's handles are its own
  ASSERT_EQ(out_.To(kSession).refused.size(), 1u);
  EXPECT_EQ(out_.To(kSession).refused[0].code, absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(out_.To(kSession).refused[0].message,
            "sequences: handle 0 is in use in this session already");
  EXPECT_TRUE(out_.To(SessionId{2}).refused.empty());
  CancelAll();
  second.transfer = TransferId{{8}};
  table_->Reserve(kSession, second, out_);
  EXPECT_EQ(out_.To(kSession).reserved.size(), 2u);
}

TEST_F(LandingTableTest, ATailOfAnotherPromptFailsTheLanding) {
  Reserve(300);
  SendPrompt();
  for (uint32_t block = 0; block < 2; ++block) Land(TakeCredit(false)[block], block);
  const auto tail = TakeCredit(true)[0];
  WriteTail(tail.memory, 300, 1);
  tails_->Data(tail.memory, 16)[8] ^= std::byte{1};  // N
  Land(tail, kTailBlock);
  ASSERT_EQ(out_.To(kSession).failed.size(), 1u);
  EXPECT_EQ(out_.To(kSession).failed[0].code, absl::StatusCode::kDataLoss);
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, CancelWhileReservedQuarantinesWhatMayBeUnderAReceive) {
  Reserve(3 * kPageTokens);
  const auto credit = TakeCredit(false);
  EXPECT_TRUE(CancelAll().empty());
  EXPECT_TRUE(CancelAll().empty());
  EXPECT_EQ(pool_.Counts().quarantined, 3);
  EXPECT_EQ(pool_.Counts().booked, 0);
  table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = credit[0]}, out_);
  EXPECT_EQ(pool_.Counts().quarantined, 2);
  EXPECT_EQ(tails_->num_free(), kTails - 1);
  EXPECT_FALSE(table_->IsWedged(clock_.Now()));
  clock_.Advance(absl::Seconds(10));
  EXPECT_TRUE(table_->IsWedged(clock_.Now()));
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, CancelWhileFillingFreesVerifiedPagesAtOnce) {
  Reserve(3 * kPageTokens);
  const auto credit = TakeCredit(false);
  Land(credit[0], 0);
  Land(credit[1], 1);
  CancelAll();
  EXPECT_EQ(pool_.Counts().free, kPages - 1);
  table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = credit[0]},
             out_);  // freed already
  EXPECT_EQ(pool_.Counts().free, kPages - 1);
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, SessionLossAtEveryStateLeavesNothingLeased) {
  for (int state = 0; state < 5; ++state) {
    SCOPED_TRACE(state);
    Reserve(700, 2);
    if (state >= 1) Land(TakeCredit(false)[0], 0);
    if (state >= 2) SendPrompt();
    if (state == 2) Land(TakeCredit(true)[0], kTailBlock);
    if (state >= 3) {
      for (uint32_t block = 1; block < 3; ++block) Land(TakeCredit(false)[block], block);
      WriteTail(TakeCredit(true)[0].memory, 700, 2);
      Land(TakeCredit(true)[0], kTailBlock);
      ASSERT_EQ(out_.To(kSession).landed.size(), 1u);
    }
    engine::PageLease running;  // in the engine's hands
    engine::Booking booking;
    if (state == 4) {
      auto ref = table_->NextToStart();
      running = std::move(ref->sequence->pages);
      booking = std::move(ref->sequence->booking);
      table_->MarkRunning(*ref, SequenceId{77});
    }
    const auto ended = table_->CloseSession(kSession, clock_.Now(), out_);
    EXPECT_EQ(ended.size(), state == 4 ? 1u : 0u);
    running = {};
    booking = {};
    CloseAgent();
    ExpectNothingHeld();
    out_ = {};
  }
}

TEST_F(LandingTableTest, ALocalFillKeepsEveryPageItsLandingBooked) {
  Reserve(6 * kPageTokens);
  const auto credit = TakeCredit(false);
  Land(credit[0], 2);
  const wire::Run run{.transfer = transfer_,
                      .attempt = 1,
                      .request_id = {},
                      .landing = out_.To(kSession).reserved[0].landing,
                      .prompt_tokens = request_.prompt_tokens,
                      .sequences = request_.sequences,
                      .sampling = {},
                      .finish = {},
                      .masks = {},
                      .prompt_logprobs = {},
                      .verified_pages = {},
                      .prompt_class = {},
                      .remaining_ms = {},
                      .salt = {}};
  ASSERT_TRUE(table_->BeginLocalFill(run, out_));
  EXPECT_TRUE(HasClose());
  EXPECT_EQ(pool_.Counts().quarantined, 4);
  EXPECT_EQ(table_->NumLocalBooked(transfer_), 2);  // one verified page, one without credit
  for (const auto& memory : TakeCredit(false))
    table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = memory}, out_);
  EXPECT_EQ(table_->NumLocalBooked(transfer_), 6);
  engine::Booking booking = table_->TakeLocalBooking(transfer_);
  EXPECT_EQ(booking.remaining(), 6);
  CancelAll();
  booking = {};
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, AnotherSessionCannotCancelIt) {
  Reserve(300);
  table_->Cancel(SessionId{2}, {.transfer = transfer_, .sequence = {}, .reason = ""}, clock_.Now(),
                 out_);
  table_->CloseSession(SessionId{2}, clock_.Now(), out_);
  EXPECT_EQ(table_->Find(transfer_)->state, LandingState::kReserved);
}

TEST_F(LandingTableTest, NoTailBufferNoLanding) {
  for (uint8_t i = 0; i < kTails; ++i) {
    transfer_.bytes[0] = i;
    first_handle_ = i;
    Reserve(10);
  }
  transfer_.bytes[0] = first_handle_ = 200;
  const auto before = pool_.Counts();
  Reserve(10);
  ASSERT_EQ(out_.To(kSession).refused.size(), 1u);
  EXPECT_EQ(out_.To(kSession).refused[0].code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_.Counts().booked, before.booked);
}

TEST(FinishOf, StopTokenBeforeLength) {
  const FinishRules rules{.stop_tokens = {7}, .max_tokens = 2, .min_tokens = 0};
  EXPECT_FALSE(FinishOf({1}, {3}, rules).has_value());
  EXPECT_EQ(FinishOf({1}, {3, 4}, rules)->reason, FinishReason::kLength);
  EXPECT_EQ(FinishOf({1}, {3, 7}, rules)->reason, FinishReason::kStop);
  EXPECT_EQ(FinishOf({1}, {7}, rules)->stop_token, 7);
}

}  // namespace
}  // namespace baton::worker
