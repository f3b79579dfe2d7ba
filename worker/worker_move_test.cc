#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/test_worker.h"
#include "worker/worker_core.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};
using Text = std::map<uint32_t, int32_t>;  // tokens by position

TransferId Transfer(uint8_t i) {
  TransferId transfer;
  transfer.bytes[0] = i;
  return transfer;
}

struct Case {
  int drafts = 0;
  bool greedy = true;
  bool is_masked = false;
};

// One prefill worker and two decode workers, and the router's part played by hand.
class WorkerMoveTest : public testing::TestWithParam<Case> {
 protected:
  WorkerMoveTest() {
    prompt_.resize(505);
    for (size_t i = 0; i < prompt_.size(); ++i) prompt_[i] = 3 + static_cast<int32_t>(i * 7 % 500);
    sampling_.greedy = GetParam().greedy;
    sampling_.seed = 99;
    sampling_.frequency_penalty = 0.5f;
    for (const char* name : {"p", "d", "e"}) Add(name, {});
  }
  TestWorker& Add(const std::string& name, TestWorkerOptions options) {
    options.name = name;
    options.vocabulary = &DemoVocabulary();
    options.incarnation = 11 + workers_.size();
    options.num_drafts = GetParam().drafts;
    auto& worker = workers_[name];
    worker = std::make_unique<TestWorker>(options, network_, clock_);
    worker->core->Apply(SessionOpened{.session = kSession, .hello = {}});
    return *worker;
  }
  TestWorker& At(const std::string& name) { return *workers_.at(name); }

