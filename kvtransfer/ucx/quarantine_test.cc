#include <gtest/gtest.h>
#include <map>
#include <optional>

#include "common/digest.h"
#include "kvtransfer/ucx/test_child.h"

// Two processes over UCX (contracts.md 7, quarantine): this one receives, test_sender sends.
namespace baton::kvtransfer {
namespace {

constexpr TestShape kShape{.num_pages = 96, .page_bytes = 995328, .tail_bytes = 4519664};
constexpr absl::Duration kPatience = absl::Seconds(60);

// New owner of returned memory: writes its own bytes at once and remembers their digest.
class NewOwner {
 public:
  explicit NewOwner(TestNode& node) : node_(node) {}
  // Takes everything returned since the last call.
  void TakeReturned() {
    const auto returned = node_.Got<MemoryReturned>();
    for (; num_seen_ < returned.size(); ++num_seen_) {
      const BlockMemory& memory = returned[num_seen_].memory;
      EXPECT_FALSE(digests_.contains(memory.place.offset)) << "returned twice";
      FillPattern(node_.Bytes(memory.place), 100000 + num_seen_);
      digests_[memory.place.offset] = {memory.place, digest_.Of({}, node_.Bytes(memory.place))};
    }
  }
  void ExpectIntact() const {
    for (const auto& [offset, owned] : digests_)
      EXPECT_EQ(digest_.Of({}, node_.Bytes(owned.first)), owned.second)
          << "written after its return: " << offset;
  }
  size_t NumTaken() const { return num_seen_; }

 private:
  TestNode& node_;
  const NhDigest digest_{TestSecret()};
  size_t num_seen_ = 0;
  std::map<uint64_t, std::pair<Place, Digest128>> digests_;
};

class QuarantineTest : public ::testing::TestWithParam<const char*> {};

TEST_P(QuarantineTest, ReturnedMemoryIsNeverWrittenWhenAStoppedSenderGoesOn) {
  TransferLimits limits;
  limits.silence = absl::Seconds(50);  // what is tested is the cancel, not the silence
  TestNode node(kShape, ReceiverConfig(), limits);
  node.OpenLandingWithCredit(kShape.num_pages);
  TestSender sender(node.transport().Address(), kShape, GetParam());
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<BlockLanded>() >= 3; }, kPatience));
  sender.Stop();
  // Blocks that had left the sender may still be offered; the landing is closed in the middle of
  // them.
  for (int i = 0; i < 3; ++i) node.RunOnce();
  ASSERT_LT(node.Count<BlockLanded>(), kShape.num_pages);
  NewOwner owner(node);
  node.agent().Execute(CloseLanding{TestTransfer()});
  const auto is_closed = [&] {
    owner.TakeReturned();
    return node.Count<LandingClosed>() > 0;
  };
  ASSERT_TRUE(node.RunUntil(is_closed, kPatience));
  EXPECT_EQ(owner.NumTaken(), kShape.num_pages + 1);
  EXPECT_FALSE(node.agent().IsWedged());
  owner.ExpectIntact();
  sender.Continue();
  std::optional<int> exit;
  ASSERT_TRUE(node.RunUntil([&] { return (exit = sender.Exit()).has_value(); }, kPatience));
  EXPECT_EQ(*exit, 3);  // it learned that its transfer is over
  EXPECT_EQ(node.agent().metrics().open_receives, 0);
  owner.ExpectIntact();
}

TEST_P(QuarantineTest, AKilledSenderIsNoticedAndItsMemoryComesBack) {
  TestNode node(kShape, ReceiverConfig(), TransferLimits::Dev());
  node.OpenLandingWithCredit(kShape.num_pages);
  TestSender sender(node.transport().Address(), kShape, GetParam());
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<BlockLanded>() >= 3; }, kPatience));
  sender.Kill();
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<LandingFailed>() > 0; }, kPatience));
  EXPECT_EQ(node.Got<LandingFailed>()[0].status.code(), absl::StatusCode::kUnavailable);
  for (const BlockLanded& landed : node.Got<BlockLanded>()) {
    const uint64_t seed =
        landed.memory.block == kTailBlock ? kShape.num_pages : landed.memory.block;
    EXPECT_TRUE(HasPattern(node.Bytes(landed.memory.place), seed));
  }
  NewOwner owner(node);
  node.agent().Execute(CloseLanding{TestTransfer()});
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<LandingClosed>() > 0; }, kPatience));
  owner.TakeReturned();
  EXPECT_EQ(owner.NumTaken(), kShape.num_pages + 1);
  owner.ExpectIntact();
}

TEST_P(QuarantineTest, MovesTwoHundredBlocks) {
  constexpr TestShape kLong{.num_pages = 200, .page_bytes = 110592, .tail_bytes = 3751664};
  TestNode node(kLong, ReceiverConfig(), TransferLimits::Dev());
  node.OpenLandingWithCredit(kLong.num_pages);
  TestSender sender(node.transport().Address(), kLong, GetParam());
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<BlockLanded>() == 201; }, kPatience));
  for (const BlockLanded& landed : node.Got<BlockLanded>()) {
    const uint64_t seed = landed.memory.block == kTailBlock ? kLong.num_pages : landed.memory.block;
    EXPECT_TRUE(HasPattern(node.Bytes(landed.memory.place), seed));
  }
  std::optional<int> exit;
  ASSERT_TRUE(node.RunUntil([&] { return (exit = sender.Exit()).has_value(); }, kPatience));
  EXPECT_EQ(*exit, 0);
  EXPECT_EQ(node.agent().metrics().digest_failures, 0u);
}

TEST_P(QuarantineTest, AStoppedSenderIsDeadAfterItsSilence) {
  TransferLimits limits;
  limits.beat = absl::Seconds(0.2);
  limits.silence = absl::Seconds(1);
  TestNode node(kShape, ReceiverConfig(), limits);
  node.OpenLandingWithCredit(kShape.num_pages);
  TestSender sender(node.transport().Address(), kShape, GetParam());
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<BlockLanded>() >= 1; }, kPatience));
  sender.Stop();
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<LandingFailed>() > 0; }, kPatience));
  NewOwner owner(node);
  node.agent().Execute(CloseLanding{TestTransfer()});
  ASSERT_TRUE(node.RunUntil([&] { return node.Count<LandingClosed>() > 0; }, kPatience));
  owner.TakeReturned();
  sender.Continue();
  std::optional<int> exit;
  ASSERT_TRUE(node.RunUntil([&] { return (exit = sender.Exit()).has_value(); }, kPatience));
  EXPECT_NE(*exit, 0);
  owner.ExpectIntact();
}

INSTANTIATE_TEST_SUITE_P(Modes, QuarantineTest, ::testing::Values("eager", "pull"));

}  // namespace
}  // namespace baton::kvtransfer
