#include "worker/landing_table.h"

#include <algorithm>
#include <cstring>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <vector>

#include "kernels/tail_header.h"
#include "worker/prefill_job.h"
#include "worker/test_worker.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};
constexpr int kPages = 40;
constexpr int kTails = 3;

class LandingTableTest : public testing::Test {
 protected:
  LandingTableTest() {
    setup_.tail_stride = kernels::MaxTailBytes(setup_.layout, 4);
    setup_.weights.bytes[0] = 7;
    setup_.prompt_class.bytes[0] = setup_.decode_class.bytes[0] = 9;
    setup_.limits.max_context = 4096;
    setup_.limits.window = 4;
    tail_memory_.resize(kTails * setup_.tail_stride);
    tails_.emplace(tail_memory_, setup_.tail_stride);
    table_.emplace(setup_, pool_, *tails_, rng_);
  }

  wire::Reserve MakeReserve(int tokens, int choices = 1) const {
    wire::Reserve reserve;
    reserve.transfer = transfer_;
    reserve.prompt_tokens = static_cast<uint32_t>(tokens);
    reserve.num_pages = static_cast<uint32_t>(PagesFor(tokens));
    for (int i = 0; i < choices; ++i)
      reserve.sequences.push_back({.handle = {static_cast<uint32_t>(i)},
                                   .choice = static_cast<uint32_t>(i),
                                   .received = {}});
    reserve.finish.max_tokens = 2000;
    reserve.prompt_class = setup_.prompt_class;
    return reserve;
  }
  void Reserve(int tokens, int choices = 1) {
    request_ = MakeReserve(tokens, choices);
    table_->Reserve(kSession, request_, out_);
  }
  void SendPrompt() {
    const wire::PromptChunk chunk{.transfer = transfer_,
                                  .offset = 0,
                                  .tokens = std::vector<int32_t>(request_.prompt_tokens, 5),
                                  .is_last = true};
    ASSERT_TRUE(table_->AddPrompt(kSession, chunk, clock_.Now(), out_).ok());
  }
  // Pages and tail buffers the transfer thread was given and has neither landed in nor returned.
  std::vector<kvtransfer::BlockMemory> TakeCredit(bool is_tail) {
    std::vector<kvtransfer::BlockMemory> credit;
    for (const auto& command : out_.commands) {
      const auto* added = std::get_if<kvtransfer::AddCredit>(&command);
      if (added == nullptr) continue;
      for (const auto& memory : added->memory)
        if ((memory.block == kTailBlock) == is_tail) credit.push_back(memory);
    }
    return credit;
  }
  void Land(kvtransfer::BlockMemory memory, uint32_t block) {
    memory.block = block;
    table_->On(kvtransfer::BlockLanded{.transfer = transfer_, .memory = memory, .name = {}},
               clock_.Now(), out_);
  }
  void WriteTail(int buffer, uint64_t tokens, uint32_t choices) {
    const uint64_t bytes = kernels::MakeTailLayout(setup_.layout, tokens, choices).total_bytes;
    const std::span<std::byte> tail = tails_->Data(buffer, bytes);
    WriteTailHeader(setup_, tokens, choices, {}, tail);
    for (uint32_t i = 0; i < choices; ++i) {
      const uint64_t at = bytes - (choices - i) * kernels::kFirstTokenBytes;
      kernels::EncodeFirstToken({.token = static_cast<int32_t>(100 + i), .logprob = 0, .top = {}},
                                tail.subspan(at, kernels::kFirstTokenBytes));
    }
  }
  void LandEverything() {
    for (uint32_t block = 0; block < request_.num_pages; ++block) {
      const auto credit = TakeCredit(false);
      ASSERT_GT(credit.size(), block);
      Land(credit[block], block);
    }
    const int buffer = TakeCredit(true).at(0).memory;
    WriteTail(buffer, request_.prompt_tokens, static_cast<uint32_t>(request_.sequences.size()));
    Land(TakeCredit(true)[0], kTailBlock);
  }
  bool HasClose() const {
    return std::ranges::any_of(out_.commands, [](const auto& c) {
      return std::holds_alternative<kvtransfer::CloseLanding>(c);
    });
  }
  void CloseAgent() { table_->On(kvtransfer::LandingClosed{transfer_}); }
  std::vector<SequenceId> CancelAll() {
    return table_->Cancel(kSession, {.transfer = transfer_, .sequence = {}, .reason = ""},
                          clock_.Now(), out_);
  }
  void ExpectNothingHeld() {
    EXPECT_EQ(pool_.Counts().free, kPages);
    EXPECT_EQ(tails_->num_free(), kTails);
    EXPECT_TRUE(table_->IsEmpty());
    EXPECT_TRUE(pool_.CheckCounts().ok());
  }

  ManualClock clock_;
  SeededRng rng_{1};
  WorkerSetup setup_{.worker_id = "d",
                     .incarnation = {5},
                     .serves_decode = true,
                     .weights = {},
                     .layout_id = TestLayout().Id(),
                     .prompt_class = {},
                     .decode_class = {},
                     .kv_address = "d",
                     .layout = TestLayout(),
                     .pages_region = {},
                     .tails_region = {},
                     .tail_memory = {},
                     .limits = {}};
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * TestLayout().stride_bytes());
  engine::PagePool pool_{memory_.data(), kPages, TestLayout().stride_bytes(),
                         TestLayout().payload_bytes()};
  std::vector<std::byte> tail_memory_;
  std::optional<TailBuffers> tails_;
  std::optional<LandingTable> table_;
  Effects out_;
  TransferId transfer_{{1, 2, 3}};
  wire::Reserve request_;
};

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

