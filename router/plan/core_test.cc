#include "router/plan/core.h"

#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "router/plan/core_harness.h"

namespace baton::router {
namespace {

// One P (1) and one D (2), and spares (3, 4) where a test asks for them.
struct Cluster {
  CoreHarness h;
  WorkerId p, d, p2, d2;
  explicit Cluster(bool has_spares = false, const PlanConfig& config = {}) : h(config) {
    p = h.Up(1, kPrefillWorker);
    d = h.Up(2, kDecodeWorker);
    if (!has_spares) return;
    p2 = h.Up(3, kPrefillWorker);
    d2 = h.Up(4, kDecodeWorker);
  }
};

TEST(RouterCore, TakesARequestThroughItsWholeLife) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 4);
  EXPECT_EQ(c.h.Log(key).num_accepted, 1);
  EXPECT_EQ(c.h.State(key), "booking");
  const auto reserve = c.h.Last<wire::Reserve>(c.d);
  EXPECT_EQ(reserve.prompt_tokens, 300u);
  EXPECT_EQ(reserve.num_pages, 2u);
  EXPECT_TRUE(c.h.Last<wire::PromptChunk>(c.d).is_last);
  EXPECT_TRUE(c.h.Sent<wire::Run>(c.p).empty());
  c.h.Reserved(c.d);
  EXPECT_EQ(c.h.State(key), "prefilling");
  const auto run = c.h.Last<wire::Run>(c.p);
  EXPECT_EQ(run.landing.kv_address, "kv-2");
  EXPECT_EQ(run.landing.attempt, 1u);
  EXPECT_EQ(c.h.Last<wire::PromptChunk>(c.p).tokens.size(), 300u);
  c.h.FirstToken(c.p);
  c.h.ExpectTokens(key, 0, 1);
  EXPECT_EQ(c.h.State(key), "prefilling");
  c.h.Landed(c.d);
  c.h.ExpectTokens(key, 0, 1);
  EXPECT_EQ(c.h.State(key), "decoding");
  c.h.ToEnd(c.d);
  c.h.ExpectTokens(key, 0, 4);
  EXPECT_EQ(c.h.Log(key).finished.at(0), FinishReason::kLength);
  EXPECT_TRUE(c.h.EndOf(key)->ok());
  EXPECT_EQ(c.h.Facts().outcomes.ok, 1u);
  EXPECT_EQ(c.h.Facts().cancels_sent, 2u);
  c.h.ExpectQuiet();
}

TEST(RouterCore, EmitsTheFirstTokenFromWhicheverWorkerIsFirst) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 4);
  c.h.Reserved(c.d);
  c.h.Landed(c.d);
  c.h.ExpectTokens(key, 0, 1);
  EXPECT_EQ(c.h.State(key), "decoding");
  c.h.FirstToken(c.p);
  c.h.ExpectTokens(key, 0, 1);
  EXPECT_EQ(c.h.Facts().repeats_dropped, 1u);
  EXPECT_EQ(c.h.Facts().repeat_mismatches, 0u);
  c.h.ToEnd(c.d);
  c.h.ExpectTokens(key, 0, 4);
  c.h.ExpectQuiet();
}

