#include "worker/worker_core.h"

#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>
#include <vector>

#include "worker/test_worker.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};

TransferId Transfer(uint8_t i) {
  TransferId transfer;
  transfer.bytes[0] = i;
  return transfer;
}

std::vector<int32_t> Prompt(int tokens, int seed = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(3 + (i * 7 + seed * 13) % 500);
  return prompt;
}

struct Job {
  uint8_t transfer = 1;
  std::vector<int32_t> prompt = Prompt(700);
  int choices = 1;
  int64_t max_tokens = 6;
  std::vector<int32_t> received = {};  // of choice 0
};

// One prefill and one decode worker, and the router's part played by hand.
class WorkerCoreTest : public testing::Test {
 protected:
  WorkerCoreTest() {
    for (TestWorker* worker : {&p_, &d_})
      worker->core->Apply(SessionOpened{.session = kSession, .hello = {}});
  }

  static void Tell(TestWorker& worker, wire::RouterMessage message) {
    worker.core->Apply(SessionMessage{.session = kSession, .message = std::move(message)});
  }
  void Step(int rounds = 1) {
    for (int i = 0; i < rounds; ++i) {
      clock_.Advance(absl::Milliseconds(1));
      p_.Round();
      d_.Round();
    }
  }
  // Everything a worker said so far, in one message.
  static wire::WorkerMessage Said(TestWorker& worker) {
    wire::WorkerMessage all;
    auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    for (const wire::WorkerMessage& m : worker.sender.sent[kSession]) {
      append(all.reserved, m.reserved);
      append(all.refused, m.refused);
      append(all.retargeted, m.retargeted);
      append(all.first_tokens, m.first_tokens);
      append(all.progress, m.progress);
      append(all.prefilled, m.prefilled);
      append(all.landed, m.landed);
      append(all.finished, m.finished);
      append(all.failed, m.failed);
      append(all.cache_events, m.cache_events);
      if (m.load) all.load = m.load;
    }
    return all;
  }
  // Tokens by position, from the steps alone.
  static std::map<uint32_t, int32_t> Tokens(TestWorker& worker, uint32_t handle) {
    std::map<uint32_t, int32_t> tokens;
    for (const wire::WorkerMessage& m : worker.sender.sent[kSession]) {
      if (!m.tokens) continue;
      for (const wire::SequenceStep& step : m.tokens->sequences) {
        if (step.handle.value != handle) continue;
        for (size_t i = 0; i < step.tokens.size(); ++i) {
          const auto position = step.first_position + static_cast<uint32_t>(i);
          EXPECT_FALSE(tokens.contains(position)) << "position " << position << " came twice";
          tokens[position] = step.tokens[i].token;
        }
      }
    }
    return tokens;
  }
  static wire::Reserve MakeReserve(const TestWorker& worker, const Job& job) {
    wire::Reserve reserve;
    reserve.transfer = Transfer(job.transfer);
    reserve.prompt_tokens = static_cast<uint32_t>(job.prompt.size());
    reserve.num_pages = static_cast<uint32_t>(PagesFor(reserve.prompt_tokens));
    for (int i = 0; i < job.choices; ++i) {
      reserve.sequences.push_back({.handle = {static_cast<uint32_t>(job.transfer * 10 + i)},
                                   .choice = static_cast<uint32_t>(i),
                                   .received = i == 0 ? job.received : std::vector<int32_t>{}});
    }
    reserve.finish.max_tokens = job.max_tokens;
    reserve.prompt_class = worker.setup.prompt_class;
    reserve.decode_class = worker.setup.decode_class;
    return reserve;
  }
  static wire::Run MakeRun(const TestWorker& worker, const Job& job, const wire::Landing& landing) {
    const wire::Reserve reserve = MakeReserve(worker, job);
    wire::Run run;
    run.transfer = reserve.transfer;
    run.attempt = landing.attempt;
    run.landing = landing;
    run.prompt_tokens = reserve.prompt_tokens;
    run.sequences = reserve.sequences;
    run.finish = reserve.finish;
    run.prompt_class = worker.setup.prompt_class;
    return run;
  }
  static std::vector<wire::PromptChunk> Chunks(const Job& job) {
    const auto half = static_cast<std::ptrdiff_t>(job.prompt.size() / 2);
    const auto& prompt = job.prompt;
    return {{Transfer(job.transfer), 0, {prompt.begin(), prompt.begin() + half}, false},
            {Transfer(job.transfer),
             static_cast<uint32_t>(half),
             {prompt.begin() + half, prompt.end()},
             true}};
  }
  static wire::RouterMessage With(std::function<void(wire::RouterMessage&)> fill) {
    wire::RouterMessage message;
    fill(message);
    return message;
  }
  // Reserve at `to`, Run at `from`, the prompt to both.
  void Submit(TestWorker& from, TestWorker& to, const Job& job) {
    Tell(to, With([&](auto& m) {
           m.reserves = {MakeReserve(to, job)};
           m.prompt_chunks = Chunks(job);
         }));
    const size_t before = Said(to).reserved.size();
    Step();
    ASSERT_EQ(Said(to).reserved.size(), before + 1);
    const wire::Landing landing = Said(to).reserved.back().landing;
    Tell(from, With([&](auto& m) {
           m.runs = {MakeRun(from, job, landing)};
           m.prompt_chunks = Chunks(job);
         }));
  }
  void StepUntilFinished(TestWorker& worker, size_t count) {
    for (int i = 0; i < 400 && Said(worker).finished.size() < count; ++i) Step();
    ASSERT_EQ(Said(worker).finished.size(), count);
  }
  // What a fault-free run on one worker gives: first token and the rest, by position.
  std::map<uint32_t, int32_t> Reference(const Job& job, int choice = 0) {
    ManualClock clock;
    SeededRng rng(5);
    kvtransfer::InprocNetwork network(clock, rng);
    TestWorker worker({.name = "m", .incarnation = 77}, network, clock);
    worker.core->Apply(SessionOpened{.session = kSession, .hello = {}});
    Tell(worker, With([&](auto& m) { m.reserves = {MakeReserve(worker, job)}; }));
    worker.Round();
    const wire::Landing landing = Said(worker).reserved.back().landing;
    Tell(worker, With([&](auto& m) {
           m.runs = {MakeRun(worker, job, landing)};
           m.prompt_chunks = Chunks(job);
         }));
    for (int i = 0; i < 200; ++i) {
      clock.Advance(absl::Milliseconds(1));
      worker.Round();
    }
    EXPECT_TRUE(worker.core->IsIdle());
    EXPECT_EQ(worker.num_leaked(), 0);
    auto tokens = Tokens(worker, static_cast<uint32_t>(job.transfer * 10 + choice));
    tokens[static_cast<uint32_t>(job.prompt.size())] =
        Said(worker).landed.at(0).tokens.at(static_cast<size_t>(choice)).token;
    return tokens;
  }
  std::map<uint32_t, int32_t> Text(const Job& job, int choice = 0) {
    auto tokens = Tokens(d_, static_cast<uint32_t>(job.transfer * 10 + choice));
    for (const wire::Landed& landed : Said(d_).landed) {
      if (landed.transfer != Transfer(job.transfer)) continue;
      tokens[static_cast<uint32_t>(job.prompt.size())] =
          landed.tokens.at(static_cast<size_t>(choice)).token;
    }
    return tokens;
  }
  // The landing's second attempt, from another worker, without the first one. What was verified.
  std::vector<bool> GoOnFrom(TestWorker& other, const Job& job) {
    auto step = [&] {
      clock_.Advance(absl::Milliseconds(1));
      d_.Round();
      other.Round();
    };
    const TransferId transfer = Transfer(job.transfer);
    Tell(d_, With([&](auto& m) { m.retargets = {{.transfer = transfer, .attempt = 2}}; }));
    for (int i = 0; i < 20 && Said(d_).retargeted.empty(); ++i) step();
    wire::Landing landing = Said(d_).reserved.at(0).landing;
    landing.attempt = Said(d_).retargeted.at(0).attempt;
    wire::Run run = MakeRun(other, job, landing);
    run.verified_pages = Said(d_).retargeted[0].verified_pages;
    Tell(other, With([&](auto& m) {
           m.runs = {run};
           m.prompt_chunks = Chunks(job);
         }));
    for (int i = 0; i < 600 && Said(d_).finished.empty(); ++i) step();
    return run.verified_pages;
  }
  void ExpectNothingHeld() {
    for (TestWorker* worker : {&p_, &d_}) {
      EXPECT_TRUE(worker->core->IsIdle()) << worker->setup.worker_id;
      EXPECT_EQ(worker->num_leaked(), 0) << worker->setup.worker_id;
      EXPECT_EQ(worker->core->Gauges().tail_buffers_free, 12) << worker->setup.worker_id;
      EXPECT_EQ(worker->loop.num_sequences(), 0) << worker->setup.worker_id;
    }
  }