  void Tell(const std::string& name, wire::RouterMessage message) {
    At(name).core->Apply(SessionMessage{.session = kSession, .message = std::move(message)});
  }
  void Step(int rounds = 1) {
    for (int i = 0; i < rounds; ++i) {
      clock_.Advance(absl::Milliseconds(1));
      for (auto& [name, worker] : workers_)
        if (name != killed_) worker->Round();
    }
  }
  template <typename Done>
  bool StepUntil(Done done, int rounds = 600) {
    while (!done() && rounds-- > 0) Step();
    return done();
  }
  // Everything of one kind that a worker has said.
  template <typename T>
  std::vector<T> Said(const std::string& name, std::vector<T> wire::WorkerMessage::*field) {
    std::vector<T> all;
    for (const wire::WorkerMessage& message : At(name).sender.sent[kSession])
      all.insert(all.end(), (message.*field).begin(), (message.*field).end());
    return all;
  }
  // What the router has of a sequence from this worker. Tokens never follow Parked.
  Text TextOf(const std::string& name, uint32_t handle, uint32_t landed_at) {
    Text text;
    bool is_parked = false;
    for (const wire::WorkerMessage& message : At(name).sender.sent[kSession]) {
      for (const auto& landed : message.landed)
        if (landed.transfer.bytes[0] == handle / 10) text[landed_at] = landed.tokens.at(0).token;
      if (message.tokens) Append(*message.tokens, handle, is_parked, text);
      for (const SequenceHandle parked : message.parked)
        is_parked = is_parked || parked.value == handle;
    }
    return text;
  }
  static void Append(const wire::Tokens& tokens, uint32_t handle, bool is_parked, Text& text) {
    for (const wire::SequenceStep& step : tokens.sequences) {
      if (step.handle.value != handle) continue;
      EXPECT_FALSE(is_parked);
      for (size_t i = 0; i < step.tokens.size(); ++i)
        EXPECT_TRUE(text.emplace(step.first_position + i, step.tokens[i].token).second);
    }
  }
  wire::Reserve MakeReserve(uint8_t transfer, std::vector<int32_t> received = {}) {
    wire::Reserve reserve;
    reserve.transfer = Transfer(transfer);
    reserve.prompt_tokens = static_cast<uint32_t>(prompt_.size());
    reserve.lands_received = !received.empty();
    reserve.num_pages =
        static_cast<uint32_t>(PagesFor(static_cast<int64_t>(prompt_.size() + received.size())));
    reserve.sequences = {{.handle = {transfer * 10u}, .choice = 0, .received = received}};
    reserve.sampling = sampling_;
    reserve.finish.max_tokens = max_tokens_;
    if (GetParam().is_masked) reserve.masks.grammar = "start: /[a-zA-Z ]{2000}/";
    reserve.prompt_class = reserve.decode_class = At("d").setup.decode_class;
    return reserve;
  }
  // Books at `name` and gives it the prompt.
  wire::Landing Book(const std::string& name, const wire::Reserve& reserve) {
    const size_t before = Said(name, &wire::WorkerMessage::reserved).size();
    wire::RouterMessage message;
    message.reserves = {reserve};
    message.prompt_chunks = {{reserve.transfer, 0, prompt_, true}};
    Tell(name, std::move(message));
    EXPECT_TRUE(
        StepUntil([&] { return Said(name, &wire::WorkerMessage::reserved).size() > before; }));
    return Said(name, &wire::WorkerMessage::reserved).back().landing;
  }
  void Submit(const std::string& from, const std::string& to, const wire::Reserve& reserve) {
    wire::Run run;
    run.landing = Book(to, reserve);
    run.transfer = reserve.transfer;
    run.prompt_tokens = reserve.prompt_tokens;
    run.sequences = reserve.sequences;
    run.sampling = reserve.sampling;
    run.finish = reserve.finish;
    run.masks = reserve.masks;
    run.prompt_class = reserve.prompt_class;
    wire::RouterMessage message;
    message.runs = {run};
    message.prompt_chunks = {{reserve.transfer, 0, prompt_, true}};
    Tell(from, std::move(message));
  }
  void Move(const std::string& name, uint32_t handle, uint8_t transfer = 0,
            const std::optional<wire::Landing>& landing = {}) {
    wire::RouterMessage message;
    message.moves = {{.handle = {handle}, .transfer = Transfer(transfer), .landing = landing}};
    Tell(name, std::move(message));
  }
  void Cancel(const std::string& name, uint8_t transfer) {
    wire::RouterMessage message;
    message.cancels = {{.transfer = Transfer(transfer), .sequence = {}, .reason = "over"}};
    Tell(name, std::move(message));
  }
  bool HasParked(const std::string& name) {
    return !Said(name, &wire::WorkerMessage::parked).empty();
  }
  // Runs request 1 at d until it has `count` tokens, and stops it. What the router then has.
  Text RunAndStop(size_t count) {
    Submit("p", "d", MakeReserve(1));
    EXPECT_TRUE(StepUntil([&] { return TextOf("d", 10, End()).size() >= count; }));
    Move("d", 10);
    EXPECT_TRUE(StepUntil([&] { return HasParked("d"); }, 3));
    return TextOf("d", 10, End());
  }
  uint32_t End() const { return static_cast<uint32_t>(prompt_.size()); }
  static std::vector<int32_t> AllButLast(const Text& text) {
    std::vector<int32_t> received;
    for (const auto& [position, token] : text) received.push_back(token);
    received.pop_back();
    return received;
  }
  // What one worker alone makes of it, without drafts.
  Text Reference() {
    auto alone = std::make_unique<TestWorker>(
        TestWorkerOptions{.name = "alone", .incarnation = 77, .vocabulary = &DemoVocabulary()},
        network_, clock_);
    alone->core->Apply(SessionOpened{.session = kSession, .hello = {}});
    workers_["alone"] = std::move(alone);
    Submit("alone", "alone", MakeReserve(9));
    EXPECT_TRUE(StepUntil([&] { return !Said("alone", &wire::WorkerMessage::finished).empty(); }));
    const Text text = TextOf("alone", 90, End());
    workers_.erase("alone");
    return text;
  }
  void ExpectNothingHeld() {
    for (const auto& [name, worker] : workers_) {
      if (name == killed_) continue;
      EXPECT_TRUE(worker->core->IsIdle()) << name;
      EXPECT_EQ(worker->num_leaked(), 0) << name;
      EXPECT_EQ(worker->core->Gauges().tail_buffers_free, 12) << name;
      EXPECT_EQ(worker->loop.num_sequences(), 0) << name;
    }
  }

  ManualClock clock_;
  SeededRng rng_{3};
  kvtransfer::InprocNetwork network_{clock_, rng_};
  std::map<std::string, std::unique_ptr<TestWorker>> workers_;
  std::string killed_;
  std::vector<int32_t> prompt_;
  SamplingSpec sampling_;
  int64_t max_tokens_ = 30;
};

