#include <gtest/gtest.h>
#include <optional>
#include <string>
#include <tuple>

#include "kvtransfer/ucx/test_child.h"

// A sender whose sockets misbehave below UCX (contracts.md 7, row 4.6; test_socket_faults.cc).
namespace baton::kvtransfer {
namespace {

constexpr TestShape kShape{.num_pages = 48, .page_bytes = 995328, .tail_bytes = 3751664};
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int kSeeds = 4;

struct Outcome {
  bool is_whole = false;  // every block landed and acked; if not, both sides know
  uint64_t digest_failures = 0;
};

// One transfer over sockets with `fault`, to its end: all landed, or failed and everything
// returned.
class Transfer {
 public:
  Transfer(const std::string& fault, const std::string& mode, int seed)
      : node_(kShape, ReceiverConfig(), TransferLimits::Dev()) {
    node_.OpenLandingWithCredit(kShape.num_pages);
    sender_.emplace(node_.transport().Address(), kShape, mode,
                    std::vector<std::string>{std::string("LD_PRELOAD=") + BATON_SOCKET_FAULTS,
                                             "BATON_SOCKET_FAULT=" + fault,
                                             "BATON_SOCKET_SEED=" + std::to_string(seed)});
  }

  Outcome Run() {
    // A connection cut before the first announcement is seen by the sender alone.
    std::optional<int> exit;
    const auto is_over = [&] {
      CreditReturned();
      if (!exit) exit = sender_->Exit();
      return exit || node_.Count<LandingFailed>() > 0;
    };
    EXPECT_TRUE(node_.RunUntil(is_over, kPatience)) << node_.Count<BlockLanded>() << " landed";
    EXPECT_TRUE(node_.RunUntil([&] { return exit || (exit = sender_->Exit()); }, kPatience));
    ExpectLandedBytes();
    const Outcome outcome{.is_whole = node_.Count<BlockLanded>() == kShape.num_pages + 1,
                          .digest_failures = node_.agent().metrics().digest_failures};
    EXPECT_EQ(exit, outcome.is_whole ? 0 : 3);
    Close();
    return outcome;
  }

 private:
  // Memory of a block that failed its digest is credited again, as the engine does.
  void CreditReturned() {
    const auto returned = node_.Got<MemoryReturned>();
    for (; num_credited_ < returned.size(); ++num_credited_)
      node_.agent().Execute(
          AddCredit{.transfer = TestTransfer(), .memory = {returned[num_credited_].memory}});
  }
  // A page may land in any memory of the landing: its pattern is its block's number.
  void ExpectLandedBytes() {
    for (const BlockLanded& landed : node_.Got<BlockLanded>()) {
      const uint64_t seed =
          landed.memory.block == kTailBlock ? kShape.num_pages : landed.memory.block;
      EXPECT_TRUE(HasPattern(node_.Bytes(landed.memory.place), seed)) << "block " << seed;
    }
  }
  void Close() {
    node_.agent().Execute(CloseLanding{TestTransfer()});
    EXPECT_TRUE(node_.RunUntil([&] { return node_.Count<LandingClosed>() > 0; }, kPatience));
    EXPECT_EQ(node_.Count<MemoryReturned>() - num_credited_, kShape.num_pages + 1);
    EXPECT_EQ(node_.agent().metrics().open_receives, 0);
  }

  TestNode node_;
  std::optional<TestSender> sender_;
  size_t num_credited_ = 0;
};

class SocketFaultsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SocketFaultsTest, PiecesOfAnySizeCarryTheSameBytes) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = Transfer("pieces", GetParam(), seed).Run();
    EXPECT_TRUE(outcome.is_whole && outcome.digest_failures == 0) << "seed " << seed;
  }
}

TEST_P(SocketFaultsTest, AStalledSocketDelaysAndLosesNothing) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = Transfer("stall", GetParam(), seed).Run();
    EXPECT_TRUE(outcome.is_whole && outcome.digest_failures == 0) << "seed " << seed;
  }
}

TEST_P(SocketFaultsTest, NoChangedBitIsEverTaken) {
  uint64_t failures = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = Transfer("flip", GetParam(), seed).Run();
    failures += outcome.digest_failures;
  }
  EXPECT_GT(failures, 0u) << "no bit was changed: the test has lost its subject";
}

TEST_P(SocketFaultsTest, ACutConnectionFailsTheTransferAndGivesEverythingBack) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = Transfer("cut", GetParam(), seed).Run();
    EXPECT_FALSE(outcome.is_whole) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SocketFaultsTest, ::testing::Values("eager", "pull"));

}  // namespace
}  // namespace baton::kvtransfer