TEST(RouterCore, KeepsTheFirstOfTwoDifferingTokensAndAlarms) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 4);
  c.h.ToDecoding(c.p, c.d);
  const auto reserve = c.h.Last<wire::Reserve>(c.d);
  wire::SequenceStep step;
  step.handle = reserve.sequences[0].handle;
  step.first_position = 300;
  step.tokens = {TokenRecord{.token = 99'999, .top = {}}, CoreHarness::TokenAt(0, 301)};
  wire::WorkerMessage message;
  message.tokens.emplace().sequences.push_back(step);
  c.h.Say(c.d, message);
  c.h.ExpectTokens(key, 0, 2);
  EXPECT_EQ(c.h.Facts().repeat_mismatches, 1u);
  c.h.Tokens(c.d, 0, 302, 2);
  c.h.Finished(c.d, 0);
  c.h.ExpectTokens(key, 0, 4);
  c.h.ExpectQuiet();
}

TEST(RouterCore, RecoversFromASkippedPosition) {
  Cluster c(true);
  const RequestKey key = c.h.Arrive(300, 4);
  c.h.ToDecoding(c.p, c.d);
  c.h.Tokens(c.d, 0, 303, 1);
  EXPECT_EQ(c.h.Facts().position_gaps, 1u);
  EXPECT_EQ(c.h.State(key), "recovering");
  c.h.ClientGoneNow(key);
  c.h.ExpectQuiet();
}

TEST(RouterCore, CarriesSeveralChoicesAndEndsWithTheLast) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 3, 3);
  c.h.ToDecoding(c.p, c.d);
  for (int i = 0; i < 3; ++i) c.h.ExpectTokens(key, i, 1);
  EXPECT_EQ(c.h.Last<wire::Reserve>(c.d).num_pages, 2u);  // the prompt's
  c.h.Tokens(c.d, 1, 301, 2);
  c.h.Finished(c.d, 1);
  EXPECT_EQ(c.h.EndOf(key), std::nullopt);
  c.h.Tokens(c.d, 0, 301, 2);
  c.h.Finished(c.d, 0);
  c.h.Tokens(c.d, 2, 301, 2);
  c.h.Finished(c.d, 2);
  EXPECT_TRUE(c.h.EndOf(key)->ok());
  c.h.ExpectQuiet();
}

TEST(RouterCore, CancelsOneChoiceByItsIndexAndGoesOnWithTheOthers) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 3, 2);
  c.h.ToDecoding(c.p, c.d);
  c.h.On(CancelChoice{.key = key, .choice = 0, .reason = "stop string"});
  EXPECT_EQ(c.h.Last<wire::Cancel>(c.d).sequence, 0u);
  const auto stale = c.h.Facts().stale_messages;
  c.h.Tokens(c.d, 0, 301, 2);
  EXPECT_EQ(c.h.Facts().stale_messages, stale + 1);
  c.h.ExpectTokens(key, 0, 1);
  c.h.Tokens(c.d, 1, 301, 2);
  c.h.Finished(c.d, 1);
  EXPECT_TRUE(c.h.EndOf(key)->ok());
  c.h.ExpectTokens(key, 1, 3);
  c.h.ExpectQuiet();
}

TEST(RouterCore, EndsWellWhenTheClientHasEnoughOfEveryChoice) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 30);
  c.h.ToDecoding(c.p, c.d);
  c.h.On(CancelChoice{.key = key, .choice = 0, .reason = "stop string"});
  EXPECT_TRUE(c.h.EndOf(key)->ok());
  c.h.ExpectQuiet();
}

// The report and the last token come from two workers: either may be first.
TEST(RouterCore, EndsWhenTheReportOnThePromptIsInToo) {
  for (const bool is_lost : {false, true}) {
    SCOPED_TRACE(is_lost);
    Cluster c(true);
    GenerateRequest request = c.h.MakeRequest(300, 2);
    request.prompt_logprobs = 0;
    const RequestKey key = c.h.Arrive(std::move(request));
    c.h.Reserved(c.d);
    wire::WorkerMessage message;
    message.prompt_logprobs.push_back({.transfer = c.h.Last<wire::Run>(c.p).transfer,
                                       .first_position = 1,
                                       .tokens = std::vector<TokenRecord>(299)});
    c.h.Landed(c.d);
    c.h.ToEnd(c.d);
    EXPECT_FALSE(c.h.EndOf(key).has_value());
    if (is_lost) {
      c.h.Down(c.p);
      EXPECT_EQ(c.h.EndOf(key)->code(), absl::StatusCode::kUnavailable);
    } else {
      c.h.Say(c.p, message);
      EXPECT_TRUE(c.h.EndOf(key)->ok());
      EXPECT_EQ(c.h.Log(key).prompt_logprobs.size(), 299u);
    }
    c.h.ExpectQuiet();
  }
}

wire::WorkerMessage Report(const Cluster& c, uint32_t first, size_t count) {
  wire::WorkerMessage message;
  message.prompt_logprobs.push_back({.transfer = c.h.Last<wire::Run>(c.p).transfer,
                                     .first_position = first,
                                     .tokens = std::vector<TokenRecord>(count)});
  return message;
}