  ManualClock clock_;
  SeededRng rng_{3};
  kvtransfer::InprocNetwork network_{clock_, rng_};
  TestWorker p_{{.name = "p", .incarnation = 11, .serves_decode = false}, network_, clock_};
  TestWorker d_{{.name = "d", .incarnation = 12}, network_, clock_};
};

TEST_F(WorkerCoreTest, PagesAndTailMakeTheSameTextElsewhere) {
  const Job job;
  Submit(p_, d_, job);
  StepUntilFinished(d_, 1);
  EXPECT_EQ(Text(job), Reference(job));
  EXPECT_EQ(Text(job).size(), 6u);
  EXPECT_EQ(Said(d_).finished[0].reason, FinishReason::kLength);
  EXPECT_EQ(Said(p_).first_tokens.at(0).tokens, Said(d_).landed.at(0).tokens);
  Step(50);
  EXPECT_EQ(Said(p_).prefilled.size(), 1u);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, EveryLengthAroundAPageHandsOver) {
  uint8_t transfer = 1;
  for (const int tokens : {1, 2, 255, 256, 257, 511, 512, 513}) {
    const Job job{.transfer = transfer++, .prompt = Prompt(tokens, tokens)};
    Submit(p_, d_, job);
    StepUntilFinished(d_, transfer - 1u);
    EXPECT_EQ(Text(job), Reference(job)) << tokens;
  }
  Step(50);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, ChoicesShareFullPagesAndPartAtTheirOwnTokens) {
  const Job job{.choices = 3};
  Submit(p_, d_, job);
  StepUntilFinished(d_, 3);
  for (int choice = 0; choice < 3; ++choice)
    EXPECT_EQ(Text(job, choice), Reference(job, choice)) << choice;
  EXPECT_NE(Text(job, 0), Text(job, 1));
  Step(50);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, APrefixIsComputedOnce) {
  const Job first;
  Submit(p_, d_, first);
  StepUntilFinished(d_, 1);
  Job second{.transfer = 2};
  second.prompt.push_back(44);
  Submit(p_, d_, second);
  StepUntilFinished(d_, 2);
  EXPECT_EQ(Said(p_).first_tokens.at(1).cached_tokens, 512u);
  EXPECT_EQ(Text(second), Reference(second));
  Step(110);  // cache events go out every 100 ms
  bool has_names = false;
  for (const auto& events : Said(p_).cache_events)
    has_names = has_names || events.added.size() == 2;
  EXPECT_TRUE(has_names);
}

