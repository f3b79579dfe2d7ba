#include "router/front/operator_api.h"

#include <gtest/gtest.h>

#include "router/openai/api_fakes.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

class OperatorApiTest : public testing::Test {
 protected:
  OperatorApiTest() {
    config_.model_path = "models/flash";
    ClusterView view;
    view.in_flight = 3;
    view.queued = 1;
    view.workers.push_back(
        {.name = "p\"1", .address = "a:1", .state = "ready", .serves_prefill = true});
    view.workers.push_back(
        {.name = "d1", .address = "a:2", .state = "ready", .serves_decode = true, .running = 2});
    dispatcher_.view = std::make_shared<ClusterView>(std::move(view));
  }
  std::shared_ptr<FakeExchange> Get(const std::string& path) {
    HttpRequest request;
    request.method = "GET";
    request.path = path;
    auto exchange = std::make_shared<FakeExchange>();
    api_.Handle(std::move(request), exchange);
    return exchange;
  }
  std::shared_ptr<FakeExchange> Post(const std::string& path, const std::string& body = "") {
    HttpRequest request;
    request.method = "POST";
    request.path = path;
    if (!body.empty()) request.headers = {{"content-type", "application/json"}};
    request.body = body;
    auto exchange = std::make_shared<FakeExchange>();
    api_.Handle(std::move(request), exchange);
    return exchange;
  }
  static JsonValue Json(const std::string& text) {
    auto value = JsonValue::Parse(text);
    EXPECT_TRUE(value.ok()) << value.status() << text;
    return value.ok() ? *std::move(value) : JsonValue();
  }

  ApiConfig config_;
  FakeDispatcher dispatcher_;
  OperatorApi api_{{.config = config_,
                    .tokenizer = RealTokenizer(),
                    .dispatcher = dispatcher_,
                    .openapi = "{}"}};
};

TEST_F(OperatorApiTest, SaysWhatClientsOfOtherServersAskFor) {
  EXPECT_EQ(Get("/load")->body, R"({"server_load":3})");
  EXPECT_EQ(Get("/v1/loads")->body, R"({"server_load":3})");
  const JsonValue model = Json(Get("/get_model_info")->body);
  EXPECT_EQ(model.Find("model_path")->text(), "models/flash");
  EXPECT_TRUE(model.Find("is_generation")->boolean());
  EXPECT_EQ(Get("/model_info")->body, Get("/get_model_info")->body);
  const JsonValue server = Json(Get("/server_info")->body);
  EXPECT_EQ(server.Find("prefill")->items().at(0).Find("name")->text(), "p\"1");
  ASSERT_EQ(server.Find("decode")->items().size(), 1u);
  const JsonValue& state = server.Find("decode")->items()[0].Find("internal_states")->items().at(0);
  EXPECT_EQ(state.Find("num_running_reqs")->text(), "2");
  EXPECT_EQ(Get("/openapi.json")->body, "{}");
}

TEST_F(OperatorApiTest, TheProbeIsOneTokenThroughTheCluster) {
  const auto fine = Get("/health_generate");
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  EXPECT_EQ(dispatcher_.submitted[0].request.finish.max_tokens, 1);
  EXPECT_FALSE(dispatcher_.submitted[0].request.prompt->empty());
  dispatcher_.submitted[0].sink({RequestAccepted{}});
  fine->RunTasks();
  EXPECT_FALSE(fine->is_ended);
  dispatcher_.submitted[0].sink({TokensEmitted{}, ChoiceFinished{}, RequestEnded{}});
  fine->RunTasks();
  EXPECT_EQ(fine->status, 200);
  const auto broken = Get("/health_generate");
  RequestEnded ended;
  ended.status = absl::UnavailableError("no worker");
  dispatcher_.submitted[1].sink({ended});
  broken->RunTasks();
  EXPECT_EQ(broken->status, 503);
  EXPECT_NE(broken->body.find("no worker"), std::string::npos);
  const auto left = Get("/health_generate");
  left->Gone();
  ASSERT_EQ(dispatcher_.cancelled.size(), 1u);
  EXPECT_EQ(dispatcher_.cancelled[0].key, dispatcher_.submitted[2].key);
}

TEST_F(OperatorApiTest, DropsCachesUnderTheNamesOfOtherServers) {
  EXPECT_EQ(Post("/flush_cache")->status, 200);
  EXPECT_EQ(Get("/flush_cache")->status, 200);
  EXPECT_EQ(Post("/reset_prefix_cache")->status, 200);
  ASSERT_EQ(dispatcher_.commands.size(), 3u);
  for (const OperatorCommand& command : dispatcher_.commands)
    EXPECT_TRUE(std::holds_alternative<DropCaches>(command));
}

TEST_F(OperatorApiTest, AbortsOneRequestOrAll) {
  EXPECT_EQ(Post("/abort_request", R"({"rid": "r1"})")->status, 200);
  EXPECT_EQ(Post("/abort_request", R"({"request_id": "r2"})")->status, 200);
  EXPECT_EQ(Post("/abort_request", R"({"rid": "", "abort_all": true})")->status, 200);
  ASSERT_EQ(dispatcher_.commands.size(), 3u);
  EXPECT_EQ(std::get<AbortRequests>(dispatcher_.commands[0]).request_id, "r1");
  EXPECT_EQ(std::get<AbortRequests>(dispatcher_.commands[1]).request_id, "r2");
  EXPECT_EQ(std::get<AbortRequests>(dispatcher_.commands[2]).request_id, "");
  for (const char* wrong : {"{}", "{", R"({"rid": 5})", R"({"rid": ""})", "[]",
                            R"({"abort_all": "yes"})", R"({"rid": null})"})
    EXPECT_EQ(Post("/abort_request", wrong)->status, 400) << wrong;
  EXPECT_EQ(Post("/abort_request")->status, 415);
  EXPECT_EQ(dispatcher_.commands.size(), 3u);
}

TEST_F(OperatorApiTest, SaysThatThereAreNoProfiles) {
  for (const char* path : {"/start_profile", "/stop_profile"}) {
    const auto answer = Post(path);
    EXPECT_EQ(answer->status, 501);
    EXPECT_NE(answer->body.find("NotImplementedError"), std::string::npos) << answer->body;
  }
}

}  // namespace
}  // namespace baton::router
