#include "router/front/front_door.h"

#include <gtest/gtest.h>

#include "router/openai/api_fakes.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

// Says its name and keeps what it was given.
class NamedHandler final : public RequestHandler {
 public:
  explicit NamedHandler(std::string name) : name_(std::move(name)) {}
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override {
    last = request;
    exchange->Respond(200, {}, name_ + " " + request.path);
  }
  HttpRequest last;

 private:
  const std::string name_;
};

class FrontDoorTest : public testing::Test {
 protected:
  FrontDoorTest() { Make({}); }

  void Make(std::vector<ApiKeySpec> keys, std::vector<std::string> origins = {},
            bool serves_admin = false) {
    door_.reset();
    keys_ = std::make_unique<ApiKeys>(std::move(keys), clock_);
    door_ = std::make_unique<FrontDoor>(FrontDoorParts{.keys = *keys_,
                                                       .openai = openai_,
                                                       .anthropic = anthropic_,
                                                       .operators = operators_,
                                                       .cors_origins = std::move(origins),
                                                       .serves_admin = serves_admin});
  }
  static ApiKeySpec Key(const std::string& name, const std::string& key) {
    return {.name = name, .hash = Sha256Of(key)};
  }
  std::shared_ptr<FakeExchange> Send(const std::string& method, const std::string& path,
                                     std::map<std::string, std::string> headers = {}) {
    HttpRequest request;
    request.method = method;
    request.path = path;
    request.headers = std::move(headers);
    auto exchange = std::make_shared<FakeExchange>();
    if (door_->AdmitHead(request, *exchange)) door_->Handle(std::move(request), exchange);
    return exchange;
  }

  ManualClock clock_;
  NamedHandler openai_{"openai"}, anthropic_{"anthropic"}, operators_{"operators"};
  std::unique_ptr<ApiKeys> keys_;
  std::unique_ptr<FrontDoor> door_;
};

TEST_F(FrontDoorTest, EachSurfaceGetsItsOwn) {
  EXPECT_EQ(Send("POST", "/v1/chat/completions")->body, "openai /v1/chat/completions");
  EXPECT_EQ(Send("POST", "/v1/messages")->body, "anthropic /v1/messages");
  EXPECT_EQ(Send("GET", "/openapi.json")->body, "operators /openapi.json");
  EXPECT_EQ(Send("HEAD", "/health")->body, "openai /health");
  EXPECT_EQ(Send("GET", "/v1/models/a/b")->body, "openai /v1/models/a/b");
  EXPECT_EQ(Send("GET", "/v1/models", {{"anthropic-version", "2023-06-01"}})->body,
            "anthropic /v1/models");
}

TEST_F(FrontDoorTest, UnknownPathsAndMethodsAreNamed) {
  const auto missing = Send("GET", "/nothing", {{"x-request-id", "r1"}});
  EXPECT_EQ(missing->status, 404);
  EXPECT_EQ(missing->Header("x-request-id"), "r1");
  EXPECT_EQ(missing->body,
            R"({"error":{"message":"Not Found","type":"NotFoundError","param":null,"code":404}})");
  EXPECT_EQ(Send("GET", "/v1/models/")->status, 404);
  const auto wrong = Send("GET", "/v1/chat/completions");
  EXPECT_EQ(wrong->status, 405);
  EXPECT_EQ(wrong->Header("Allow"), "POST");
  EXPECT_EQ(Send("DELETE", "/health")->Header("Allow"), "GET, HEAD");
  EXPECT_EQ(Send("OPTIONS", "/health")->status, 405);  // no CORS
  EXPECT_NE(Send("POST", "/v1/embeddings")->body.find("The model does not support Embeddings API"),
            std::string::npos);
  const auto theirs = Send("GET", "/v1/messages");
  EXPECT_EQ(theirs->status, 405);
  EXPECT_EQ(theirs->body.rfind(R"({"type":"error")", 0), 0u) << theirs->body;
}

TEST_F(FrontDoorTest, RefusalsHaveTheFormOfTheirSurface) {
  const auto theirs = Send("GET", "/v1/messages", {{"x-request-id", "r1"}});
  EXPECT_EQ(theirs->Header("request-id"), "r1");
  const auto models =
      Send("POST", "/v1/models", {{"x-request-id", "r2"}, {"anthropic-version", "2023-06-01"}});
  EXPECT_EQ(models->body.rfind(R"({"type":"error")", 0), 0u) << models->body;
  EXPECT_EQ(models->Header("request-id"), "r2");
  EXPECT_EQ(Send("POST", "/v1/models")->Header("request-id"), "");

  FakeExchange large, full, open_ai;
  door_->Refuse(
      {.status = 413, .message = "m", .field = "body", .request_id = "r3", .path = "/v1/messages"},
      large);
  EXPECT_EQ(large.status, 413);
  EXPECT_EQ(large.Header("request-id"), "r3");
  EXPECT_NE(large.body.find(R"("type":"request_too_large")"), std::string::npos) << large.body;
  door_->Refuse(
      {.status = 429, .message = "m", .field = "body", .request_id = {}, .path = "/v1/messages"},
      full);
  EXPECT_EQ(full.status, 529);
  EXPECT_EQ(full.Header("Retry-After"), "1");
  door_->Refuse({.status = 429, .message = "m", .field = "body", .request_id = {}, .path = "/x"},
                open_ai);
  EXPECT_EQ(open_ai.status, 429);
  EXPECT_NE(open_ai.body.find(R"("type":"TooManyRequestsError","param":"body")"), std::string::npos)
      << open_ai.body;
}