TEST_F(WorkerCoreTest, ADecodeWorkerPrefillsIntoItsOwnLanding) {
  const Job job{.choices = 2};
  Submit(d_, d_, job);
  StepUntilFinished(d_, 2);
  EXPECT_EQ(Text(job, 1), Reference(job, 1));
  EXPECT_EQ(Said(d_).prefilled.size(), 1u);
  EXPECT_EQ(d_.core->counters().local_fills, 1u);
  Step(20);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, KnownTokensAreReplayedAndNotRepeated) {
  Job job{.max_tokens = 12};
  const auto whole = Reference(job);
  for (uint32_t i = 0; i < 7; ++i) job.received.push_back(whole.at(700 + i));
  Submit(p_, d_, job);
  StepUntilFinished(d_, 1);
  const auto tokens = Tokens(d_, 10);
  EXPECT_EQ(tokens.begin()->first, 707u);
  for (const auto& [position, token] : tokens) EXPECT_EQ(token, whole.at(position)) << position;
  EXPECT_EQ(tokens.size(), 5u);
  EXPECT_EQ(d_.core->counters().replay_mismatches, 0u);
}

TEST_F(WorkerCoreTest, ARecordThatDiffersWinsAndIsCounted) {
  Job job;
  job.received = {3, 5};
  Submit(p_, d_, job);
  StepUntilFinished(d_, 1);
  EXPECT_EQ(Tokens(d_, 10).begin()->first, 702u);
  EXPECT_GT(d_.core->counters().replay_mismatches, 0u);
}

