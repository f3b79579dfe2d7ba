// Prompts at a whole worker: what the prefix cache serves again, and the report on a prompt's own
// tokens.
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/test_worker.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};
constexpr int kTokens = 700;

// The first `common` tokens are the same for every seed.
std::vector<int32_t> Prompt(int tokens, int common = 0, int seed = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(3 + (i * 7 + (i < common ? 0 : seed)) % 500);
  return prompt;
}

// One worker that fills its own landings, and the router's part played by hand.
class WorkerPromptTest : public testing::Test {
 protected:
  WorkerPromptTest() { StartWorker({}); }
  void StartWorker(const WorkerLimits& limits) {
    ++incarnation_;
    worker_ = std::make_unique<TestWorker>(
        TestWorkerOptions{
            .name = std::to_string(incarnation_), .incarnation = incarnation_, .limits = limits},
        network_, clock_);
    worker_->core->Apply(SessionOpened{.session = kSession, .hello = {}});
  }

  struct Answer {
    std::vector<int32_t> tokens;
    uint32_t cached_tokens = 0;
    std::vector<wire::PromptLogprobs> reports;  // as they came
  };
  Answer Run(const std::vector<int32_t>& prompt, std::optional<uint32_t> logprobs = {}) {
    Begin(prompt, logprobs);
    Step(60);
    EXPECT_TRUE(worker_->core->IsIdle());
    EXPECT_EQ(worker_->num_leaked(), 0);
    return Heard();
  }
  // What a worker that has no other prompt answers.
  Answer RunAlone(const std::vector<int32_t>& prompt) {
    auto kept = std::move(worker_);
    StartWorker({});
    Answer answer = Run(prompt);
    worker_ = std::move(kept);
    return answer;
  }
  // `source` computes it; by default the worker itself.
  void Begin(const std::vector<int32_t>& prompt, std::optional<uint32_t> logprobs = {},
             TestWorker* source = nullptr) {
    worker_->sender.sent.clear();
    ++transfer_.bytes[0];
    wire::Reserve reserve;
    reserve.transfer = transfer_;
    reserve.prompt_tokens = static_cast<uint32_t>(prompt.size());
    reserve.num_pages = static_cast<uint32_t>(PagesFor(reserve.prompt_tokens));
    reserve.sequences.push_back({.handle = {transfer_.bytes[0]}, .choice = 0, .received = {}});
    reserve.finish.max_tokens = max_tokens_;
    reserve.prompt_class = worker_->setup.prompt_class;
    reserve.decode_class = worker_->setup.decode_class;
    wire::RouterMessage message;
    message.reserves.push_back(reserve);
    Tell(std::move(message));
    Step(1);
    wire::Run run;
    run.transfer = transfer_;
    for (const wire::WorkerMessage& said : worker_->sender.sent[kSession])
      for (const wire::Reserved& reserved : said.reserved) run.landing = reserved.landing;
    run.attempt = run.landing.attempt;
    run.prompt_tokens = reserve.prompt_tokens;
    run.sequences = reserve.sequences;
    run.finish = reserve.finish;
    run.prompt_class = worker_->setup.prompt_class;
    run.prompt_logprobs = logprobs;
    message = {};
    message.runs.push_back(run);
    message.prompt_chunks.push_back(
        {.transfer = transfer_, .offset = 0, .tokens = prompt, .is_last = true});
    TestWorker& runs = source == nullptr ? *worker_ : *source;
    runs.core->Apply(SessionMessage{.session = kSession, .message = std::move(message)});
  }
  void Tell(wire::RouterMessage message) {
    worker_->core->Apply(SessionMessage{.session = kSession, .message = std::move(message)});
  }
  void Step(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      clock_.Advance(absl::Milliseconds(1));
      worker_->Round();
    }
  }
  std::vector<wire::Failed> Failed() {
    std::vector<wire::Failed> all;
    for (const wire::WorkerMessage& said : worker_->sender.sent[kSession])
      all.insert(all.end(), said.failed.begin(), said.failed.end());
    return all;
  }
  Answer Heard() {
    Answer answer;
    for (const wire::WorkerMessage& said : worker_->sender.sent[kSession]) {
      for (const wire::FirstToken& first : said.first_tokens) {
        answer.tokens.push_back(first.tokens.at(0).token);
        answer.cached_tokens = first.cached_tokens;
      }
      for (const wire::PromptLogprobs& report : said.prompt_logprobs)
        answer.reports.push_back(report);
      if (!said.tokens) continue;
      for (const wire::SequenceStep& step : said.tokens->sequences)
        for (const TokenRecord& record : step.tokens) answer.tokens.push_back(record.token);
    }
    return answer;
  }

  ManualClock clock_;
  SeededRng rng_{3};
  kvtransfer::InprocNetwork network_{clock_, rng_};
  std::unique_ptr<TestWorker> worker_;
  uint64_t incarnation_ = 6;
  int64_t max_tokens_ = 5;
  TransferId transfer_;
};