TEST_F(FrontDoorTest, NamesInPathsMayBeEncoded) {
  EXPECT_EQ(Send("GET", "/v1/models/a%2Fb%c3%a9%20c")->body, "openai /v1/models/a/bé c");
  EXPECT_EQ(Send("GET", "/v1/models/a%0d%0Ab%")->body, "openai /v1/models/a%0d%0Ab%");
  EXPECT_EQ(Send("GET", "/v1/models/%ff%2f")->body, "openai /v1/models/%ff%2f");  // no UTF-8
  EXPECT_EQ(Send("GET", "/v1/models/%zz%2")->body, "openai /v1/models/%zz%2");
  const auto raw = Send("GET", "/v1/models/\xff");
  EXPECT_EQ(raw->status, 400);
  EXPECT_EQ(raw->body.find('\xff'), std::string::npos);
}

TEST_F(FrontDoorTest, GuardedPathsWantAKey) {
  Make({Key("alice", "sk-alice"), Key("bob", "sk-bob")});
  for (const char* path :
       {"/", "/health", "/ping", "/ready", "/metrics", "/version", "/openapi.json"})
    EXPECT_EQ(Send("GET", path)->status, 200) << path;
  for (const char* path : {"/v1/models", "/load", "/nothing", "/health_generate", "/server_info"}) {
    EXPECT_EQ(Send("GET", path)->status, 401) << path;
  }
  const auto refused = Send("POST", "/v1/chat/completions", {{"authorization", "Bearer sk-eve"}});
  EXPECT_EQ(refused->status, 401);
  EXPECT_EQ(refused->Header("WWW-Authenticate"), "Bearer");
  EXPECT_EQ(refused->body,
            R"({"error":{"message":"no valid API key was given","type":"authentication_error",)"
            R"("param":null,"code":401}})");
  const auto theirs = Send("POST", "/v1/messages");
  EXPECT_EQ(theirs->status, 401);
  EXPECT_NE(theirs->body.find(R"("type":"authentication_error")"), std::string::npos);
  EXPECT_EQ(door_->num_unauthorized(), 7u);
  EXPECT_EQ(Send("OPTIONS", "/v1/messages")->status, 405);

  EXPECT_EQ(Send("POST", "/v1/messages", {{"x-api-key", "sk-bob"}})->status, 200);
  EXPECT_EQ(anthropic_.last.account->spec().name, "bob");
  EXPECT_EQ(anthropic_.last.headers.count("x-api-key"), 0u);  // goes no further
  EXPECT_EQ(Send("GET", "/v1/models", {{"authorization", "bearer  sk-alice"}})->status, 200);
  EXPECT_EQ(openai_.last.account->spec().name, "alice");
  EXPECT_EQ(openai_.last.headers.count("authorization"), 0u);
  for (const char* header : {"sk-alice", "Basic sk-alice", "Bearer", "Bearer ", "Bearer sk-alic"})
    EXPECT_EQ((Send("GET", "/v1/models", {{"authorization", header}})->status), 401) << header;
}

// A body needs a key, so that nobody else can make the router hold one.
TEST_F(FrontDoorTest, BodiesAreReadForKeysOnly) {
  Make({Key("alice", "sk-alice")});
  HttpRequest head;
  head.method = "POST";
  head.path = "/v1/chat/completions";
  head.headers = {{"content-length", "1000"}};
  FakeExchange exchange;
  EXPECT_FALSE(door_->AdmitHead(head, exchange));
  EXPECT_EQ(exchange.status, 401);
  for (const char* name : {"content-length", "transfer-encoding"})
    EXPECT_EQ(Send("GET", "/health", {{name, "10"}})->status, 401) << name;
  EXPECT_EQ(Send("GET", "/health", {{"content-length", "0"}})->status, 200);
  EXPECT_EQ(Send("GET", "/health", {{"content-length", "9"}, {"x-api-key", "sk-alice"}})->status,
            200);
}

TEST_F(FrontDoorTest, AKeysLimitsAreItsOwn) {
  ApiKeySpec limited = Key("alice", "sk-alice");
  limited.requests_per_minute = 1;
  Make({limited, Key("bob", "sk-bob")});
  EXPECT_EQ(Send("POST", "/v1/messages", {{"x-api-key", "sk-alice"}})->status, 200);
  const auto refused = Send("POST", "/v1/messages", {{"x-api-key", "sk-alice"}});
  EXPECT_EQ(refused->status, 429);  // not 529: the server has room
  EXPECT_EQ(refused->Header("Retry-After"), "60");
  EXPECT_NE(refused->body.find(R"("type":"rate_limit_error")"), std::string::npos);
  EXPECT_EQ(Send("POST", "/v1/chat/completions", {{"x-api-key", "sk-alice"}})->status, 429);
  EXPECT_EQ(Send("POST", "/v1/messages", {{"x-api-key", "sk-bob"}})->status, 200);
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Send("POST", "/v1/messages", {{"x-api-key", "sk-alice"}})->status, 200);
  EXPECT_EQ(keys_->accounts()[0]->use().refusals, 2u);
}

