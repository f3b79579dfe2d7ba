#include "router/anthropic/messages_api.h"

#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "router/http/api_keys.h"
#include "router/openai/api_fixture.h"

namespace baton::router {
namespace {

// /v1/messages with a planner that the test plays.
class MessagesApiTest : public ApiTest {
 protected:
  MessagesApiTest() { Make(); }
  void Make() {
    messages_ = std::make_unique<MessagesApi>(
        MessagesParts{.config = config_, .chats = *api_, .cpu_pool = cpu_pool_});
  }

  std::shared_ptr<FakeExchange> Send(HttpRequest request) {
    auto exchange = std::make_shared<FakeExchange>();
    request.arrival = clock_.Now();
    messages_->Handle(std::move(request), exchange);
    exchange->RunTasks();
    return exchange;
  }
  std::shared_ptr<FakeExchange> Ask(const std::string& body,
                                    const std::string& path = "/v1/messages") {
    HttpRequest request;
    request.method = "POST";
    request.path = path;
    request.headers = {{"content-type", "application/json"}, {"x-request-id", "r1"}};
    request.body = body;
    return Send(std::move(request));
  }
  std::shared_ptr<FakeExchange> Hello(const std::string& members) {
    return Ask(R"({"max_tokens": 64, "thinking": {"type": "disabled"}, )"
               R"("messages": [{"role": "user", "content": "hi"}])" +
               (members.empty() ? "" : ", " + members) + "}");
  }
  static std::string ErrorType(const FakeExchange& answer) {
    const JsonValue body = Json(answer.body);
    return body.Find("error")->Find("type")->text();
  }
  // The names of a stream's events, in order; each is also its data's type.
  static std::vector<std::string> Names(const std::string& body) {
    std::vector<std::string> names;
    for (size_t from = 0; (from = body.find("event: ", from)) != std::string::npos;) {
      const size_t end = body.find('\n', from);
      names.push_back(body.substr(from + 7, end - from - 7));
      const size_t data = end + 7, data_end = body.find("\n\n", data);
      EXPECT_EQ(body.substr(end + 1, 6), "data: ");
      EXPECT_EQ(Json(body.substr(data, data_end - data)).Find("type")->text(), names.back());
      from = data_end;
    }
    return names;
  }

  std::unique_ptr<MessagesApi> messages_;
};

TEST_F(MessagesApiTest, NamesTheFormOfTheAnswerAsItsClientsDo) {
  const auto answer =
      Hello(R"("output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}})");
  EXPECT_TRUE(answer->is_over() || answer->RunTasksFor(absl::Seconds(20)));
  EXPECT_EQ(answer->status, 400);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(body.Find("error")->Find("message")->text().rfind("output_config.format: ", 0), 0u)
      << answer->body;
}

TEST_F(MessagesApiTest, AnswersWhole) {
  const auto answer = Hello(R"("stop_sequences": ["X"])");
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  const GenerateRequest& request = dispatcher_.submitted[0].request;
  EXPECT_EQ(request.finish.max_tokens, 64);
  EXPECT_EQ(request.request_id, "r1");
  Say(0, {RequestAccepted{}, Tokens("Paris"), Eos(), Ended(absl::OkStatus(), {}, 2)}, *answer);
  EXPECT_EQ(answer->status, 200);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(body.Find("id")->text(), "msg_r1");
  EXPECT_EQ(body.Find("model")->text(), "deepseek-v4-flash");
  EXPECT_EQ(body.Find("content")->Dump(), R"([{"type": "text", "text": "Paris"}])");
  EXPECT_EQ(body.Find("stop_reason")->text(), "end_turn");
  const auto prompt = static_cast<int64_t>(request.prompt->size());
  EXPECT_EQ(*body.Find("usage")->Find("input_tokens")->AsInt64(), prompt - 2);
  EXPECT_EQ(*body.Find("usage")->Find("cache_read_input_tokens")->AsInt64(), 2);
}

