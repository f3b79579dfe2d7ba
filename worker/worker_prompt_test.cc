// Prompts at a whole worker: what the prefix cache serves again, and the report on a prompt's own
// tokens.
#include <gtest/gtest.h>
#include <utility>
#include <vector>

#include "worker/test_worker.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};
constexpr int kTokens = 700;

std::vector<int32_t> Prompt(int tokens) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(3 + (i * 7) % 500);
  return prompt;
}

// One worker that fills its own landings, and the router's part played by hand.
class WorkerPromptTest : public testing::Test {
 protected:
  WorkerPromptTest() { worker_.core->Apply(SessionOpened{.session = kSession, .hello = {}}); }

  struct Answer {
    std::vector<int32_t> tokens;
    uint32_t cached_tokens = 0;
    std::vector<wire::PromptLogprobs> reports;  // as they came
  };
  Answer Run(const std::vector<int32_t>& prompt, std::optional<uint32_t> logprobs = {}) {
    worker_.sender.sent.clear();
    ++transfer_.bytes[0];
    wire::Reserve reserve;
    reserve.transfer = transfer_;
    reserve.prompt_tokens = static_cast<uint32_t>(prompt.size());
    reserve.num_pages = static_cast<uint32_t>(PagesFor(reserve.prompt_tokens));
    reserve.sequences.push_back({.handle = {transfer_.bytes[0]}, .choice = 0, .received = {}});
    reserve.finish.max_tokens = 5;
    reserve.prompt_class = worker_.setup.prompt_class;
    reserve.decode_class = worker_.setup.decode_class;
    wire::RouterMessage message;
    message.reserves.push_back(reserve);
    Tell(std::move(message));
    Step(1);
    wire::Run run;
    run.transfer = transfer_;
    for (const wire::WorkerMessage& said : worker_.sender.sent[kSession])
      for (const wire::Reserved& reserved : said.reserved) run.landing = reserved.landing;
    run.attempt = run.landing.attempt;
    run.prompt_tokens = reserve.prompt_tokens;
    run.sequences = reserve.sequences;
    run.finish = reserve.finish;
    run.prompt_class = worker_.setup.prompt_class;
    run.prompt_logprobs = logprobs;
    message = {};
    message.runs.push_back(run);
    message.prompt_chunks.push_back(
        {.transfer = transfer_, .offset = 0, .tokens = prompt, .is_last = true});
    Tell(std::move(message));
    Step(60);
    EXPECT_TRUE(worker_.core->IsIdle());
    EXPECT_EQ(worker_.num_leaked(), 0);
    return Heard();
  }
  void Tell(wire::RouterMessage message) {
    worker_.core->Apply(SessionMessage{.session = kSession, .message = std::move(message)});
  }
  void Step(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      clock_.Advance(absl::Milliseconds(1));
      worker_.Round();
    }
  }
  Answer Heard() {
    Answer answer;
    for (wire::WorkerMessage& said : worker_.sender.sent[kSession]) {
      for (const wire::FirstToken& first : said.first_tokens) {
        answer.tokens.push_back(first.tokens.at(0).token);
        answer.cached_tokens = first.cached_tokens;
      }
      for (wire::PromptLogprobs& report : said.prompt_logprobs)
        answer.reports.push_back(std::move(report));
      if (!said.tokens) continue;
      for (const wire::SequenceStep& step : said.tokens->sequences)
        for (const TokenRecord& record : step.tokens) answer.tokens.push_back(record.token);
    }
    return answer;
  }

  ManualClock clock_;
  SeededRng rng_{3};
  kvtransfer::InprocNetwork network_{clock_, rng_};
  TestWorker worker_{{.name = "m", .incarnation = 7}, network_, clock_};
  TransferId transfer_;
};

TEST_F(WorkerPromptTest, ARottenPageIsComputedAgainAndCounted) {
  const std::vector<int32_t> prompt = Prompt(kTokens);
  const Answer first = Run(prompt);
  ASSERT_EQ(first.tokens.size(), 5u);
  const Answer second = Run(prompt);
  EXPECT_EQ(second.tokens, first.tokens);
  EXPECT_EQ(second.cached_tokens, 512u);
  EXPECT_EQ(worker_.core->Gauges().pages_rotten, 0u);

  for (PageId page = 0; page < 64; ++page)  // a row of the first page, wherever it lies
    if (worker_.pool.IsCached(page)) worker_.pool.Data(page)[3] ^= std::byte{0x40};
  const Answer third = Run(prompt);
  EXPECT_EQ(third.tokens, first.tokens);
  EXPECT_EQ(third.cached_tokens, 0u);
  EXPECT_EQ(worker_.core->Gauges().pages_rotten, 1u);  // the others hung on it
  const Answer fourth = Run(prompt);
  EXPECT_EQ(fourth.tokens, first.tokens);
  EXPECT_EQ(fourth.cached_tokens, 512u);
  EXPECT_EQ(worker_.core->Gauges().pages_rotten, 1u);
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
