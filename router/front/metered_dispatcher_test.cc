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