TEST_F(MessagesApiTest, StreamsThinkingTextAndACall) {
  const auto answer = Ask(R"({"max_tokens": 64, "stream": true,
      "tools": [{"name": "f", "input_schema": {"type": "object"}}],
      "messages": [{"role": "user", "content": "hi"}]})");
  Say(0, {RequestAccepted{}}, *answer);
  EXPECT_EQ(Names(answer->body), (std::vector<std::string>{"message_start", "ping"}));
  Say(0,
      {Tokens("hm</think>yes\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
              "<｜DSML｜parameter name=\"a\" string=\"false\">1</｜DSML｜parameter>\n"
              "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
       Eos(), RequestEnded{}},
      *answer);
  EXPECT_TRUE(answer->is_ended);
  std::string starts, text, json;
  for (size_t from = 0; (from = answer->body.find("data: ", from)) != std::string::npos;) {
    const size_t end = answer->body.find("\n\n", from);
    const JsonValue data = Json(answer->body.substr(from + 6, end - from - 6));
    from = end;
    if (const JsonValue* block = data.Find("content_block"))
      starts += block->Find("type")->text() + " ";
    const JsonValue* delta = data.Find("delta");
    if (delta == nullptr) continue;
    if (const JsonValue* part = delta->Find("text")) text += part->text();
    if (const JsonValue* part = delta->Find("partial_json")) json += part->text();
    if (const JsonValue* reason = delta->Find("stop_reason")) {
      EXPECT_EQ(reason->text(), "tool_use");
    }
  }
  EXPECT_EQ(starts, "thinking text tool_use ");
  EXPECT_EQ(text, "yes");
  EXPECT_EQ(json, R"({"a": 1})");
  const std::vector<std::string> names = Names(answer->body);
  EXPECT_EQ(names.back(), "message_stop");
  EXPECT_EQ(std::count(names.begin(), names.end(), "content_block_stop"), 3);
}

