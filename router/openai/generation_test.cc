#include "router/openai/generation.h"

#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <utility>
#include <vector>

#include "router/openai/api_setup.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr size_t kLongPrompt = 1200;  // tokens: more logprobs than an I/O thread formats

class GenerationTest : public testing::Test {
 protected:
  GenerationTest() {
    prompt_ = RealTokenizer().Encode("Every word of it.", SpecialTokens::kRecognise);
    for (size_t i = 0; prompt_.size() < kLongPrompt; ++i) prompt_.push_back(prompt_[i]);
  }

  std::shared_ptr<FakeExchange> Start(CpuPool& pool, const GenerationJob& job) {
    const ApiContext context = {.config = setup_.config,
                                .tokenizer = setup_.tokenizer,
                                .grammars = setup_.grammars,
                                .markup = setup_.markup,
                                .dispatcher = setup_.dispatcher,
                                .cpu_pool = pool,
                                .clock = setup_.clock,
                                .replay = replay_,
                                .dsml = dsml_};
    auto exchange = std::make_shared<FakeExchange>();
    Generation::Start(context, job, exchange);
    return exchange;
  }
  GenerationJob Job(CompletionKind kind, bool is_stream) const {
    GenerationJob job;
    job.head = {.kind = kind, .id = "id", .model = "m", .created = 1};
    job.params.is_stream = is_stream;
    job.params.wants_logprobs = kind == CompletionKind::kText;
    job.params.echoes = kind == CompletionKind::kText;
    job.params.sampling.top_logprobs = 1;
    if (kind == CompletionKind::kChat) job.params.prompt_logprobs = 1;
    job.prompts = {std::make_shared<const std::vector<int32_t>>(prompt_)};
    if (job.params.echoes) job.echoes = {RealTokenizer().Decode(prompt_, true)};
    job.request.prompt_logprobs = 1;
    job.request_id = "id";
    return job;
  }
  PromptLogprobsEmitted Report() const {
    PromptLogprobsEmitted event;
    for (size_t i = 1; i < prompt_.size(); ++i)
      event.tokens.push_back({.token = prompt_[i],
                              .logprob = -0.001f * static_cast<float>(i),
                              .top = {{prompt_[0], -0.5f}}});
    return event;
  }
  std::vector<RequestEvent> Answer() const {
    TokensEmitted tokens;
    tokens.tokens.push_back({.token = prompt_[1], .logprob = -0.5f, .top = {{5, -0.25f}}});
    const ChoiceFinished finished = {.stop_token = setup_.markup.eos};
    return {tokens, finished, RequestEnded{}};
  }
  static RequestEnded Ended(absl::Status status) {
    RequestEnded event;
    event.status = std::move(status);
    return event;
  }
  // The planner's words about the latest request, in one batch.
  void Say(std::vector<RequestEvent> events, FakeExchange& exchange) {
    dispatcher_.submitted.back().sink(std::move(events));
    exchange.RunTasks();
  }

  // Only the first of the tasks that wait, or of those the pool posts within `patience`.
  static bool RunOne(FakeExchange& exchange, absl::Duration patience) {
    std::vector<std::function<void()>> posted;
    if (exchange.tasks.Drain(posted, 1, patience) == 0) return false;
    posted[0]();
    return true;
  }

  std::vector<int32_t> prompt_;
  ApiSetup setup_{RealTokenizer(), [](std::string_view) { return absl::OkStatus(); }};
  FakeDispatcher& dispatcher_ = setup_.dispatcher;
  CpuPool& pool_ = setup_.cpu_pool;
  CallReplay replay_{setup_.clock, {}};
  DsmlCounts dsml_;
  CpuPool full_pool_{1, 0};  // takes nothing: all is formatted where it is asked for
};

TEST_F(GenerationTest, LongReportsOfWholeAnswersAreFormattedOffTheThreadAndAreTheSame) {
  for (const CompletionKind kind : {CompletionKind::kChat, CompletionKind::kText}) {
    const auto here = Start(full_pool_, Job(kind, false));
    Say({RequestAccepted{}, Report()}, *here);
    Say(Answer(), *here);
    ASSERT_TRUE(here->is_ended);
    EXPECT_GT(here->body.size(), 20 * kLongPrompt);

    const auto apart = Start(pool_, Job(kind, false));
    Say({RequestAccepted{}, Report()}, *apart);
    dispatcher_.submitted.back().sink(Answer());
    ASSERT_TRUE(RunOne(*apart, absl::ZeroDuration()));
    EXPECT_FALSE(apart->is_ended) << "formatted on the connection's thread";
    ASSERT_TRUE(apart->RunTasksUntilOver(kPatience));
    EXPECT_EQ(apart->status, 200);
    EXPECT_EQ(apart->body, here->body);
    EXPECT_EQ(apart->headers, here->headers);
  }
}

TEST_F(GenerationTest, AStreamsLongEchoComesFirstAndIsTheSame) {
  const auto here = Start(full_pool_, Job(CompletionKind::kText, true));
  Say({RequestAccepted{}, Report()}, *here);
  Say(Answer(), *here);
  ASSERT_TRUE(here->is_ended);

  const auto apart = Start(pool_, Job(CompletionKind::kText, true));
  std::vector<RequestEvent> events = Answer();  // what comes while the pool formats is held
  events.insert(events.begin(), {RequestAccepted{}, Report()});
  dispatcher_.submitted.back().sink(std::move(events));
  ASSERT_TRUE(RunOne(*apart, absl::ZeroDuration()));
  EXPECT_EQ(apart->body, "") << "formatted on the connection's thread";
  ASSERT_TRUE(apart->RunTasksUntilOver(kPatience));
  EXPECT_EQ(apart->body, here->body);
}

TEST_F(GenerationTest, AClientThatLeavesWhileItsEchoIsFormattedCancelsOnceAndHearsNothing) {
  const auto exchange = Start(pool_, Job(CompletionKind::kText, true));
  dispatcher_.submitted.back().sink({RequestAccepted{}, Report()});
  ASSERT_TRUE(RunOne(*exchange, absl::ZeroDuration()));
  exchange->Gone();
  EXPECT_EQ(dispatcher_.cancelled.size(), 1u);
  ASSERT_TRUE(RunOne(*exchange, kPatience));  // the pool's
  Say({Ended(absl::CancelledError("client gone"))}, *exchange);
  EXPECT_EQ(exchange->body, "");
  EXPECT_EQ(dispatcher_.cancelled.size(), 1u);
}

TEST_F(GenerationTest, AFailureWhileAnEchoIsFormattedEndsTheStreamOnce) {
  const auto exchange = Start(pool_, Job(CompletionKind::kText, true));
  dispatcher_.submitted.back().sink(
      {RequestAccepted{}, Report(), Ended(absl::UnavailableError("no worker"))});
  ASSERT_TRUE(exchange->RunTasksUntilOver(kPatience));
  EXPECT_NE(exchange->body.find("no worker"), std::string::npos);
  EXPECT_TRUE(exchange->body.ends_with(kDoneEvent));
}

TEST_F(GenerationTest, AShortReportIsFormattedAtOnce) {
  prompt_.resize(4);
  const auto exchange = Start(pool_, Job(CompletionKind::kChat, false));
  Say({RequestAccepted{}, Report()}, *exchange);
  Say(Answer(), *exchange);
  EXPECT_TRUE(exchange->is_ended);
  EXPECT_EQ(pool_.waiting(), 0u);
}

}  // namespace
}  // namespace baton::router