TEST_P(WorkerMoveTest, AMovedSequenceGoesOnWithTheSameText) {
  const Text whole = Reference();
  ASSERT_EQ(whole.size(), 30u);
  for (size_t count = 1; count < 26; count += 3) {  // position 512 closes a page on the way
    SCOPED_TRACE(count);
    const Text before = RunAndStop(count);
    if (before.size() == whole.size()) break;
    const uint32_t last = End() + static_cast<uint32_t>(before.size()) - 1;
    const wire::Landing landing = Book("e", MakeReserve(2, AllButLast(before)));
    Move("d", 10, 2, landing);
    ASSERT_TRUE(StepUntil([&] { return !Said("e", &wire::WorkerMessage::landed).empty(); }));
    Cancel("d", 1);
    ASSERT_TRUE(StepUntil([&] { return !Said("e", &wire::WorkerMessage::finished).empty(); }));
    const Text after = TextOf("e", 20, last);
    EXPECT_EQ(after.begin()->first, last);  // the last token comes again
    EXPECT_EQ(after.begin()->second, before.rbegin()->second);
    Text text = before;
    text.insert(after.begin(), after.end());
    EXPECT_EQ(text, whole);
    Step(60);
    ExpectNothingHeld();
    EXPECT_TRUE(Said("d", &wire::WorkerMessage::failed).empty());
    for (auto& [name, worker] : workers_) worker->sender.sent.clear();
  }
  EXPECT_GE(At("d").core->counters().moved, 3u);
}

TEST_P(WorkerMoveTest, ASequenceMayMoveAgainAndBack) {
  const Text whole = Reference();
  Text text = RunAndStop(4);
  Move("d", 10, 2, Book("e", MakeReserve(2, AllButLast(text))));
  uint32_t last = End() + static_cast<uint32_t>(text.size()) - 1;
  ASSERT_TRUE(StepUntil([&] { return TextOf("e", 20, last).size() > 3; }));
  Move("e", 20);
  ASSERT_TRUE(StepUntil([&] { return HasParked("e"); }));
  const Text second = TextOf("e", 20, last);
  text.insert(second.begin(), second.end());
  ASSERT_LT(text.size(), whole.size());
  Move("e", 20, 3, Book("d", MakeReserve(3, AllButLast(text))));
  last = End() + static_cast<uint32_t>(text.size()) - 1;
  ASSERT_TRUE(StepUntil([&] { return !Said("d", &wire::WorkerMessage::finished).empty(); }));
  const Text third = TextOf("d", 30, last);
  text.insert(third.begin(), third.end());
  EXPECT_EQ(text, whole);
  Step(60);
  ExpectNothingHeld();
}

TEST_P(WorkerMoveTest, ACancelOrALostSessionAtAnyMomentFreesBothEnds) {
  for (int moment = 0; moment < 24; ++moment) {
    SCOPED_TRACE(moment);
    Submit("p", "d", MakeReserve(1));
    ASSERT_TRUE(StepUntil([&] { return TextOf("d", 10, End()).size() >= 4; }));
    Move("d", 10);
    if (moment >= 2) {
      Step(2);
      const Text text = TextOf("d", 10, End());
      Move("d", 10, 2, Book("e", MakeReserve(2, AllButLast(text))));
      Step((moment - 2) / 2);
    }
    for (const char* name : {"d", "e"}) {
      if (moment % 2 == 1) {
        At(name).core->Apply(SessionClosed{.session = kSession, .status = absl::OkStatus()});
        At(name).core->Apply(SessionOpened{.session = kSession, .hello = {}});
      } else {
        Cancel(name, 1);
        Cancel(name, 2);
      }
    }
    Step(60);
    ExpectNothingHeld();
    for (auto& [name, worker] : workers_) worker->sender.sent.clear();
    clock_.Advance(absl::Seconds(11));  // past the tombstones
    Step();
  }
}

TEST_P(WorkerMoveTest, ATargetThatDiesInMidTransferIsReportedAndEverythingComesBack) {
  network_.SetLink("d", "e", {.min_pull = absl::Milliseconds(50), .max_pull = absl::Seconds(1)});
  const Text text = RunAndStop(5);
  Move("d", 10, 2, Book("e", MakeReserve(2, AllButLast(text))));
  Step(3);
  EXPECT_GT(At("d").num_leaked(), 0);
  killed_ = "e";
  network_.Kill("e");
  ASSERT_TRUE(StepUntil([&] { return !Said("d", &wire::WorkerMessage::failed).empty(); }));
  const wire::Failed failed = Said("d", &wire::WorkerMessage::failed).at(0);
  EXPECT_EQ(failed.handle, SequenceHandle{10});
  EXPECT_EQ(failed.code, absl::StatusCode::kUnavailable);
  Step(300);
  ExpectNothingHeld();
}