TEST_F(MessagesApiTest, AWholeCallIsABlockWithItsInput) {
  const auto answer = Hello(R"("tools": [{"name": "f", "input_schema": {"type": "object"}}])");
  Say(0,
      {RequestAccepted{},
       Tokens("<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
              "<｜DSML｜parameter name=\"a\" string=\"true\">x</｜DSML｜parameter>\n"
              "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
       Eos(), RequestEnded{}},
      *answer);
  const JsonValue body = Json(answer->body);
  ASSERT_EQ(body.Find("content")->items().size(), 1u) << answer->body;
  const JsonValue& block = body.Find("content")->items()[0];
  EXPECT_EQ(block.Find("id")->text().rfind("toolu_", 0), 0u);
  EXPECT_EQ(block.Find("id")->text().size(), 6u + 24u);
  EXPECT_EQ(block.Find("input")->Dump(), R"({"a": "x"})");
  EXPECT_EQ(body.Find("stop_reason")->text(), "tool_use");
}

TEST_F(MessagesApiTest, NamesTheStopSequence) {
  const auto answer = Hello(R"("stop_sequences": ["is fr"])");
  Say(0, {RequestAccepted{}, Tokens("Paris from"), RequestEnded{}}, *answer);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(body.Find("stop_reason")->text(), "stop_sequence");
  EXPECT_EQ(body.Find("stop_sequence")->text(), "is fr");
  EXPECT_EQ(body.Find("content")->Dump(), R"([{"type": "text", "text": "Par"}])");
}

TEST_F(MessagesApiTest, TheContextCutsTheAnswerAndRefusesThePrompt) {
  Configure(ViewOf(1, 1, 100));
  Make();
  const auto answer = Hello(R"("max_tokens": 32000)");
  ASSERT_EQ(dispatcher_.submitted.size(), 1u) << answer->body;
  const GenerateRequest& request = dispatcher_.submitted[0].request;
  EXPECT_EQ(request.finish.max_tokens, 100 - static_cast<int64_t>(request.prompt->size()));
  std::string words;
  for (int i = 0; i < 120; ++i) words += "word ";
  const auto refused = Hello(absl::StrFormat(R"("system": "%s")", words));
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(ErrorType(*refused), "invalid_request_error");
  EXPECT_NE(refused->body.find("prompt is too long: 1"), std::string::npos) << refused->body;
  EXPECT_NE(refused->body.find(" tokens > 100 maximum"), std::string::npos) << refused->body;
  const auto huge = Hello(absl::StrFormat(R"("system": "%s")", std::string(20'000, 'x')));
  EXPECT_NE(huge->body.find("prompt is too long: 156 tokens"), std::string::npos) << huge->body;
}

TEST_F(MessagesApiTest, CountsTheTokensOfTheSamePrompt) {
  const std::string body = R"("thinking": {"type": "disabled"}, "system": "Be brief.",
      "messages": [{"role": "user", "content": "hi"}])";
  const auto counted = Ask("{" + body + "}", "/v1/messages/count_tokens");
  EXPECT_EQ(counted->status, 200);
  EXPECT_TRUE(dispatcher_.submitted.empty());
  Ask(R"({"max_tokens": 5, )" + body + "}");
  EXPECT_EQ(counted->body, absl::StrFormat("{\"input_tokens\":%d}",
                                           dispatcher_.submitted.at(0).request.prompt->size()));
}

TEST_F(MessagesApiTest, JudgesTheValidationVectors) {
  const JsonValue vectors = LoadVectors("api/validation.json");
  int covered = 0;
  for (const JsonValue& item : vectors.Find("cases")->items()) {
    if (!item.Find("path")->text().starts_with("/v1/messages")) continue;
    SCOPED_TRACE(item.Find("id")->text());
    const auto answer = Ask(item.Find("body")->Dump(), item.Find("path")->text());
    EXPECT_EQ(answer->status, *item.Find("status")->AsInt64()) << answer->body;
    EXPECT_NE(answer->body.find(item.Find("message_contains")->text()), std::string::npos)
        << answer->body;
    ++covered;
  }
  EXPECT_EQ(covered, 2);
}

TEST_F(MessagesApiTest, ErrorsHaveAnthropicsForm) {
  const auto other = Hello(R"("model": "other")");
  EXPECT_EQ(other->status, 404);
  EXPECT_EQ(ErrorType(*other), "not_found_error");
  EXPECT_EQ(Json(other->body).Find("request_id")->text(), "r1");
  EXPECT_EQ(other->Header("request-id"), "r1");
  EXPECT_EQ(Ask("{")->status, 400);
  EXPECT_EQ(Hello(R"("top_p": 2)")->status, 400);
  const auto full = Hello("");
  Say(0, {Ended(absl::ResourceExhaustedError("full"), absl::Seconds(3))}, *full);
  EXPECT_EQ(full->status, 529);
  EXPECT_EQ(ErrorType(*full), "overloaded_error");
  EXPECT_EQ(full->Header("Retry-After"), "3");
  const auto stream = Hello(R"("stream": true)");
  Say(1, {RequestAccepted{}, Ended(absl::DeadlineExceededError("late"))}, *stream);
  EXPECT_EQ(Names(stream->body).back(), "error");
  EXPECT_TRUE(stream->is_ended);
  api_->Drain();
  EXPECT_EQ(Hello("")->status, 529);
}

// A key's own limit is no overload: its clients are to wait as told.
TEST_F(MessagesApiTest, AKeysLimitStaysA429) {
  absl::Status status = absl::ResourceExhaustedError("the key a may use 9 tokens per minute");
  status.SetPayload(kKeyLimitPayload, {});
  const auto limited = Hello("");
  Say(0, {Ended(status, absl::Seconds(30))}, *limited);
  EXPECT_EQ(limited->status, 429);
  EXPECT_EQ(ErrorType(*limited), "rate_limit_error");
  EXPECT_EQ(limited->Header("Retry-After"), "30");
}

TEST_F(MessagesApiTest, ALargeBodyIsReadElsewhere) {
  config_.offload_bytes = 10;
  auto exchange = std::make_shared<FakeExchange>();
  HttpRequest request;
  request.method = "POST";
  request.path = "/v1/messages/count_tokens";
  request.headers = {{"content-type", "application/json"}};
  request.body = R"({"messages": [{"role": "user", "content": "hi"}]})";
  messages_->Handle(std::move(request), exchange);
  EXPECT_TRUE(exchange->RunTasksUntilOver(absl::Seconds(10)));
  EXPECT_EQ(exchange->status, 200);
}

TEST_F(MessagesApiTest, ListsModelsInAnthropicsForm) {
  HttpRequest request;
  request.method = "GET";
  request.path = "/v1/models";
  const JsonValue models = Json(Send(request)->body);
  EXPECT_EQ(models.Find("first_id")->text(), "deepseek-v4-flash");
  EXPECT_EQ(models.Find("data")->items().at(0).Find("type")->text(), "model");
  EXPECT_FALSE(models.Find("has_more")->boolean());
  request.path = "/v1/models/deepseek-v4-flash";
  EXPECT_EQ(Json(Send(request)->body).Find("id")->text(), "deepseek-v4-flash");
  request.path = "/v1/models/other";
  EXPECT_EQ(Send(request)->status, 404);
}

}  // namespace
}  // namespace baton::router