TEST_F(WorkerCoreTest, ASequenceThatEndsAtItsFirstTokenEndsAtTheDecodeWorkerToo) {
  const Job job{.max_tokens = 1};
  Submit(p_, d_, job);
  StepUntilFinished(d_, 1);
  EXPECT_EQ(Said(d_).landed.size(), 1u);
  EXPECT_TRUE(Tokens(d_, 10).empty());
  Step(50);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, ALostSessionLeavesNothingBehindAtAnyMoment) {
  for (int rounds = 0; rounds < 40; ++rounds) {
    const Job job{.transfer = static_cast<uint8_t>(rounds + 1),
                  .prompt = Prompt(900, rounds),
                  .choices = 2,
                  .max_tokens = 9};
    Submit(p_, d_, job);
    Step(rounds);
    for (TestWorker* worker : {&p_, &d_})
      worker->core->Apply(
          SessionClosed{.session = kSession, .status = absl::UnavailableError("gone")});
    Step(60);
    ExpectNothingHeld();
    for (TestWorker* worker : {&p_, &d_}) {
      worker->sender.sent.clear();
      worker->core->Apply(SessionOpened{.session = kSession, .hello = {}});
    }
  }
}

TEST_F(WorkerCoreTest, ACancelAtAnyMomentFreesBothEndsAndMayBeRepeated) {
  for (int rounds = 0; rounds < 40; ++rounds) {
    const Job job{.transfer = static_cast<uint8_t>(rounds + 1),
                  .prompt = Prompt(900, rounds),
                  .choices = 2,
                  .max_tokens = 9};
    Submit(rounds % 2 == 0 ? p_ : d_, d_, job);
    Step(rounds);
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (TestWorker* worker : {&p_, &d_})
        Tell(*worker, With([&](auto& m) {
          m.cancels = {{.transfer = Transfer(job.transfer), .sequence = {}, .reason = ""}};
        }));
    }
    Step(60);
    ExpectNothingHeld();
  }
}

TEST_F(WorkerCoreTest, ACancelOfOneChoiceLeavesTheOther) {
  const Job job{.choices = 2, .max_tokens = 30};
  Submit(p_, d_, job);
  for (int i = 0; i < 100 && Tokens(d_, 11).size() < 3; ++i) Step();
  Tell(d_, With([&](auto& m) {
         m.cancels = {{.transfer = Transfer(1), .sequence = 0, .reason = "stop string"}};
       }));
  const size_t cut = Tokens(d_, 10).size();
  StepUntilFinished(d_, 1);
  EXPECT_EQ(Tokens(d_, 10).size(), cut);
  EXPECT_EQ(Text(job, 1), Reference(job, 1));
  Step(50);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, ACancelThatOvertookItsReserveHoldsForTenSeconds) {
  const Job job;
  Tell(d_, With([&](auto& m) {
         m.cancels = {{.transfer = Transfer(1), .sequence = {}, .reason = ""}};
       }));
  Tell(d_, With([&](auto& m) { m.reserves = {MakeReserve(d_, job)}; }));
  Step();
  EXPECT_TRUE(Said(d_).reserved.empty());
  clock_.Advance(absl::Seconds(11));
  Step();
  Tell(d_, With([&](auto& m) { m.reserves = {MakeReserve(d_, job)}; }));
  Step();
  EXPECT_EQ(Said(d_).reserved.size(), 1u);
}

TEST_F(WorkerCoreTest, AnotherPrefillWorkerGoesOnWithTheVerifiedPages) {
  TestWorker other({.name = "q", .incarnation = 13, .serves_decode = false}, network_, clock_);
  other.core->Apply(SessionOpened{.session = kSession, .hello = {}});
  const Job job{.prompt = Prompt(2000), .max_tokens = 8};
  Submit(p_, d_, job);
  for (int i = 0; i < 100 && d_.agent->metrics().blocks_landed < 2; ++i) Step();
  network_.Kill("p");
  const auto verified = GoOnFrom(other, job);
  EXPECT_THAT(verified, testing::Contains(true));
  EXPECT_EQ(Text(job), Reference(job));
  EXPECT_LT(other.agent->metrics().blocks_offered, 9u);
}

