#include <gmock/gmock.h>

#include "engine/loop_fixture.h"

namespace baton::engine::test {
namespace {

using testing::ElementsAre;

INSTANTIATE_TEST_SUITE_P(Sync, EngineLoopTest, testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Behind, EngineLoopTest, testing::Values(true));

TEST_P(EngineLoopTest, PrefillsInChunksAndStopsAtTheFirstTokens) {
  Sequence s = MakeSequence(1, 600, 10);
  s.choices = {0, 1};
  s.received = {{}, {}};
  loop_.Admit(std::move(s), *pool_.Book(3));
  RunAll();
  EXPECT_THAT(recorder_.notes, ElementsAre("1: chunk 512", "1: chunk 600", "1: first 600 600"));
  EXPECT_EQ(loop_.counters().prefill_tokens, 600u);
  EXPECT_EQ(pool_.Counts().booked, 0);
  EXPECT_EQ(loop_.Release({1}).pages.size(), 3);
}

TEST_P(EngineLoopTest, ReceivedFirstTokenWins) {
  Sequence s = MakeSequence(1, 100, 10);
  s.received = {{77}};
  loop_.Admit(std::move(s), Booking());
  RunAll();
  EXPECT_THAT(recorder_.notes, ElementsAre("1: chunk 100", "1: mismatch", "1: first 77"));
}

TEST_P(EngineLoopTest, ContinuesToLength) {
  Prefill(1, 100, 6);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102, 103, 104, 105));
  EXPECT_EQ(recorder_.notes.back(), "1: length");
  EXPECT_EQ(recorder_.released[0].tokens.size(), 106u);
  EXPECT_GT(loop_.counters().accepted_drafts, 0u);
}

TEST_P(EngineLoopTest, StopTokenEndsTheSequenceEvenInMidStep) {
  Sequence s = MakeSequence(1, 100, 50);
  s.finish.stop_tokens = {102};
  loop_.Admit(std::move(s), Booking());
  RunAll();
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102));  // the step also verified 103
  EXPECT_EQ(recorder_.notes.back(), "1: stop 102");
}

TEST_P(EngineLoopTest, ASequenceFinishedByItsFirstTokenRunsNoStep) {
  Prefill(1, 100, 1);
  const uint64_t steps = loop_.counters().steps;
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_EQ(recorder_.notes.back(), "1: length");
  EXPECT_EQ(loop_.counters().steps, steps);
}

TEST_P(EngineLoopTest, WrongDraftsChangeNothingButSpeed) {
  runner_.wrong_draft_at = 103;
  Prefill(1, 100, 6);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102, 103, 104, 105));
}

TEST_P(EngineLoopTest, ReplaysTheRecordSilentlyThenDecodes) {
  Sequence s = MakeSequence(1, 100, 103);
  s.received = {{}};
  for (int i = 0; i < 100; ++i) s.received[0].push_back(i == 40 ? 7 : 100 + i);
  loop_.Admit(std::move(s), Booking());
  RunAll();
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(200, 201, 202));
  EXPECT_THAT(recorder_.notes, testing::Contains("1: mismatch").Times(1));
  EXPECT_EQ(loop_.counters().replayed_tokens, 99u);
  EXPECT_EQ(recorder_.released[0].tokens[140], 7);
}

TEST_P(EngineLoopTest, AFailedSequenceFailsAlone) {
  runner_.fails_at = {{1, 103}};
  Prefill(1, 100, 50);
  Prefill(2, 100, 8);
  loop_.Continue({1}, 100);
  loop_.Continue({2}, 100);
  RunAll();
  EXPECT_THAT(recorder_.notes, testing::Contains("1: failed"));
  EXPECT_THAT(recorder_.notes, testing::Contains("2: length"));
  loop_.Release({1});
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_P(EngineLoopTest, ParksTheYoungestAndResumesItBitEqual) {
  Prefill(1, 1500, 400);  // grows to 8 pages
  Prefill(2, 2000, 300);  // grows to 9 pages
  Prefill(3, 256, 200);   // the 2 pages that are left, until the others want them
  for (const uint64_t id : {1, 2, 3})
    loop_.Continue({id}, static_cast<int32_t>(loop_.Get({id}).tokens.size()));
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), 399u);
  EXPECT_EQ(recorder_.emitted[2].size(), 299u);
  EXPECT_EQ(recorder_.emitted[3].size(), 199u);
  EXPECT_THAT(recorder_.notes, testing::Contains("3: parked"));
  EXPECT_THAT(recorder_.notes, testing::Contains("3: resumed"));
  EXPECT_EQ(loop_.num_parked(), 0);
  EXPECT_EQ(loop_.host_pages(), 0);
}

TEST_P(EngineLoopTest, ParkedSequencesKeepTheirSlotBackAndCanBeReleased) {
  Prefill(1, 256 * 13 - 6, 300);
  Prefill(2, 256 * 3 - 20, 300);
  for (const uint64_t id : {1, 2})
    loop_.Continue({id}, static_cast<int32_t>(loop_.Get({id}).tokens.size()));
  while (!loop_.IsParked({2})) ASSERT_TRUE(*loop_.RunOnce());
  EXPECT_GT(loop_.host_pages(), 0);
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
  EXPECT_FALSE(loop_.TakeTailSlot().has_value());  // 4 slots: one runs, one is kept back
  const Sequence parked = loop_.Release({2});
  EXPECT_EQ(parked.pages.size(), 0);
  EXPECT_EQ(parked.tail_slot, -1);
  EXPECT_EQ(loop_.host_pages(), 0);
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
}

TEST_P(EngineLoopTest, ReclaimsCachedPagesBeforeItParks) {
  std::vector<PageId> cached;
  {
    absl::StatusOr<Booking> booking = pool_.Book(14);
    const PageLease lease = pool_.Take(*booking, 14);
    for (const PageId page : lease.ids()) {
      pool_.Cache(page);
      cached.push_back(page);
    }
  }
  loop_.SetReclaimer([&](int pages) {
    for (; pages > 0; --pages) {
      pool_.Uncache(cached.back());
      cached.pop_back();
    }
  });
  Prefill(1, 600, 300);
  loop_.Continue({1}, 600);
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), 299u);
  EXPECT_EQ(cached.size(), 12u);  // 4 pages were needed, 2 were free
}

TEST_P(EngineLoopTest, ReleaseInsideACallbackSkipsWhatIsLeftOfThatSequence) {
  recorder_.release_on_tokens = true;
  Prefill(1, 100, 2);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.notes, testing::Not(testing::Contains("1: length")));
  EXPECT_FALSE(loop_.Has({1}));
}

}  // namespace
}  // namespace baton::engine::test
