#include <functional>

#include "common/demo_vocabulary.h"
#include "engine/grammar/grammar_cache.h"
#include "engine/loop_fixture.h"
#include "kernels/test_device.h"

namespace baton::engine::test {
namespace {

// The loop one step behind its runner: what is in flight when something happens.
class StepBehind : public EngineLoopTest {
 protected:
  void Start(uint64_t id, int64_t max_tokens) {
    Prefill(id, 100, max_tokens);
    loop_.Continue({id}, 100);
  }
  // Until a step is in flight outside RunOnce.
  void RunUntilInFlight() {
    for (int i = 0; i < 100 && runner_.num_in_flight() == 0; ++i) ASSERT_TRUE(*loop_.RunOnce());
    ASSERT_EQ(runner_.num_in_flight(), 1u);
  }
};
INSTANTIATE_TEST_SUITE_P(Behind, StepBehind, testing::Values(true));

TEST_P(StepBehind, OneStepIsAppliedWhileTheNextIsInFlight) {
  Start(1, 200);
  Start(2, 200);
  RunUntilInFlight();
  const size_t told = recorder_.emitted[1].size();
  ASSERT_TRUE(*loop_.RunOnce());
  EXPECT_EQ(recorder_.emitted[1].size(), told + 3);
  EXPECT_EQ(runner_.num_in_flight(), 1u);
  RunAll();
  EXPECT_EQ(recorder_.emitted[2].size(), 199u);
  EXPECT_GT(loop_.counters().steps_ahead, 50u);
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_P(StepBehind, NothingOfAStepCountsForWhatEndedBefore) {
  runner_.tokens[150] = 9999;
  Sequence s = MakeSequence(1, 100, 300);
  s.finish.stop_tokens = {9999};
  loop_.Admit(std::move(s), Booking());
  RunAll();
  loop_.Continue({1}, 100);
  Start(2, 300);
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].back(), 9999);
  EXPECT_EQ(recorder_.emitted[1].size(), 50u);
  EXPECT_EQ(recorder_.emitted[2].size(), 299u);
}

TEST_P(StepBehind, WhatNeedsTheTokensBeforeWaitsForThem) {
  const auto steps_ahead = [&](const std::function<void(Sequence&)>& edit) {
    const uint64_t before = loop_.counters().steps_ahead;
    Sequence s = MakeSequence(7, 100, 20);
    edit(s);
    loop_.Admit(std::move(s), Booking());
    RunAll();
    loop_.Continue({7}, 100);
    RunAll();
    EXPECT_EQ(recorder_.emitted[7].size(), 19u);
    recorder_.emitted.clear();
    recorder_.Forget({7});
    return loop_.counters().steps_ahead - before;
  };
  EXPECT_GT(steps_ahead([](Sequence&) {}), 3u);
  EXPECT_GT(steps_ahead([](Sequence& s) { s.sampling.logit_bias = {{1, 2.0f}}; }), 3u);
  EXPECT_EQ(steps_ahead([](Sequence& s) { s.sampling.repetition_penalty = 1.1f; }), 0u);
  EXPECT_EQ(steps_ahead([](Sequence& s) { s.sampling.frequency_penalty = 0.1f; }), 0u);
  EXPECT_EQ(steps_ahead([](Sequence& s) { s.sampling.presence_penalty = 0.1f; }), 0u);
  EXPECT_EQ(steps_ahead([](Sequence& s) { s.sampling.bad_words = {{5, 6}}; }), 0u);
  EXPECT_EQ(steps_ahead([](Sequence& s) { s.finish.min_tokens = 20; }), 0u);
  GrammarCache grammars(DemoVocabulary(), clock_);
  MaskRules rules;
  rules.forced_prefix = {100};
  EXPECT_EQ(steps_ahead([&](Sequence& s) {
              s.masks.emplace(*MaskSource::Create(grammars, rules, grammars.Room()));
            }),
            0u);
}

// Transfers may write them at once.
TEST_P(StepBehind, PagesThatEndedStepsHadAreTakenWithoutAWait) {
  kernels::InvertedDevice device(1);
  pool_.UseDevice(device, *device.MakeMemoryQueue());
  Start(1, 200);
  RunAll();
  const int zeroed = device.num_unsynchronized;
  EXPECT_GT(zeroed, 0);
  Booking booking = *pool_.Book(kPages);
  const PageLease all = pool_.Take(booking, kPages);
  EXPECT_EQ(device.num_unsynchronized, zeroed);
}

// What is promised to a sequence is nobody's once it is released; what a step in flight uses,
// later.
TEST_P(StepBehind, ABookingReturnsAtOnce) {
  Sequence s = MakeSequence(1, 100, 200);
  loop_.Admit(std::move(s), *pool_.Book(5));
  RunAll();
  loop_.Continue({1}, 100);
  RunUntilInFlight();
  loop_.ReturnTailSlot(loop_.Release({1}).tail_slot);
  EXPECT_TRUE(loop_.IsKeepingPages());
  EXPECT_EQ(pool_.Counts().booked, 0);
  RunAll();
}

TEST_P(StepBehind, WhatIsInUseIsGivenToNobodyElse) {
  Start(1, 200);
  Start(2, 200);
  RunUntilInFlight();
  const size_t told = recorder_.emitted[1].size();
  const int free = pool_.Counts().free;
  {
    const Sequence released = loop_.Release({1});
    EXPECT_EQ(released.tokens.size(), 100 + 1 + told);
    loop_.ReturnTailSlot(released.tail_slot);
  }
  EXPECT_EQ(runner_.num_in_flight(), 1u);
  EXPECT_EQ(pool_.Counts().free, free);
  EXPECT_TRUE(loop_.IsKeepingPages());
  std::vector<int> slots = {*loop_.TakeTailSlot(), *loop_.TakeTailSlot()};  // waits
  EXPECT_EQ(runner_.num_in_flight(), 0u);
  EXPECT_EQ(pool_.Counts().free, free + 1);
  EXPECT_FALSE(loop_.IsKeepingPages());
  slots.push_back(*loop_.TakeTailSlot());
  EXPECT_FALSE(loop_.TakeTailSlot().has_value());
  for (const int slot : slots) loop_.ReturnTailSlot(slot);
  Start(3, 200);
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), told);
  EXPECT_EQ(recorder_.emitted[2].size(), 199u);
  EXPECT_EQ(recorder_.emitted[3].size(), 199u);
}

