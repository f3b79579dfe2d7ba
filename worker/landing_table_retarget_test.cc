// What a new attempt keeps of the old one, and what it gets in place of the rest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <vector>

#include "worker/landing_table_fixture.h"

namespace baton::worker {
namespace {

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
  table_->On(kvtransfer::LandingRetargeted{.transfer = transfer_,
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

TEST_F(LandingTableTest, WhatOthersGiveBackLaterReplacesWhatIsOwed) {
  Reserve(6 * kPageTokens);
  const auto credit = TakeCredit(false);
  const auto tail = TakeCredit(true).at(0);
  engine::Booking others = *pool_.Book(pool_.Counts().free);
  std::vector<int> other_tails;
  while (const auto buffer = tails_->Take()) other_tails.push_back(*buffer);
  table_->Retarget(kSession, {.transfer = transfer_, .attempt = 2}, out_);
  table_->On(kvtransfer::LandingRetargeted{.transfer = transfer_,
                                           .attempt = 2,
                                           .verified = std::vector<bool>(6),
                                           .quarantined = {credit[0], credit[1], credit[2],
                                                           credit[3], tail}},
             out_);
  EXPECT_EQ(table_->num_owed(), 4);
  out_.commands.clear();
  table_->ReplaceOwed(out_);  // nothing came free
  EXPECT_TRUE(out_.commands.empty());
  EXPECT_TRUE(table_->IsOwed());
  others = {};
  table_->ReplaceOwed(out_);
  EXPECT_EQ(TakeCredit(false).size(), 2u);  // the window, with the two that were booked before
  EXPECT_EQ(table_->num_owed(), 0);
  EXPECT_TRUE(table_->IsOwed()) << "the tail buffer is lacking";
  for (const int buffer : other_tails) tails_->Return(buffer);
  table_->ReplaceOwed(out_);
  EXPECT_EQ(TakeCredit(true).size(), 1u);
  EXPECT_FALSE(table_->IsOwed());
  for (const auto& memory : {credit[0], credit[1], credit[2], credit[3], tail})
    table_->On(kvtransfer::MemoryReturned{.transfer = transfer_, .memory = memory}, out_);
  EXPECT_EQ(TakeCredit(false).size(), 2u);
  EXPECT_EQ(TakeCredit(true).size(), 1u);
  CancelAll();
  CloseAgent();
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

}  // namespace
}  // namespace baton::worker
