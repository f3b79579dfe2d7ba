#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_format.h"

#include "common/grammar.h"
#include "router/anthropic/messages_api.h"
#include "router/front/routes.h"
#include "router/openai/api_setup.h"
#include "router/text/test_data.h"
#include "tests/vectors/vector_file.h"

// api/validation.json: each request is handled as the router would, with workers that say "ok".
namespace baton::vectors {

using router::Api;
using router::FakeDispatcher;
using router::FakeExchange;
using router::MarkupIds;
using router::Tokenizer;

namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

router::ApiConfig ConfigOf(const JsonValue& file) {
  router::ApiConfig config;
  config.max_context = 4096;
  const JsonValue* meta = file.Find("meta");
  const JsonValue* server = meta == nullptr ? nullptr : meta->Find("server");
  if (server == nullptr) return config;
  if (const std::string name = TextOf(*server, "served_model_name"); !name.empty())
    config.served_model_names = {name};
  if (const JsonValue* limit = server->Find("max_context"))
    config.max_context = static_cast<int>(limit->AsInt64().value_or(config.max_context));
  config.chat.is_thinking = FlagOf(*server, "default_thinking", true);
  return config;
}

// The router's surfaces behind its table of routes.
class Server {
 public:
  Server(const JsonValue& file, const Tokenizer& tokenizer)
      : setup_(
            tokenizer,
            [this](std::string_view grammar) { return CheckGrammar(vocabulary_, grammar); },
            ConfigOf(file)),
        api_(setup_.Parts()),
        messages_({.config = setup_.config, .chats = api_, .cpu_pool = setup_.cpu_pool}) {
    const int32_t eos = setup_.markup.eos;
    setup_.dispatcher.on_submit = [&tokenizer, eos](FakeDispatcher::Submitted& request) {
      router::TokensEmitted tokens;
      for (const auto id : tokenizer.Encode("ok", router::SpecialTokens::kPlain))
        tokens.tokens.push_back({.token = id, .logprob = 0, .top = {}});
      const router::ChoiceFinished end = {
          .choice = 0, .reason = FinishReason::kStop, .stop_token = eos};
      request.sink({router::RequestAccepted{}, tokens, end, router::RequestEnded{}});
    };
  }

  std::shared_ptr<FakeExchange> Handle(router::HttpRequest request) {
    const router::FoundRoute found = router::FindRoute(request.method, request.path);
    const bool is_messages =
        found.route != nullptr && found.route->surface == router::Surface::kAnthropic;
    router::RequestHandler& handler =
        is_messages ? static_cast<router::RequestHandler&>(messages_) : api_;
    auto exchange = std::make_shared<FakeExchange>();
    handler.Handle(std::move(request), exchange);
    exchange->RunTasksUntilOver(kPatience);
    return exchange;
  }

 private:
  const Vocabulary vocabulary_ = *Vocabulary::FromTokenizerJson(router::RealTokenizerJson());
  router::ApiSetup setup_;
  Api api_;
  router::MessagesApi messages_;
};

router::HttpRequest RequestOf(const JsonValue& item) {
  router::HttpRequest request;
  request.method = TextOf(item, "method");
  request.path = TextOf(item, "path");
  request.headers = {{"content-type", "application/json"}};
  if (const JsonValue* headers = item.Find("headers")) {
    for (const auto& [name, value] : headers->members()) {
      std::string key = name;
      std::transform(key.begin(), key.end(), key.begin(),
                     [](unsigned char c) { return static_cast<char>(tolower(c)); });
      request.headers[key] = value.text();
    }
  }
  const JsonValue* raw = item.Find("raw");
  const JsonValue* body = item.Find("body");
  if (raw != nullptr) request.body = raw->text();
  if (raw == nullptr && body != nullptr) request.body = body->Dump();
  return request;
}

Failure CheckAnswer(const JsonValue& item, const FakeExchange& answer) {
  const int64_t want = item.Find("status") ? item.Find("status")->AsInt64().value_or(0) : 0;
  if (answer.status != want)
    return absl::StrFormat("status %d, want %d: %s", answer.status, want,
                           answer.body.substr(0, 200));
  if (want == 200) return std::nullopt;
  const auto body = JsonValue::Parse(answer.body);
  const JsonValue* error = body.ok() ? body->Find("error") : nullptr;
  if (error == nullptr) return "the body has no error: " + answer.body.substr(0, 200);
  const std::string message = TextOf(*error, "message"), part = TextOf(item, "message_contains");
  if (message.find(part) == std::string::npos)
    return absl::StrFormat("message \"%s\" has no \"%s\"", message, part);
  const JsonValue* param = item.Find("param");
  const bool is_anthropic = TextOf(item, "path").rfind("/v1/messages", 0) == 0;
  if (param == nullptr || is_anthropic) return std::nullopt;
  return Compare("param", TextOf(*error, "param"), param->text());
}

}  // namespace

FileResult CheckValidation(const JsonValue& file, const Tokenizer& tokenizer) {
  FileResult result;
  const auto markup = MarkupIds::Find(tokenizer);
  const auto encoder = router::ChatEncoder::Create(tokenizer);
  if (!markup.ok() || !encoder.ok()) {
    result.Count("tokenizer", std::string(encoder.status().message()));
    return result;
  }
  Server server(file, tokenizer);
  return CheckCases(file, [&](const JsonValue& item) {
    return CheckAnswer(item, *server.Handle(RequestOf(item)));
  });
}

}  // namespace baton::vectors