TEST_P(StepBehind, AFailedStepShowsWithTheNextRun) {
  Start(1, 200);
  RunUntilInFlight();
  runner_.step_status = absl::InternalError("the device is lost");
  EXPECT_EQ(loop_.TakeTailSlot(), std::nullopt);
  EXPECT_EQ(loop_.PackTail({1}, {}), runner_.step_status) << "nothing more is asked of it";
  EXPECT_EQ(loop_.UnpackTail(3, 1, true, {}), runner_.step_status);
  EXPECT_EQ(loop_.RunOnce().status(), runner_.step_status);
}

TEST_P(StepBehind, AHeldSequencesTailIsOfWhatWasTold) {
  Start(1, 200);
  Start(2, 200);
  RunUntilInFlight();
  loop_.Hold({1});
  const int computed = loop_.Get({1}).computed;
  RunAll();
  EXPECT_EQ(loop_.Get({1}).computed, computed);
  EXPECT_EQ(recorder_.emitted[1].size(), static_cast<size_t>(computed - 100));
  std::vector<std::byte> wire(
      kernels::MakeTailLayout(layout_, static_cast<uint64_t>(computed), 0).total_bytes);
  EXPECT_TRUE(loop_.PackTail({1}, wire).ok());
  EXPECT_EQ(recorder_.emitted[2].size(), 199u);
  loop_.Release({1});
}

TEST_P(StepBehind, DraftsMayChangeAtAnyStep) {
  Start(1, 300);
  for (const int num_drafts : {2, 0, 3, 1, 1, 3, 0, 0, 2, 1}) {
    planner_.SetNumDrafts(num_drafts);
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(*loop_.RunOnce());
  }
  EXPECT_GT(loop_.counters().steps_ahead, 20u);
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), 299u);
}

TEST_P(StepBehind, AnArrivalJoinsTheBatchAndTheLoopGoesAheadAgain) {
  Start(1, 300);
  RunUntilInFlight();
  Start(2, 200);
  const uint64_t before = loop_.counters().steps_ahead;
  RunAll();
  EXPECT_GT(loop_.counters().steps_ahead, before + 50u);
  EXPECT_EQ(recorder_.emitted[1].size(), 299u);
  EXPECT_EQ(recorder_.emitted[2].size(), 199u);
}

}  // namespace
}  // namespace baton::engine::test
