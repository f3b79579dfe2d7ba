// Queue, deadlines, classes and the choice of workers, through the core.
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "common/page_name.h"
#include "router/plan/core_harness.h"

namespace baton::router {
namespace {

TEST(RouterCoreAdmission, WaitsAMomentForAWorkerThenSays503) {
  CoreHarness h;
  const RequestKey key = h.Arrive();
  EXPECT_EQ(h.State(key), "queued");
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.State(key), "queued");
  h.Advance(absl::Seconds(2));
  EXPECT_TRUE(absl::IsUnavailable(*h.EndOf(key)));
  EXPECT_GE(h.Log(key).end.retry_after, absl::Seconds(1));
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, TakesAWorkerThatComesWithinTheGrace) {
  CoreHarness h;
  const RequestKey key = h.Arrive();
  h.Advance(absl::Seconds(2));
  const WorkerId p = h.Up(1, kPrefillWorker);
  EXPECT_EQ(h.State(key), "queued");
  const WorkerId d = h.Up(2, kDecodeWorker);
  EXPECT_EQ(h.State(key), "booking");
  h.Advance(absl::Seconds(5));
  h.ToDecoding(p, d);
  h.ToEnd(d);
  h.ExpectTokens(key, 0, 4);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, ALostPoolFailsWhatWaitsAfterTheGraceOnly) {
  CoreHarness h;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const RequestKey key = h.Arrive();
  h.Reserved(d);
  h.Down(p);
  h.Retargeted(d);
  EXPECT_EQ(h.State(key), "retarget");  // booked, waits for a prefill worker
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.State(key), "retarget");
  h.Advance(absl::Seconds(2));
  EXPECT_TRUE(absl::IsUnavailable(*h.EndOf(key)));
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, RefusesBeyondItsBoundsWithRetryAfter) {
  PlanConfig config;
  config.max_queued_requests = 2;
  config.assumed_prefill_tokens_per_s = 100;
  CoreHarness h(config);
  const RequestKey first = h.Arrive(1'000);
  const RequestKey second = h.Arrive(1'000);
  const RequestKey third = h.Arrive(10);
  EXPECT_EQ(h.Log(first).num_accepted, 1);
  EXPECT_EQ(h.State(second), "queued");
  EXPECT_TRUE(absl::IsResourceExhausted(*h.EndOf(third)));
  EXPECT_EQ(h.Log(third).num_accepted, 0);
  EXPECT_EQ(h.Log(third).end.retry_after, absl::Seconds(20));  // 2,000 tokens at 100/s
  EXPECT_DOUBLE_EQ(h.Facts().prefill_queue_seconds, 20);
  h.Advance(absl::Seconds(4));
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, BoundsTokensAndBytes) {
  PlanConfig config;
  config.max_queued_tokens = 1'000;
  CoreHarness tokens(config);
  tokens.Arrive(600);
  EXPECT_TRUE(absl::IsResourceExhausted(*tokens.EndOf(tokens.Arrive(500))));
  PlanConfig small;
  small.max_live_bytes = 4'000;
  CoreHarness bytes(small);
  bytes.Arrive(600);
  EXPECT_TRUE(absl::IsResourceExhausted(*bytes.EndOf(bytes.Arrive(500))));
}

TEST(RouterCoreAdmission, ServesByPriorityThenDeadline) {
  PlanConfig config;
  config.max_worker_queue = absl::Seconds(100);
  CoreHarness h(config);
  GenerateRequest late = h.MakeRequest(300, 4);
  GenerateRequest soon = h.MakeRequest(301, 4);
  soon.first_token_deadline = h.now() + absl::Seconds(30);
  GenerateRequest urgent = h.MakeRequest(302, 4);
  urgent.priority = -1;
  h.Arrive(late);
  h.Arrive(soon);
  h.Arrive(urgent);
  h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const auto reserves = h.Sent<wire::Reserve>(d);
  ASSERT_EQ(reserves.size(), 3u);
  EXPECT_EQ(reserves[0].prompt_tokens, 302u);
  EXPECT_EQ(reserves[1].prompt_tokens, 301u);
  EXPECT_EQ(reserves[2].prompt_tokens, 300u);
}

TEST(RouterCoreAdmission, KeepsTheQueueAndLetsWorkersKeepLittle) {
  PlanConfig config;
  config.max_prefills_per_worker = 2;
  config.max_worker_queue = absl::Seconds(100);
  CoreHarness h(config);
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  for (int i = 0; i < 5; ++i) h.Arrive(300 + i);
  EXPECT_EQ(h.Facts().queued_requests, 3u);
  h.Reserved(d);  // the second of the two booked
  h.FirstToken(p);
  EXPECT_EQ(h.Facts().queued_requests, 2u);
}

TEST(RouterCoreAdmission, DeadlinesEndEveryStateWithTheRightCode) {
  CoreHarness h;
  GenerateRequest request = h.MakeRequest(300, 4);
  request.first_token_deadline = h.now() + absl::Seconds(1);
  GenerateRequest total = h.MakeRequest(300, 50);
  total.total_deadline = h.now() + absl::Seconds(5);
  const RequestKey queued = h.Arrive(request);
  h.Advance(absl::Milliseconds(999));
  EXPECT_EQ(h.State(queued), "queued");
  h.Advance(absl::Milliseconds(1));
  EXPECT_TRUE(absl::IsResourceExhausted(*h.EndOf(queued)));
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  request.first_token_deadline = h.now() + absl::Seconds(1);
  const RequestKey booking = h.Arrive(request);
  h.Advance(absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(*h.EndOf(booking)));
  request.first_token_deadline = h.now() + absl::Seconds(1);
  const RequestKey prefilling = h.Arrive(request);
  EXPECT_EQ(h.Last<wire::Reserve>(d).remaining_ms, 1'000);
  h.Reserved(d);
  h.Advance(absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(*h.EndOf(prefilling)));
  const RequestKey decoding = h.Arrive(total);
  h.ToDecoding(p, d);
  h.Tokens(d, 0, 301, 5);
  h.Advance(absl::Seconds(4));
  EXPECT_TRUE(absl::IsDeadlineExceeded(*h.EndOf(decoding)));
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, NoDeadlineAfterTheFirstTokenUnlessAsked) {
  CoreHarness h;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const RequestKey key = h.Arrive(300, 50);
  h.ToDecoding(p, d);
  h.Advance(absl::Hours(2));
  EXPECT_EQ(h.State(key), "decoding");
  h.ToEnd(d);
  h.ExpectTokens(key, 0, 50);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, ARequestTooLargeForEveryWorkerEndsAtOnce) {
  PlanConfig config;
  config.max_worker_queue = absl::Seconds(100);
  CoreHarness h(config);
  WorkerSpec small = kDecodeWorker;
  small.pages = 3;
  h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, small);
  EXPECT_TRUE(absl::IsInvalidArgument(*h.EndOf(h.Arrive(1'000, 4))));
  const RequestKey fits = h.Arrive(700, 4);
  EXPECT_EQ(h.State(fits), "booking");
  EXPECT_EQ(h.Last<wire::Reserve>(d).num_pages, 3u);
  const RequestKey waits = h.Arrive(700, 4);
  EXPECT_EQ(h.State(waits), "queued");
  h.Advance(absl::Seconds(1));
  EXPECT_DOUBLE_EQ(h.Facts().decode_queue_seconds, 1);
}

TEST(RouterCoreAdmission, PairsOnlyEqualWeightsAndLayout) {
  CoreHarness h;
  WorkerSpec other = kDecodeWorker;
  other.layout = 2;
  WorkerSpec other_prefill = kPrefillWorker;
  other_prefill.layout = 2;
  h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, other);
  const RequestKey key = h.Arrive();
  EXPECT_EQ(h.State(key), "queued");
  h.Up(3, other_prefill);
  EXPECT_EQ(h.State(key), "booking");
  h.Reserved(d);
  EXPECT_EQ(h.Sent<wire::Run>(WorkerId{3}).size(), 1u);
}

TEST(RouterCoreAdmission, ContinuesInTheSameClassWhileOneIsLeft) {
  CoreHarness h;
  WorkerSpec other = kDecodeWorker;
  other.decode_class = 2;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const WorkerId foreign = h.Up(3, other);
  const RequestKey key = h.Arrive(300, 6);
  h.ToDecoding(p, d);
  h.Tokens(d, 0, 301, 2);
  h.Down(d);
  h.Advance(absl::Seconds(1));
  EXPECT_TRUE(h.Sent<wire::Reserve>(foreign).empty());
  const WorkerId same = h.Up(2, kDecodeWorker);  // restarted within the grace
  EXPECT_EQ(h.Sent<wire::Reserve>(same).size(), 2u);
  h.ToDecoding(p, same);
  h.ToEnd(same);
  EXPECT_EQ(h.Log(key).num_inexact, 0);
  h.ExpectTokens(key, 0, 6);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, ContinuesInexactlyOnceNobodyOfTheClassIsLeft) {
  CoreHarness h;
  WorkerSpec other = kDecodeWorker;
  other.decode_class = 2;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const WorkerId foreign = h.Up(3, other);
  const RequestKey key = h.Arrive(300, 6);
  h.ToDecoding(p, d);
  h.Tokens(d, 0, 301, 2);
  h.Down(d);
  h.Advance(absl::Seconds(4));
  EXPECT_EQ(h.Last<wire::Reserve>(foreign).sequences[0].received.size(), 3u);
  EXPECT_EQ(h.Log(key).num_inexact, 1);
  h.Down(foreign);
  h.Advance(absl::Seconds(1));
  const WorkerId again = h.Up(3, other);
  h.ToDecoding(p, again);
  h.ToEnd(again);
  EXPECT_EQ(h.Log(key).num_inexact, 1);
  EXPECT_EQ(h.Facts().inexact_continuations, 1u);
  h.ExpectTokens(key, 0, 6);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, PrefillsOnTheDecodeWorkerWhenNoOtherIsReady) {
  CoreHarness h;
  const WorkerId mixed = h.Up(1, kMixedWorker);
  const RequestKey key = h.Arrive(300, 4);
  h.Reserved(mixed);
  EXPECT_EQ(h.Last<wire::Run>(mixed).landing.kv_address, "kv-1");
  EXPECT_EQ(h.Facts().prefill_on_decode, 1u);
  h.FirstToken(mixed);
  h.Landed(mixed);
  h.ToEnd(mixed);
  h.ExpectTokens(key, 0, 4);
  EXPECT_EQ(h.Sent<wire::Cancel>(mixed).size(), 1u);  // one worker, one Cancel
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, ALandingWhosePrefillDiedIsFilledByItsOwnWorker) {
  CoreHarness h;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId mixed = h.Up(2, kMixedWorker);
  const RequestKey key = h.Arrive(300, 4);
  h.Reserved(mixed);
  EXPECT_EQ(h.Sent<wire::Run>(mixed).size(), 0u);
  h.Down(p);
  h.Retargeted(mixed);
  EXPECT_EQ(h.Last<wire::Run>(mixed).attempt, 2u);
  h.FirstToken(mixed);
  h.Landed(mixed);
  h.ToEnd(mixed);
  h.ExpectTokens(key, 0, 4);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, ALandingWithoutItsPrefillPoolGivesWayToAnotherPair) {
  CoreHarness h;
  WorkerSpec other_prefill = kPrefillWorker;
  WorkerSpec other_decode = kDecodeWorker;
  other_prefill.weights = other_decode.weights = 2;
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  const WorkerId p2 = h.Up(3, other_prefill);
  const WorkerId d2 = h.Up(4, other_decode);
  const RequestKey key = h.Arrive(300, 4);
  h.Reserved(d);
  h.Down(p);
  h.Retargeted(d);
  EXPECT_EQ(h.Sent<wire::Cancel>(d).size(), 1u);
  EXPECT_EQ(h.Sent<wire::Reserve>(d2).size(), 1u);
  h.ToDecoding(p2, d2);
  h.ToEnd(d2);
  h.ExpectTokens(key, 0, 4);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, GoesBackToTheOnlyPairThoughItFailedBefore) {
  CoreHarness h;
  WorkerSpec lonely = kPrefillWorker;
  lonely.weights = 2;  // pairs with nobody
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId d = h.Up(2, kDecodeWorker);
  h.Up(3, lonely);
  const RequestKey key = h.Arrive(300, 4);
  h.Reserved(d);
  h.FailTransfer(p, absl::StatusCode::kInternal);
  h.Retargeted(d);
  EXPECT_EQ(h.Sent<wire::Reserve>(d).size(), 2u);
  h.ToDecoding(p, d);
  h.ToEnd(d);
  h.ExpectTokens(key, 0, 4);
  h.ExpectQuiet();
}

TEST(RouterCoreAdmission, AShortPromptMaySkipThePrefillWorkerIfConfigured) {
  PlanConfig config;
  config.prefill_on_decode_max_tokens = 64;
  CoreHarness h(config);
  const WorkerId p = h.Up(1, kPrefillWorker);
  const WorkerId mixed = h.Up(2, kMixedWorker);
  h.Arrive(64);
  h.Reserved(mixed);
  EXPECT_EQ(h.Sent<wire::Run>(mixed).size(), 1u);
  h.Arrive(65);
  h.Reserved(mixed);
  EXPECT_EQ(h.Sent<wire::Run>(p).size(), 1u);
  EXPECT_EQ(h.Facts().prefill_on_decode, 0u);
}

TEST(RouterCoreAdmission, FollowsTheCacheToThePrefillWorkerThatHasThePrefix) {
  CoreHarness h;
  h.Up(1, kPrefillWorker);
  const WorkerId warm = h.Up(2, kPrefillWorker);
  const WorkerId d = h.Up(3, kDecodeWorker);
  const GenerateRequest request = h.MakeRequest(1'000, 4);
  const auto& hello = h.core().FindWorker(warm)->hello;
  wire::CacheEvents part;
  part.is_snapshot = part.is_last = true;
  part.added = PromptPageNames(RootName(hello.weights, hello.layout, ""), hello.prompt_class,
                               *request.prompt);
  wire::WorkerMessage message;
  message.cache_events.push_back(part);
  h.Say(warm, message);
  h.Arrive(request);
  h.Reserved(d);
  EXPECT_EQ(h.Sent<wire::Run>(warm).size(), 1u);
  EXPECT_EQ(h.core().FindWorker(warm)->open_tokens, 1'000u - 3 * 256);
}

}  // namespace
}  // namespace baton::router