TEST_F(WorkerPromptTest, ARottenPageIsComputedAgainAndCounted) {
  const std::vector<int32_t> prompt = Prompt(kTokens);
  const Answer first = Run(prompt);
  ASSERT_EQ(first.tokens.size(), 5u);
  const Answer second = Run(prompt);
  EXPECT_EQ(second.tokens, first.tokens);
  EXPECT_EQ(second.cached_tokens, 512u);
  EXPECT_EQ(worker_->core->Gauges().pages_rotten, 0u);

  for (PageId page = 0; page < 64; ++page)  // a row of the first page, wherever it lies
    if (worker_->pool.IsCached(page)) worker_->pool.Data(page)[3] ^= std::byte{0x40};
  const Answer third = Run(prompt);
  EXPECT_EQ(third.tokens, first.tokens);
  EXPECT_EQ(third.cached_tokens, 0u);
  EXPECT_EQ(worker_->core->Gauges().pages_rotten, 1u);  // the others hung on it
  const Answer fourth = Run(prompt);
  EXPECT_EQ(fourth.tokens, first.tokens);
  EXPECT_EQ(fourth.cached_tokens, 512u);
  EXPECT_EQ(worker_->core->Gauges().pages_rotten, 1u);
}

TEST_F(WorkerPromptTest, APageThatRotsUnderARunningPromptDoesNotComeBack) {
  constexpr int kCommon = 6 * kPageTokens;
  const std::vector<int32_t> running = Prompt(kCommon + 2100, kCommon, 1);
  const std::vector<int32_t> next = Prompt(kCommon + 900, kCommon, 2);
  Run(Prompt(kCommon + 10));
  Begin(running);
  const TransferId failing = transfer_;
  Step(3);
  ASSERT_EQ(worker_->core->Gauges().computing_prompts, 1);
  const SequenceId sequence{3};  // the first prompt was 1 here and 2 in its landing
  ASSERT_GT(worker_->loop.Get(sequence).computed, kCommon);
  worker_->pool.Data(worker_->loop.Get(sequence).pages.ids()[2])[5] ^= std::byte{0x10};

  Begin(next);  // and finds the page
  Step(60);
  const auto failed = Failed();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].transfer, failing);
  EXPECT_EQ(failed[0].code, absl::StatusCode::kDataLoss);
  EXPECT_EQ(Heard().cached_tokens, 0u);
  EXPECT_EQ(Heard().tokens, RunAlone(next).tokens);
  wire::RouterMessage message;
  message.cancels = {{.transfer = failing, .sequence = {}, .reason = "failed"}};
  Tell(std::move(message));
  Step(5);

  const Answer again = Run(next);
  EXPECT_EQ(again.cached_tokens, 9u * kPageTokens);
  EXPECT_EQ(again.tokens, RunAlone(next).tokens);
  EXPECT_EQ(Run(running).tokens, RunAlone(running).tokens);
  EXPECT_EQ(worker_->core->Gauges().pages_rotten, 1u);
}

