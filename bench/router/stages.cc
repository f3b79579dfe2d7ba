#include "bench/router/stages.h"

#include <algorithm>
#include <ctime>
#include <memory>

#include "common/check.h"
#include "router/openai/api_setup.h"
#include "router/text/run_cache.h"
#include "router/text/test_data.h"

namespace baton::bench {
namespace {

using router::RealTokenizer;

double ThreadSeconds() {
  timespec time = {};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Adds the time since the last call to `stage`.
class Lap {
 public:
  void To(double& stage) {
    const double now = ThreadSeconds();
    stage += now - last_;
    last_ = now;
  }

 private:
  double last_ = ThreadSeconds();
};

}  // namespace

StageSeconds TimeStages(const std::vector<std::string>& bodies) {
  const router::Tokenizer& tokenizer = RealTokenizer();
  const router::ChatEncoder encoder = *router::ChatEncoder::Create(tokenizer);
  router::RunCache runs(256 << 20);
  StageSeconds out;
  double between = 0;
  Lap lap;
  for (const std::string& text : bodies) {
    lap.To(between);
    const auto body = router::JsonValue::Parse(text);
    CHECK(body.ok());
    lap.To(out.parse);
    const auto params = router::ParseGenerateParams(*body, router::CompletionKind::kChat, tokenizer,
                                                    /*eos=*/1);
    auto input = router::ParseChatInput(*body, {});
    CHECK(params.ok() && input.ok());
    lap.To(out.messages);
    const auto segments = encoder.Encode(input->messages, input->options);
    CHECK(segments.ok());
    lap.To(out.render);
    const auto ids = runs.EncodeSegments(tokenizer, *segments);
    lap.To(out.tokenize);
    out.prompt_tokens += ids.size();
  }
  return out;
}

double FormatMicroseconds(const std::vector<int32_t>& tokens) {
  router::ApiSetup setup(RealTokenizer(), [](std::string_view) { return absl::OkStatus(); });
  setup.config.max_context = 1 << 20;
  router::Api api(setup.Parts());
  auto exchange = std::make_shared<router::FakeExchange>();
  router::HttpRequest request;
  request.method = "POST";
  request.path = "/v1/chat/completions";
  request.headers = {{"content-type", "application/json"}};
  request.body = R"({"messages": [{"role": "user", "content": "hi"}], "stream": true,)"
                 R"("chat_template_kwargs": {"thinking": false}})";
  request.arrival = setup.clock.Now();
  api.Handle(std::move(request), exchange);
  const router::RequestSink& sink = setup.dispatcher.submitted.at(0).sink;
  sink({router::RequestAccepted{}});
  const double start = ThreadSeconds();
  for (const int32_t token : tokens) {
    router::TokensEmitted event;
    event.tokens.push_back({.token = token, .logprob = 0, .top = {}});
    sink({std::move(event)});
    exchange->RunTasks();
    if (exchange->body.size() > 1 << 20) exchange->body.clear();
  }
  return (ThreadSeconds() - start) * 1e6 / static_cast<double>(tokens.size());
}

TokenizeSpeed TimeTokenizer(const std::string& text, int rounds) {
  TokenizeSpeed best;
  for (int i = 0; i < rounds; ++i) {
    const double start = ThreadSeconds();
    best.num_ids = RealTokenizer().Encode(text, router::SpecialTokens::kRecognise).size();
    const double seconds = ThreadSeconds() - start;
    best.mb_per_s = std::max(best.mb_per_s, static_cast<double>(text.size()) / 1e6 / seconds);
  }
  return best;
}

}  // namespace baton::bench