TEST_P(WorkerMoveTest, SendMemoryStaysLeasedUntilTheTransportIsThroughWithIt) {
  network_.SetLink("d", "e", {.stuck_pull = 1});
  const Text text = RunAndStop(5);
  Move("d", 10, 2, Book("e", MakeReserve(2, AllButLast(text))));
  Step(20);
  Cancel("d", 1);
  Step(20);
  EXPECT_EQ(At("d").num_leaked(), 2 + (text.size() > 8 ? 1 : 0));
  EXPECT_FALSE(At("d").core->IsIdle());
  Cancel("e", 2);
  Step(6000);  // both close the link by force
  ExpectNothingHeld();
}

TEST_P(WorkerMoveTest, WhatCannotMoveIsRefusedByNameAndGoesOn) {
  wire::Reserve reserve = MakeReserve(1);
  reserve.sequences.push_back({.handle = {11}, .choice = 1, .received = {}});
  Submit("p", "d", reserve);
  ASSERT_TRUE(StepUntil([&] { return TextOf("d", 10, End()).size() >= 3; }));
  Move("d", 77);  // nobody's
  Move("d", 10);
  Move("d", 11);
  Step(2);
  const auto refused = Said("d", &wire::WorkerMessage::refused);
  ASSERT_EQ(refused.size(), 2u);
  EXPECT_EQ(refused[0].transfer, Transfer(1));
  EXPECT_EQ(refused[0].stage, wire::Stage::kMove);
  EXPECT_EQ(refused[0].message,
            "sequence 10 cannot move: its request has 2 that share pages, 1 may");
  ASSERT_TRUE(StepUntil([&] { return Said("d", &wire::WorkerMessage::finished).size() == 2; }));
  EXPECT_EQ(TextOf("d", 10, End()), Reference());
  EXPECT_TRUE(Said("d", &wire::WorkerMessage::failed).empty());
}

TEST_P(WorkerMoveTest, AStopThatComesBeforeTheLandingHoldsThenAndMayBeRepeated) {
  Submit("p", "d", MakeReserve(1));
  for (int i = 0; i < 3; ++i) Move("d", 10);
  ASSERT_TRUE(StepUntil([&] { return HasParked("d"); }));
  Step(5);
  EXPECT_EQ(Said("d", &wire::WorkerMessage::parked).size(), 1u);
  EXPECT_TRUE(Said("d", &wire::WorkerMessage::failed).empty());
  EXPECT_EQ(TextOf("d", 10, End()).size(), 1u);  // what landed
}

TEST_P(WorkerMoveTest, ASequenceThatWasNotStoppedDoesNotMove) {
  Submit("p", "d", MakeReserve(1));
  ASSERT_TRUE(StepUntil([&] { return TextOf("d", 10, End()).size() >= 3; }));
  const wire::Landing landing = Book("e", MakeReserve(2, {5, 6}));
  Move("d", 10, 2, landing);
  Step(2);
  ASSERT_EQ(Said("d", &wire::WorkerMessage::failed).size(), 1u);
  Cancel("e", 2);
  Step(60);
  ExpectNothingHeld();
}

TEST_P(WorkerMoveTest, AParkedSequenceIsFailedBecauseItsPagesAreElsewhere) {
  TestWorker& small = Add("s", {.num_pages = 9});
  max_tokens_ = 800;
  Submit("p", "s", MakeReserve(1));
  Submit("p", "s", MakeReserve(2));
  ASSERT_TRUE(StepUntil([&] { return small.loop.num_parked() == 1; }, 2000));
  Step();
  ASSERT_EQ(Said("s", &wire::WorkerMessage::parked).size(), 1u);
  Move("s", Said("s", &wire::WorkerMessage::parked)[0].value);
  Step(2);
  const auto failed = Said("s", &wire::WorkerMessage::failed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].code, absl::StatusCode::kUnavailable);
  EXPECT_EQ(small.loop.num_parked(), 0);
}

TEST_P(WorkerMoveTest, AStoppedSequenceIsNoWorkThatWaits) {
  RunAndStop(4);
  const uint64_t steps = At("d").loop.counters().steps;
  Step(20);
  EXPECT_EQ(At("d").loop.counters().steps, steps);
  EXPECT_FALSE(At("d").loop.HasWork());
  EXPECT_EQ(Said("d", &wire::WorkerMessage::parked).size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(DraftsAndSampling, WorkerMoveTest,
                         testing::Values(Case{0, true}, Case{0, false}, Case{3, true},
                                         Case{3, false}, Case{0, false, true}, Case{3, true, true}),
                         [](const auto& run) {
                           return std::string(run.param.is_masked ? "Masked" : "") +
                                  (run.param.greedy ? "Greedy" : "Seeded") +
                                  std::to_string(run.param.drafts) + "Drafts";
                         });

}  // namespace
}  // namespace baton::worker
