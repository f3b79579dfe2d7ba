#pragma once

#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/grammar.h"
#include "router/openai/api_setup.h"
#include "router/text/test_data.h"

namespace baton::router {

inline const Vocabulary& RealVocabulary() {
  static const Vocabulary vocabulary = *Vocabulary::FromTokenizerJson(RealTokenizerJson());
  return vocabulary;
}

// The API with a planner that the test plays.
class ApiTest : public testing::Test {
 protected:
  ApiTest() { Configure({}); }

  void Configure(ClusterView view) {
    dispatcher_.view = std::make_shared<ClusterView>(std::move(view));
    api_ = std::make_unique<Api>(setup_.Parts());
  }

  std::shared_ptr<FakeExchange> Call(HttpRequest request) {
    auto exchange = std::make_shared<FakeExchange>();
    request.arrival = clock_.Now();
    const uint64_t known = grammars_.misses();
    api_->Handle(std::move(request), exchange);
    if (waits_for_verdicts_ && grammars_.misses() > known) exchange->RunTasksFor(absl::Seconds(20));
    exchange->RunTasks();
    return exchange;
  }
  std::shared_ptr<FakeExchange> Get(const std::string& path) {
    HttpRequest request;
    request.method = "GET";
    request.path = path;
    return Call(std::move(request));
  }
  static ClusterView ViewOf(int prefill_ready, int decode_ready, int max_context) {
    ClusterView view;
    view.prefill_ready = prefill_ready;
    view.decode_ready = decode_ready;
    view.max_context = max_context;
    return view;
  }
  static RequestEnded Ended(absl::Status status, absl::Duration retry_after = {},
                            int cached_tokens = 0) {
    return {.status = std::move(status),
            .retry_after = retry_after,
            .cached_tokens = cached_tokens,
            .times = {}};
  }
  std::shared_ptr<FakeExchange> Post(const std::string& path, const std::string& body,
                                     std::map<std::string, std::string> headers = {}) {
    headers.emplace("content-type", "application/json");
    HttpRequest request;
    request.method = "POST";
    request.path = path;
    request.headers = std::move(headers);
    request.body = body;
    return Call(std::move(request));
  }
  std::shared_ptr<FakeExchange> Chat(const std::string& members,
                                     std::map<std::string, std::string> headers = {}) {
    return Post("/v1/chat/completions",
                R"({"messages": [{"role": "user", "content": "hi"}], )"
                R"("chat_template_kwargs": {"thinking": false})" +
                    (members.empty() ? "" : ", " + members) + "}",
                std::move(headers));
  }

  // What the planner says about request `index`, in one batch.
  void Say(size_t index, std::vector<RequestEvent> events, FakeExchange& exchange) {
    dispatcher_.submitted.at(index).sink(std::move(events));
    exchange.RunTasks();
  }
  static TokensEmitted Tokens(const std::string& text, int choice = 0) {
    TokensEmitted event;
    event.choice = choice;
    for (const int32_t id : RealTokenizer().Encode(text, SpecialTokens::kRecognise))
      event.tokens.push_back({.token = id, .logprob = -0.5f, .top = {{id, -0.5f}}});
    return event;
  }
  ChoiceFinished Eos(int choice = 0) const {
    return {.choice = choice, .reason = FinishReason::kStop, .stop_token = markup_.eos};
  }
  static JsonValue Json(std::string_view text) {
    auto value = JsonValue::Parse(text);
    EXPECT_TRUE(value.ok()) << value.status() << text;
    return value.ok() ? *std::move(value) : JsonValue();
  }
  // The data of each event of a stream.
  static std::vector<std::string> Events(const std::string& body) {
    std::vector<std::string> out;
    for (size_t from = 0; from < body.size();) {
      const size_t end = body.find("\n\n", from);
      if (body.compare(from, 6, "data: ") == 0)
        out.push_back(body.substr(from + 6, end - from - 6));
      from = end + 2;
    }
    return out;
  }

  bool waits_for_verdicts_ = true;  // on grammars, before a call returns
  GrammarChecker::Check check_ = [](std::string_view grammar) {
    return CheckGrammar(RealVocabulary(), grammar);
  };
  ApiSetup setup_{RealTokenizer(), [this](std::string_view grammar) { return check_(grammar); }};
  ManualClock& clock_ = setup_.clock;
  ApiConfig& config_ = setup_.config;
  const MarkupIds& markup_ = setup_.markup;
  FakeDispatcher& dispatcher_ = setup_.dispatcher;
  CpuPool& cpu_pool_ = setup_.cpu_pool;
  GrammarChecker& grammars_ = setup_.grammars;
  std::unique_ptr<Api> api_;
};

inline const JsonValue& Member(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.Find(key);
  EXPECT_NE(value, nullptr) << key;
  static const JsonValue kNull;
  return value == nullptr ? kNull : *value;
}

}  // namespace baton::router
