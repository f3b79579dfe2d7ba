#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/demo_vocabulary.h"
#include "common/grammar.h"
#include "common/log.h"
#include "router/anthropic/messages_api.h"
#include "router/front/front_door.h"
#include "router/front/openapi.h"
#include "router/front/operator_api.h"
#include "router/openai/api_setup.h"

// Any bytes as a request's path and body, behind the door and on every surface: refused with a 4xx,
// or answered by a planner that says what the body says. Every answer is complete and well formed.
namespace baton::router {
namespace {

constexpr size_t kMaxTokens = 200;  // of an answer
constexpr size_t kMaxEvents = 64;   // choices that the planner speaks for
constexpr absl::Duration kPatience = absl::Seconds(20);

// The first byte chooses a route, the second one how the answer goes; the rest is the body.
constexpr uint8_t kFails = 1, kClientLeaves = 2;

// Those that read what a client says.
std::vector<Route> ReadingRoutes() {
  std::vector<Route> out;
  for (const Route& route : Routes())
    if (!route.request.empty() || route.path.ends_with('}') || route.path == "/abort_request")
      out.push_back(route);
  return out;
}

class Server {
 public:
  Server() { InitLog("api_fuzz", LogLevel::kError); }

  void Serve(const Route& route, uint8_t way, std::string_view body) {
    dispatcher_.submitted.clear();
    dispatcher_.cancelled.clear();
    dispatcher_.commands.clear();
    HttpRequest request;
    request.method = route.method;
    request.path = route.path;
    if (const size_t id = request.path.find('{'); id != std::string::npos)
      request.path = request.path.substr(0, id) + std::string(body.substr(0, 100));
    request.headers = {{"content-type", "application/json"},
                       {"content-length", std::to_string(body.size())}};
    request.body = body;
    request.arrival = setup_.clock.Now();
    auto exchange = std::make_shared<FakeExchange>();
    if (door_.AdmitHead(request, *exchange)) door_.Handle(std::move(request), exchange);
    Play(way, body, *exchange);
    Settle(*exchange);
    CheckAnswer(*exchange);
  }

 private:
  // The planner's part, until the answer is over.
  void Play(uint8_t way, std::string_view body, FakeExchange& exchange) {
    size_t played = 0;
    while (!exchange.is_over()) {
      if (played == dispatcher_.submitted.size()) {
        CHECK(exchange.RunTasksFor(kPatience));  // a grammar is being compiled, an answer written
        continue;
      }
      exchange.RunTimers();
      const FakeDispatcher::Submitted& submitted = dispatcher_.submitted[played];
      ++played;
      const auto count = static_cast<size_t>(submitted.request.num_choices);
      submitted.sink({RequestAccepted{}});
      for (size_t k = 0; k < std::min(count, kMaxEvents); ++k)
        submitted.sink(EventsOf(submitted.request, static_cast<int>(k), body));
      if ((way & 3) == kClientLeaves) exchange.Gone();
      if ((way & 3) == kFails || count > kMaxEvents) {
        submitted.sink({Ended(absl::UnavailableError("the worker is gone"))});
      } else {
        submitted.sink({Ended(absl::OkStatus())});
      }
      exchange.RunTasks();
    }
  }

  // What the CPU pool still does for a client that left.
  void Settle(FakeExchange& exchange) {
    std::promise<void> done;
    CHECK(setup_.cpu_pool.TryRun([&done] { done.set_value(); }));
    done.get_future().wait();
    exchange.RunTasks();
  }

  static RequestEnded Ended(absl::Status status) {
    return {.status = std::move(status), .retry_after = {}, .cached_tokens = 0, .times = {}};
  }