TEST_F(LandingTableTest, RetargetKeepsVerifiedPagesAndIgnoresOldAttempts) {
  Reserve(3 * kPageTokens);
  Land(TakeCredit(false)[0], 1);
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  const auto* command = std::get_if<kvtransfer::RetargetLanding>(&out_.commands.back());
  ASSERT_NE(command, nullptr);
  EXPECT_EQ(command->attempt, 2u);
  table_->On(
      kvtransfer::LandingFailed{
          .transfer = transfer_, .attempt = 1, .status = absl::DataLossError("")},
      out_);
  EXPECT_TRUE(out_.To(kSession).failed.empty());
  table_->On(
      kvtransfer::LandingRetargeted{
          .transfer = transfer_, .attempt = 2, .verified = {false, true, false}},
      out_);
  ASSERT_EQ(out_.To(kSession).retargeted.size(), 1u);
  EXPECT_THAT(out_.To(kSession).retargeted[0].verified_pages,
              testing::ElementsAre(false, true, false));
  table_->On(
      kvtransfer::LandingFailed{
          .transfer = transfer_, .attempt = 2, .status = absl::DataLossError("twice")},
      out_);
  ASSERT_EQ(out_.To(kSession).failed.size(), 1u);
  EXPECT_EQ(out_.To(kSession).failed[0].code, absl::StatusCode::kDataLoss);
  EXPECT_EQ(table_->Find(transfer_)->state,
            LandingState::kFilling);  // the router may retarget again
}

TEST_F(LandingTableTest, MemoryUnderAnOldReceiveIsReplacedAtOnce) {
  Reserve(6 * kPageTokens);
  const auto credit = TakeCredit(false);
  const auto tail = TakeCredit(true).at(0);
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  out_.commands.clear();
  const kvtransfer::LandingRetargeted answer{.transfer = transfer_,
                                             .attempt = 2,
                                             .verified = std::vector<bool>(6),
                                             .quarantined = {credit[0], credit[2], tail}};
  table_->On(answer, out_);
  EXPECT_EQ(TakeCredit(false).size(), 2u);
  ASSERT_EQ(TakeCredit(true).size(), 1u);
  EXPECT_NE(TakeCredit(true)[0].memory, tail.memory);
  EXPECT_EQ(pool_.Counts().quarantined, 2);
  EXPECT_EQ(pool_.Counts().leased, 4);
  EXPECT_EQ(pool_.Counts().booked, 2 + setup_.limits.headroom_pages);

  table_->On(answer, out_);  // a second Retarget names what is still under a receive
  EXPECT_EQ(TakeCredit(false).size(), 2u);
  EXPECT_EQ(TakeCredit(true).size(), 1u);
  for (const auto& memory : {credit[0], credit[2], tail})
    table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = memory}, out_);
  EXPECT_EQ(TakeCredit(false).size(), 2u);
  EXPECT_EQ(pool_.Counts().quarantined, 0);
  EXPECT_EQ(tails_->num_free(), kTails - 1);
  CancelAll();
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, InADryPoolTheNewAttemptGetsWhatComesBack) {
  Reserve(6 * kPageTokens);
  const auto credit = TakeCredit(false);
  const auto tail = TakeCredit(true).at(0);
  engine::Booking others = *pool_.Book(pool_.Counts().free - 1);
  std::vector<int> other_tails;
  while (const auto buffer = tails_->Take()) other_tails.push_back(*buffer);
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  out_.commands.clear();
  table_->On(
      kvtransfer::LandingRetargeted{.transfer = transfer_,
                                    .attempt = 2,
                                    .verified = std::vector<bool>(6),
                                    .quarantined = {credit[0], credit[1], credit[2], tail}},
      out_);
  EXPECT_EQ(TakeCredit(false).size(), 3u);  // two booked before, and the pool's last one
  EXPECT_TRUE(TakeCredit(true).empty());
  EXPECT_EQ(table_->Find(transfer_)->num_owed, 2);
  out_.commands.clear();
  for (const auto& memory : {credit[0], credit[1], tail})
    table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = memory}, out_);
  EXPECT_EQ(table_->Find(transfer_)->num_owed, 0);
  EXPECT_EQ(TakeCredit(true).at(0).memory, tail.memory);
  EXPECT_EQ(pool_.Counts().quarantined, 1);
  CancelAll();
  EXPECT_EQ(table_->Find(transfer_)->quarantined.size(), 5u);
  CloseAgent();
  others = {};
  for (const int buffer : other_tails) tails_->Return(buffer);
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, ACloseGivesBackWhatIsUnderReceivesOfTwoAttempts) {
  Reserve(3 * kPageTokens);
  const auto credit = TakeCredit(false);
  const auto tail = TakeCredit(true).at(0);
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  table_->On(kvtransfer::LandingRetargeted{.transfer = transfer_,
                                           .attempt = 2,
                                           .verified = std::vector<bool>(3),
                                           .quarantined = {credit[1], tail}},
             out_);
  EXPECT_EQ(tails_->num_free(), kTails - 2);
  CancelAll();
  EXPECT_EQ(pool_.Counts().quarantined, 4);
  EXPECT_EQ(tails_->num_free(), kTails - 2);
  CloseAgent();
  ExpectNothingHeld();
}

TEST_F(LandingTableTest, RetargetOfAnUnknownTransferIsRefused) {
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  ASSERT_EQ(out_.To(kSession).refused.size(), 1u);
  EXPECT_EQ(out_.To(kSession).refused[0].stage, wire::Stage::kRetarget);
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
    Reserve(10);
  }
  transfer_.bytes[0] = 200;
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