TEST_F(FrontDoorTest, OwedTokensHoldUpGenerationOnly) {
  ApiKeySpec limited = Key("alice", "sk-alice");
  limited.tokens_per_minute = 100;
  Make({limited});
  int64_t reserved = 0;
  keys_->accounts()[0]->Charge(150, reserved);
  EXPECT_EQ(Send("POST", "/v1/completions", {{"x-api-key", "sk-alice"}})->status, 429);
  EXPECT_EQ(Send("GET", "/v1/models", {{"x-api-key", "sk-alice"}})->status, 200);
}

TEST_F(FrontDoorTest, OperatorsPathsAreHiddenFromOthers) {
  EXPECT_EQ(Send("GET", "/server_info")->status, 404);
  EXPECT_EQ(Send("POST", "/server_info")->status, 404);
  ApiKeySpec admin = Key("ops", "sk-ops");
  admin.is_admin = true;
  Make({admin, Key("bob", "sk-bob")});
  EXPECT_EQ(Send("GET", "/server_info", {{"x-api-key", "sk-bob"}})->status, 404);
  EXPECT_EQ(Send("GET", "/server_info", {{"x-api-key", "sk-ops"}})->status, 200);
  Make({}, {}, /*serves_admin=*/true);
  EXPECT_EQ(Send("GET", "/server_info")->status, 200);
  EXPECT_EQ(Send("POST", "/server_info")->status, 405);
  EXPECT_EQ(Send("POST", "/flush_cache")->body, "operators /flush_cache");
  EXPECT_EQ(Send("GET", "/flush_cache")->status, 405);  // it changes what the workers hold
  EXPECT_EQ(Send("GET", "/flush_cache")->Header("Allow"), "POST");
}

TEST_F(FrontDoorTest, PagesOfKnownOriginsMayCall) {
  constexpr char kPage[] = "https://chat.example";
  Make({Key("alice", "sk-alice")}, {kPage});
  const auto asked =
      Send("OPTIONS", "/v1/messages",
           {{"origin", kPage}, {"access-control-request-headers", "x-api-key, x-stainless-os"}});
  EXPECT_EQ(asked->status, 204);
  EXPECT_EQ(asked->Header("Access-Control-Allow-Origin"), kPage);
  EXPECT_EQ(asked->Header("Access-Control-Allow-Methods"), "GET, POST, OPTIONS");
  EXPECT_EQ(asked->Header("Access-Control-Allow-Headers"), "x-api-key, x-stainless-os");
  EXPECT_EQ(asked->Header("Access-Control-Max-Age"), "600");
  EXPECT_EQ(asked->Header("Vary"), "Origin");
  const auto refused = Send("POST", "/v1/messages", {{"origin", kPage}});
  EXPECT_EQ(refused->status, 401);
  EXPECT_EQ(refused->Header("Access-Control-Allow-Origin"), kPage);
  EXPECT_NE(refused->Header("Access-Control-Expose-Headers").find("x-request-id"),
            std::string::npos);
  EXPECT_EQ(Send("GET", "/health", {{"origin", kPage}})->Header("Access-Control-Allow-Origin"),
            kPage);
  for (const char* other : {"https://chat.example.evil", "null", ""}) {
    const auto answer = Send("OPTIONS", "/v1/messages", {{"origin", other}});
    EXPECT_EQ(answer->Header("Access-Control-Allow-Origin"), "") << other;
    EXPECT_EQ(answer->Header("Access-Control-Allow-Methods"), "") << other;
    EXPECT_EQ(answer->Header("Vary"), "Origin") << other;  // not to be cached for the page above
  }
  FakeExchange exchange;
  door_->Refuse({.status = 413,
                 .message = "m",
                 .field = "body",
                 .request_id = {},
                 .path = "/v1/messages",
                 .origin = kPage},
                exchange);
  EXPECT_NE(exchange.body.find(R"("type":"request_too_large")"), std::string::npos);
  EXPECT_EQ(exchange.Header("Access-Control-Allow-Origin"), kPage);
}

TEST_F(FrontDoorTest, AStarAllowsEveryOrigin) {
  Make({}, {"*"});
  const auto asked = Send("OPTIONS", "/v1/models",
                          {{"origin", "https://a"}, {"access-control-request-headers", "a\"b"}});
  EXPECT_EQ(asked->Header("Access-Control-Allow-Origin"), "*");
  EXPECT_NE(asked->Header("Access-Control-Allow-Headers").find("authorization"), std::string::npos);
  EXPECT_EQ(asked->Header("Vary"), "");
}

}  // namespace
}  // namespace baton::router