TEST(RouterCore, AReportThatDoesNotComeEndsTheRequest) {
  const std::vector<std::function<void(Cluster&)>> ways = {
      [](Cluster& c) { c.h.Advance(absl::Seconds(11)); },
      [](Cluster& c) { c.h.FirstToken(c.p); },
      [](Cluster& c) { c.h.FailTransfer(c.p, absl::StatusCode::kInternal); },
      [](Cluster& c) { c.h.Say(c.p, Report(c, 5, 10)); },
  };
  for (size_t i = 0; i < ways.size(); ++i) {
    SCOPED_TRACE(i);
    Cluster c;
    GenerateRequest request = c.h.MakeRequest(300, 2);
    request.prompt_logprobs = 0;
    const RequestKey key = c.h.Arrive(std::move(request));
    c.h.Reserved(c.d);
    c.h.Landed(c.d);
    c.h.ToEnd(c.d);
    EXPECT_FALSE(c.h.EndOf(key).has_value());
    ways[i](c);
    ASSERT_TRUE(c.h.EndOf(key).has_value());
    EXPECT_TRUE(absl::IsUnavailable(*c.h.EndOf(key))) << *c.h.EndOf(key);
    c.h.ExpectQuiet();
  }
}

// Its session ended before the report was out, and the landing that it filled spoke later.
TEST(RouterCore, ALandingWhosePrefillTookTheReportAlongIsComputedAnew) {
  Cluster c(true);
  GenerateRequest request = c.h.MakeRequest(300, 2);
  request.prompt_logprobs = 0;
  const RequestKey key = c.h.Arrive(std::move(request));
  c.h.Reserved(c.d);
  c.h.Down(c.p);
  c.h.Landed(c.d);
  EXPECT_EQ(c.h.State(key), "booking");
  c.h.ClientGoneNow(key);
  c.h.ExpectQuiet();
}

TEST(RouterCore, AReportEndsWithThePromptAndIsNotAskedForAgain) {
  Cluster c(true);
  GenerateRequest request = c.h.MakeRequest(300, 2);
  request.prompt_logprobs = 0;
  const RequestKey key = c.h.Arrive(std::move(request));
  c.h.Reserved(c.d);
  c.h.Say(c.p, Report(c, 1, 305));
  EXPECT_EQ(c.h.Log(key).prompt_logprobs.size(), 299u);
  c.h.Down(c.p);
  c.h.Retargeted(c.d);
  EXPECT_FALSE(c.h.Last<wire::Run>(c.p2).prompt_logprobs.has_value());
  c.h.ClientGoneNow(key);
  c.h.ExpectQuiet();
}

TEST(RouterCore, AReportIsChargedAsOftenAsTheAnswerShowsIt) {
  PlanConfig config;
  config.max_live_bytes = 2'000'000;  // 300 positions of 22 entries: 1 MB of text each
  for (const int copies : {1, 3}) {
    Cluster c(false, config);
    GenerateRequest request = c.h.MakeRequest(300, 2, 3);
    request.prompt_logprobs = 20;
    request.report_copies = copies;
    const RequestKey key = c.h.Arrive(std::move(request));
    EXPECT_EQ(c.h.EndOf(key).has_value(), copies == 3);
    if (copies == 1) c.h.ClientGoneNow(key);
  }
}

TEST(RouterCore, AReportBeyondTheLiveBytesIsRefusedAsTooLarge) {
  Cluster c(true);
  GenerateRequest request = c.h.MakeRequest(1'000'000, 2);
  request.prompt_logprobs = 20;
  const RequestKey key = c.h.Arrive(std::move(request));
  EXPECT_EQ(c.h.EndOf(key)->code(), absl::StatusCode::kInvalidArgument);
  c.h.ExpectQuiet();
}