TEST_F(WorkerCoreTest, ANewAttemptDoesNotWaitForTheReceivesOfTheOldOne) {
  TestWorker other({.name = "q", .incarnation = 13, .serves_decode = false}, network_, clock_);
  other.core->Apply(SessionOpened{.session = kSession, .hello = {}});
  network_.SetLink("p", "d", {.stuck_pull = 1});
  const Job job{.prompt = Prompt(2000), .max_tokens = 8};
  Submit(p_, d_, job);
  Step(60);
  EXPECT_EQ(d_.agent->metrics().open_receives, 9);  // eight pages and the tail
  GoOnFrom(other, job);
  EXPECT_EQ(Text(job), Reference(job));
  EXPECT_EQ(d_.loop.pool().Counts().quarantined, 8);
  Step(3000);  // the link is closed by force
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, ASenderThatDiesIsReportedAndNothingStaysWhenTheRouterCancels) {
  const Job job{.prompt = Prompt(2000)};
  Submit(p_, d_, job);
  for (int i = 0; i < 100 && d_.agent->metrics().blocks_landed < 1; ++i) Step();
  network_.Kill("p");
  for (int i = 0; i < 400; ++i) {
    clock_.Advance(absl::Milliseconds(1));
    d_.Round();
  }
  ASSERT_EQ(Said(d_).failed.size(), 1u);
  EXPECT_EQ(Said(d_).failed[0].code, absl::StatusCode::kUnavailable);
  Tell(d_, With([&](auto& m) {
         m.cancels = {{.transfer = Transfer(1), .sequence = {}, .reason = ""}};
       }));
  for (int i = 0; i < 50; ++i) d_.Round();
  EXPECT_EQ(d_.num_leaked(), 0);
  EXPECT_TRUE(d_.core->IsIdle());
}

TEST_F(WorkerCoreTest, RefusalsNameWhatIsWrong) {
  auto code_of = [&](std::function<void(wire::Reserve&)> change) {
    wire::Reserve reserve = MakeReserve(d_, {});
    reserve.transfer = Transfer(9);
    change(reserve);
    d_.sender.sent.clear();
    Tell(d_, With([&](auto& m) { m.reserves = {reserve}; }));
    Step();
    const auto refused = Said(d_).refused;
    EXPECT_EQ(refused.size(), 1u);
    return refused.empty() ? absl::StatusCode::kOk : refused[0].code;
  };
  EXPECT_EQ(code_of([](auto& r) { r.decode_class.bytes[3] = 1; }),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code_of([](auto& r) { r.num_pages = 2; }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& r) { r.prompt_tokens = 5000; }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& r) { r.masks.grammar = "x"; }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& r) { r.sequences.resize(9, r.sequences[0]); }),
            absl::StatusCode::kResourceExhausted);
  EXPECT_GT(Said(d_).refused[0].retry_after_ms, 0u);
  EXPECT_EQ(code_of([](auto& r) { r.sequences.resize(999, r.sequences[0]); }),
            absl::StatusCode::kInvalidArgument);
  Tell(p_, With([&](auto& m) { m.reserves = {MakeReserve(p_, {})}; }));
  Step();
  EXPECT_EQ(Said(p_).refused.at(0).code, absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(d_.num_leaked(), 0);
}

TEST_F(WorkerCoreTest, AFullPoolRefusesAndGivesBackEverythingItBooked) {
  std::vector<Job> jobs;
  for (uint8_t i = 1; i <= 5; ++i) jobs.push_back({.transfer = i, .prompt = Prompt(4000, i)});
  for (const Job& job : jobs) Tell(d_, With([&](auto& m) { m.reserves = {MakeReserve(d_, job)}; }));
  Step();
  EXPECT_EQ(Said(d_).reserved.size(), 4u);  // 64 pages, 16 each
  ASSERT_EQ(Said(d_).refused.size(), 1u);
  EXPECT_EQ(Said(d_).refused[0].code, absl::StatusCode::kResourceExhausted);
  d_.core->Apply(SessionClosed{.session = kSession, .status = absl::OkStatus()});
  Step(5);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, ADrainingWorkerFinishesWhatItHasAndTakesNothingNew) {
  const Job job;
  Submit(p_, d_, job);
  Step(3);
  d_.core->Drain();
  p_.core->Drain();
  Tell(d_, With([&](auto& m) { m.reserves = {MakeReserve(d_, {.transfer = 2})}; }));
  StepUntilFinished(d_, 1);
  ASSERT_EQ(Said(d_).refused.size(), 1u);
  EXPECT_EQ(Said(d_).refused[0].code, absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Said(d_).load->is_draining);
  EXPECT_EQ(Text(job), Reference(job));
  Step(50);
  ExpectNothingHeld();
}

TEST_F(WorkerCoreTest, AProtocolViolationClosesTheSessionAndItsWork) {
  const Job job;
  Tell(d_, With([&](auto& m) { m.reserves = {MakeReserve(d_, job)}; }));
  Step();
  Tell(d_, With([&](auto& m) { m.prompt_chunks = {{Transfer(1), 5, {1, 2, 3}, false}}; }));
  EXPECT_EQ(d_.sender.closed.at(kSession).code(), absl::StatusCode::kInvalidArgument);
  Step(5);
  ExpectNothingHeld();
}

}  // namespace
}  // namespace baton::worker