  // One choice's answer: the body's end, token by token in two steps.
  std::vector<RequestEvent> EventsOf(const GenerateRequest& request, int choice,
                                     std::string_view body) const {
    std::vector<RequestEvent> events;
    if (request.prompt_logprobs && choice == 0) events.emplace_back(Report(request));
    const std::string_view said = body.substr(body.size() - std::min(body.size(), kMaxTokens));
    std::vector<TokenRecord> records;
    for (const TokenId id : tokenizer_.Encode(said, SpecialTokens::kRecognise))
      records.push_back(Record(id, request.sampling.top_logprobs));
    const int64_t limit = std::max<int64_t>(request.finish.max_tokens, 1);
    if (static_cast<int64_t>(records.size()) > limit) records.resize(static_cast<size_t>(limit));
    const auto half = records.begin() + static_cast<std::ptrdiff_t>(records.size() / 2);
    const int64_t first = half - records.begin();
    events.emplace_back(TokensEmitted{choice, 0, {records.begin(), half}});
    events.emplace_back(TokensEmitted{choice, first, {half, records.end()}});
    events.emplace_back(ChoiceFinished{
        .choice = choice, .reason = FinishReason::kStop, .stop_token = setup_.markup.eos});
    return events;
  }

  static TokenRecord Record(TokenId id, int num_top) {
    TokenRecord record = {.token = id, .logprob = -0.5f, .top = {}};
    for (int i = 0; i < num_top; ++i) record.top.push_back({.token = id + i, .logprob = -0.5f});
    return record;
  }

  static PromptLogprobsEmitted Report(const GenerateRequest& request) {
    PromptLogprobsEmitted report;
    for (size_t i = 1; i < request.prompt->size(); ++i)
      report.tokens.push_back(
          Record((*request.prompt)[i], static_cast<int>(*request.prompt_logprobs)));
    return report;
  }

  static void CheckAnswer(const FakeExchange& exchange) {
    if (exchange.is_gone) return;
    const int status = exchange.status;
    CHECK((status >= 200 && status < 300) || (status >= 400 && status < 500) || status == 501 ||
          status == 503);
    if (exchange.is_stream) return CheckEvents(exchange.body);
    if (exchange.Header("Content-Type").starts_with("application/json") && !exchange.body.empty())
      CHECK(JsonValue::Parse(exchange.body).ok());
  }

  // Blocks of lines with an empty line behind each; every datum is JSON or the stream's end.
  static void CheckEvents(std::string_view stream) {
    CHECK(stream.empty() || stream.ends_with("\n\n"));
    for (size_t begin = 0; begin < stream.size();) {
      const size_t end = stream.find('\n', begin);
      const std::string_view line = stream.substr(begin, end - begin);
      begin = end + 1;
      if (!line.starts_with("data: ") || line == "data: [DONE]") {
        CHECK(line.empty() || line.starts_with("event: ") || line[0] == ':' || line[0] == 'd');
        continue;
      }
      CHECK(JsonValue::Parse(line.substr(6)).ok());
    }
  }

  const Tokenizer tokenizer_ = *Tokenizer::Parse(DemoTokenizerJson(), "demo");
  ApiSetup setup_{tokenizer_,
                  [](std::string_view grammar) { return CheckGrammar(DemoVocabulary(), grammar); }};
  FakeDispatcher& dispatcher_ = setup_.dispatcher;
  Api api_{setup_.Parts()};
  MessagesApi messages_{{.config = setup_.config, .chats = api_, .cpu_pool = setup_.cpu_pool}};
  OperatorApi operators_{{.config = setup_.config,
                          .tokenizer = tokenizer_,
                          .dispatcher = dispatcher_,
                          .openapi = OpenApiDocument("1")}};
  ApiKeys keys_{{}, setup_.clock};
  FrontDoor door_{{.keys = keys_,
                   .openai = api_,
                   .anthropic = messages_,
                   .operators = operators_,
                   .cors_origins = {},
                   .serves_admin = true}};
};

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static baton::router::Server server;
  if (size < 2) return 0;
  static const auto routes = baton::router::ReadingRoutes();
  server.Serve(routes[data[0] % routes.size()], data[1],
               {reinterpret_cast<const char*>(data) + 2, size - 2});
  return 0;
}