TEST_F(WorkerPromptTest, CheckingALongPrefixDoesNotHoldUpOthers) {
  StartWorker({.checked_pages_per_round = 1});
  constexpr int kCommon = 6 * kPageTokens;
  const std::vector<int32_t> prompt = Prompt(kCommon + 50, kCommon, 1);
  Run(Prompt(kCommon + 10));
  max_tokens_ = 50;
  Begin(Prompt(20));
  Step(5);
  max_tokens_ = 5;
  Begin(prompt);
  for (int round = 1; round < 6; ++round) {
    const size_t decoded = Heard().tokens.size();
    Step(1);
    EXPECT_EQ(worker_->core->Gauges().computing_prompts, 0) << round;
    EXPECT_EQ(Heard().tokens.size(), decoded + 1) << round;
  }
  wire::RouterMessage message;  // what it holds meanwhile goes back
  message.cancels = {{.transfer = transfer_, .sequence = {}, .reason = "over"}};
  Tell(std::move(message));
  Step(60);
  EXPECT_TRUE(worker_->core->IsIdle());
  EXPECT_EQ(worker_->num_leaked(), 0);
  EXPECT_EQ(worker_->core->Gauges().tail_buffers_free, 12);
  const Answer answer = Run(prompt);
  EXPECT_EQ(answer.cached_tokens, static_cast<uint32_t>(kCommon));
  EXPECT_EQ(answer.tokens, RunAlone(prompt).tokens);
}

TEST_F(WorkerPromptTest, ANewAttemptTakesWhatTheCacheHasAndLaterWhatOthersFree) {
  TestWorker source({.name = "p", .incarnation = 99, .serves_decode = false}, network_, clock_);
  source.core->Apply(SessionOpened{.session = kSession, .hello = {}});
  network_.SetLink("p", worker_->setup.kv_address, {.stuck_pull = 1});
  Run(Prompt(3 * kPageTokens + 10));
  Begin(Prompt(8 * kPageTokens - 5, 0, 3), {}, &source);
  for (int i = 0; i < 60; ++i) {
    source.Round();
    Step(1);
  }
  ASSERT_EQ(worker_->agent->metrics().open_receives, 9);  // eight pages and the tail
  engine::Booking others = *worker_->pool.Book(worker_->pool.Counts().free);
  ASSERT_EQ(worker_->pool.Counts().cached, 3);
  wire::RouterMessage message;
  message.retargets = {{.transfer = transfer_, .attempt = 2}};
  Tell(std::move(message));
  Step(3);
  EXPECT_EQ(worker_->pool.Counts().quarantined, 8);
  EXPECT_EQ(worker_->pool.Counts().leased, 3);
  others = engine::Booking();
  Step(1);
  EXPECT_EQ(worker_->pool.Counts().leased, 8);
}

TEST_F(WorkerPromptTest, ReportsEveryPositionOncePerChunkWithoutReuse) {
  const std::vector<int32_t> prompt = Prompt(kTokens);
  const Answer plain = Run(prompt);
  EXPECT_TRUE(plain.reports.empty());
  for (int round = 0; round < 2; ++round) {
    const Answer answer = Run(prompt, 2);
    EXPECT_EQ(answer.tokens, plain.tokens);
    EXPECT_EQ(answer.cached_tokens, 0u);
    ASSERT_EQ(answer.reports.size(), 3u);  // chunks of a page
    uint32_t next = 1;
    for (const wire::PromptLogprobs& report : answer.reports) {
      EXPECT_EQ(report.transfer, transfer_);
      EXPECT_EQ(report.first_position, next);
      for (const TokenRecord& record : report.tokens) {
        EXPECT_EQ(record.token, prompt[next++]);
        EXPECT_EQ(record.top.size(), 2u);
      }
    }
    EXPECT_EQ(next, prompt.size());
  }
  EXPECT_EQ(Run(prompt).cached_tokens, 512u);  // others may reuse its pages
}

}  // namespace
}  // namespace baton::worker
