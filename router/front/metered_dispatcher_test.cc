#include "router/front/metered_dispatcher.h"

#include <gtest/gtest.h>

#include "router/http/api_keys.h"
#include "router/openai/api_fakes.h"

namespace baton::router {
namespace {

GenerateRequest RequestOf(std::shared_ptr<KeyAccount> account) {
  GenerateRequest request;
  request.prompt = std::make_shared<const std::vector<int32_t>>(10, 5);
  request.account = std::move(account);
  return request;
}

TokensEmitted Tokens(size_t count) {
  TokensEmitted event;
  event.tokens.resize(count);
  return event;
}

TEST(MeteredDispatcher, ChargesThePromptOnceQueuedAndTokensAsTheyCome) {
  ManualClock clock;
  const auto account = std::make_shared<KeyAccount>(ApiKeySpec{.name = "a"}, clock);
  FakeDispatcher inner;
  MeteredDispatcher metered(inner);
  size_t heard = 0;
  metered.Submit(RequestOf(account),
                 [&](const std::vector<RequestEvent>& events) { heard += events.size(); });
  EXPECT_EQ(account->use().tokens, 0u);
  const RequestSink sink = inner.submitted.at(0).sink;
  sink({RequestAccepted{}, Tokens(1)});
  EXPECT_EQ(account->use().tokens, 11u);
  sink({Tokens(2), Tokens(3), ChoiceFinished{}, RequestEnded{}});
  EXPECT_EQ(account->use().tokens, 16u);
  EXPECT_EQ(heard, 6u);
}

TEST(MeteredDispatcher, ARefusedRequestCostsNothing) {
  ManualClock clock;
  const auto account = std::make_shared<KeyAccount>(ApiKeySpec{.name = "a"}, clock);
  FakeDispatcher inner;
  MeteredDispatcher metered(inner);
  metered.Submit(RequestOf(account), [](const std::vector<RequestEvent>&) {});
  inner.submitted.at(0).sink({RequestEnded{}});
  EXPECT_EQ(account->use().tokens, 0u);
}

// However many come at once: what they may come to is taken before any of it exists.
TEST(MeteredDispatcher, AKeysTokensHoldForRequestsAtOnce) {
  ManualClock clock;
  const auto account =
      std::make_shared<KeyAccount>(ApiKeySpec{.name = "a", .tokens_per_minute = 100}, clock);
  FakeDispatcher inner;
  MeteredDispatcher metered(inner);
  std::vector<RequestEvent> heard;
  const auto submit = [&](int64_t max_tokens) {
    GenerateRequest request = RequestOf(account);
    request.finish.max_tokens = max_tokens;
    request.num_choices = 2;
    return metered.Submit(std::move(request), [&](std::vector<RequestEvent> events) {
      heard.insert(heard.end(), events.begin(), events.end());
    });
  };
  for (int i = 0; i < 8; ++i) submit(20);  // each up to 10 + 2 * 20
  ASSERT_EQ(inner.submitted.size(), 2u);
  ASSERT_EQ(heard.size(), 6u);
  const auto& refused = std::get<RequestEnded>(heard[0]);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(refused.status.GetPayload(kKeyLimitPayload));
  EXPECT_GT(refused.retry_after, absl::ZeroDuration());
  metered.Cancel(submit(20), std::nullopt, "gone");
  EXPECT_TRUE(inner.cancelled.empty());  // it was never there
  for (const auto& submitted : inner.submitted)
    submitted.sink({RequestAccepted{}, Tokens(5), RequestEnded{}});
  EXPECT_EQ(account->use().tokens, 30u);
  inner.submitted.clear();
  submit(20);  // what was not used is back
  EXPECT_EQ(inner.submitted.size(), 1u);
  inner.submitted.clear();  // and when nobody says how it ended
  submit(1);
  submit(1);
  submit(1);
  EXPECT_EQ(inner.submitted.size(), 3u);
}

// Not all that the context has room for, which would be the key's whole minute.
TEST(MeteredDispatcher, ReservesAnUsualAnswerWhereNoLimitIsGiven) {
  ManualClock clock;
  const auto account =
      std::make_shared<KeyAccount>(ApiKeySpec{.name = "a", .tokens_per_minute = 9000}, clock);
  FakeDispatcher inner;
  MeteredDispatcher metered(inner);
  int num_refused = 0;
  const auto submit = [&](int64_t max_tokens) {
    GenerateRequest request = RequestOf(account);
    request.is_length_given = false;
    request.finish.max_tokens = max_tokens;
    metered.Submit(std::move(request), [&](const std::vector<RequestEvent>& events) {
      num_refused += events.size() == 1;
    });
  };
  submit(1'000'000);
  submit(1'000'000);  // 2 * (10 + 4096) are taken
  submit(100);        // what the context has room for is less: 110
  EXPECT_EQ(inner.submitted.size(), 3u);
  // A longer answer is charged as it comes, and what it was not is back at its end.
  inner.submitted.at(0).sink({RequestAccepted{}, Tokens(5000)});
  EXPECT_EQ(account->use().tokens, 5010u);
  submit(1);
  EXPECT_EQ(inner.submitted.size(), 3u);
  EXPECT_EQ(num_refused, 1);
  inner.submitted.at(1).sink({RequestAccepted{}, Tokens(10), RequestEnded{}});
  submit(1);
  EXPECT_EQ(inner.submitted.size(), 4u);
}

TEST(MeteredDispatcher, WithoutAnAccountPassesOn) {
  FakeDispatcher inner;
  MeteredDispatcher metered(inner);
  bool is_heard = false;
  const RequestKey key = metered.Submit(RequestOf(nullptr),
                                        [&](const std::vector<RequestEvent>&) { is_heard = true; });
  inner.submitted.at(0).sink({RequestAccepted{}});
  EXPECT_TRUE(is_heard);
  metered.Cancel(key, 0, "enough");
  EXPECT_EQ(inner.cancelled.size(), 1u);
  EXPECT_EQ(metered.View(), inner.view);
}

}  // namespace
}  // namespace baton::router