TEST(RouterCore, EmitsEachPromptLogprobOnceAcrossAttempts) {
  Cluster c(true);
  GenerateRequest request = c.h.MakeRequest(300, 2);
  request.prompt_logprobs = 2;
  const RequestKey key = c.h.Arrive(std::move(request));
  c.h.Reserved(c.d);
  wire::PromptLogprobs part;
  part.transfer = c.h.Last<wire::Run>(c.p).transfer;
  part.tokens.resize(200);
  wire::WorkerMessage message;
  message.prompt_logprobs.push_back(part);
  c.h.Say(c.p, message);
  EXPECT_EQ(c.h.Log(key).prompt_logprobs.size(), 200u);
  c.h.Down(c.p);
  c.h.Retargeted(c.d);
  EXPECT_EQ(c.h.Last<wire::Run>(c.p2).prompt_logprobs, 2u);
  message.prompt_logprobs[0].tokens.resize(299);
  c.h.Say(c.p2, message);
  EXPECT_EQ(c.h.Log(key).prompt_logprobs.size(), 299u);
  c.h.FirstToken(c.p2);
  c.h.Landed(c.d);
  c.h.ToEnd(c.d);
  c.h.ExpectTokens(key, 0, 2);
  c.h.ExpectQuiet();
}

TEST(RouterCore, SplitsTheTimesTooWhenTheLandingSpeaksFirst) {
  Cluster c;
  const RequestKey key = c.h.Arrive(300, 4);
  const absl::Time arrival = c.h.now();
  c.h.Reserved(c.d);
  c.h.Advance(absl::Milliseconds(20));
  c.h.Landed(c.d);
  const absl::Duration first = c.h.now() - arrival;
  c.h.Advance(absl::Milliseconds(5));
  c.h.FirstToken(c.p);  // says 1 ms of prefill
  c.h.FirstToken(c.p);
  c.h.ToEnd(c.d);
  const StageTimes& t = c.h.Log(key).end.times;
  EXPECT_EQ(t.prefill, absl::Milliseconds(1));
  EXPECT_EQ(t.prefill_queue, absl::Milliseconds(19));
  EXPECT_EQ(t.parse + t.queue + t.booking + t.prefill_queue + t.prefill + t.emit, first);
}

TEST(RouterCore, SplitsTheTimesSoThatTheyAddUp) {
  Cluster c;
  GenerateRequest request = c.h.MakeRequest(300, 4);
  request.arrival = c.h.now() - absl::Milliseconds(7);
  request.parse_time = absl::Milliseconds(5);
  const absl::Time arrival = request.arrival;
  const RequestKey key = c.h.Arrive(std::move(request));
  c.h.Advance(absl::Milliseconds(3));
  c.h.Reserved(c.d);
  c.h.Advance(absl::Milliseconds(20));
  c.h.FirstToken(c.p);  // says 1 ms of prefill
  const absl::Duration first = c.h.now() - arrival;
  c.h.Advance(absl::Milliseconds(6));
  c.h.Landed(c.d);
  c.h.Advance(absl::Milliseconds(9));
  const auto reserve = c.h.Last<wire::Reserve>(c.d);
  wire::SequenceStep step;
  step.handle = reserve.sequences[0].handle;
  step.first_position = 301;
  step.tokens = {CoreHarness::TokenAt(0, 301)};
  step.queue_us = 2'000;
  step.step_us = 4'000;
  wire::WorkerMessage message;
  message.tokens.emplace().sequences.push_back(step);
  c.h.Say(c.d, message);
  c.h.Tokens(c.d, 0, 302, 2);
  c.h.Finished(c.d, 0);
  const StageTimes& t = c.h.Log(key).end.times;
  EXPECT_EQ(t.parse, absl::Milliseconds(5));
  EXPECT_EQ(t.queue, absl::Milliseconds(2));
  EXPECT_EQ(t.booking, absl::Milliseconds(3));
  EXPECT_EQ(t.prefill, absl::Milliseconds(1));
  EXPECT_EQ(t.prefill_queue, absl::Milliseconds(19));
  EXPECT_EQ(t.parse + t.queue + t.booking + t.prefill_queue + t.prefill + t.emit, first);
  EXPECT_EQ(t.first_step, absl::Milliseconds(4));
  EXPECT_EQ(t.decode_queue, absl::Milliseconds(2));
  EXPECT_EQ(t.transfer + t.decode_queue + t.first_step, absl::Milliseconds(15));
  EXPECT_EQ(c.h.Facts().stages.first_token.count, 1u);
}

}  // namespace
}  // namespace baton::router
