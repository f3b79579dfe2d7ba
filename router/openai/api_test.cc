#include "router/openai/api.h"

#include <gtest/gtest.h>
#include <set>

#include "absl/strings/str_format.h"

#include "router/openai/api_fixture.h"

namespace baton::router {
namespace {

TEST_F(ApiTest, JudgesTheValidationVectors) {
  // Anthropic's endpoint is another handler's; tests/vectors runs these as well.
  const std::set<std::string> skipped = {"ant-no-max", "ant-too-long"};
  dispatcher_.on_submit = [&](FakeDispatcher::Submitted& request) {
    request.sink({RequestAccepted{}, Tokens("ok"), Eos(), RequestEnded{}});
  };
  int covered = 0;
  const JsonValue vectors = LoadVectors("api/validation.json");
  for (const JsonValue& item : Member(vectors, "cases").items()) {
    const std::string& id = Member(item, "id").text();
    SCOPED_TRACE(id);
    if (skipped.contains(id)) continue;
    std::map<std::string, std::string> headers;
    if (const JsonValue* given = item.Find("headers"))
      for (const auto& [key, value] : given->members()) headers["content-type"] = value.text();
    const JsonValue* raw = item.Find("raw");
    const auto answer = Post(Member(item, "path").text(),
                             raw != nullptr ? raw->text() : Member(item, "body").Dump(), headers);
    EXPECT_EQ(answer->status, *Member(item, "status").AsInt64()) << answer->body;
    ++covered;
    if (answer->status == 200) continue;
    const JsonValue body = Json(answer->body);
    const JsonValue& error = Member(body, "error");
    if (const JsonValue* param = item.Find("param")) {
      EXPECT_EQ(Member(error, "param").text(), param->text());
    }
    if (const JsonValue* part = item.Find("message_contains")) {
      EXPECT_NE(Member(error, "message").text().find(part->text()), std::string::npos)
          << answer->body;
    }
  }
  EXPECT_EQ(covered, 33);
}

TEST_F(ApiTest, AnswersWhole) {
  const auto answer = Chat(R"("max_tokens": 5)", {{"x-request-id", "abc"}});
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  EXPECT_EQ(dispatcher_.submitted[0].request.finish.max_tokens, 5);
  EXPECT_EQ(dispatcher_.submitted[0].request.request_id, "abc");
  Say(0,
      {RequestAccepted{}, Tokens("Paris"), Tokens("<｜end▁of▁sentence｜>"), Eos(),
       Ended(absl::OkStatus(), {}, 3)},
      *answer);
  EXPECT_EQ(answer->status, 200);
  EXPECT_EQ(answer->Header("x-request-id"), "abc");
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(Member(body, "id").text(), "chatcmpl-abc");
  const JsonValue& choice = Member(body, "choices").items().at(0);
  EXPECT_EQ(Member(Member(choice, "message"), "content").text(), "Paris");
  EXPECT_TRUE(Member(Member(choice, "message"), "reasoning_content").is_null());
  EXPECT_EQ(Member(choice, "finish_reason").text(), "stop");
  EXPECT_TRUE(Member(choice, "stop_reason").is_null());
  const auto prompt_tokens = static_cast<int64_t>(dispatcher_.submitted[0].request.prompt->size());
  const auto answer_tokens = static_cast<int64_t>(Tokens("Paris").tokens.size()) + 1;  // and eos
  EXPECT_EQ(Member(body, "usage").Dump(),
            absl::StrFormat(
                "{\"prompt_tokens\": %d, \"completion_tokens\": %d, \"total_tokens\": %d, "
                "\"prompt_tokens_details\": "
                "{\"cached_tokens\": 3}, \"completion_tokens_details\": {\"reasoning_tokens\": 0}}",
                prompt_tokens, answer_tokens, prompt_tokens + answer_tokens));
}

TEST_F(ApiTest, StreamsRoleTextEndUsageDone) {
  const auto answer = Chat(R"("stream": true, "stream_options": {"include_usage": true})");
  EXPECT_FALSE(answer->is_stream);  // a refusal could still be a status
  Say(0, {RequestAccepted{}}, *answer);
  EXPECT_TRUE(answer->is_stream);
  EXPECT_TRUE(Events(answer->body).empty());  // the first chunk comes with the first token
  Say(0, {Tokens("Par")}, *answer);
  Say(0, {Tokens("is"), Eos(), RequestEnded{}}, *answer);
  const std::vector<std::string> events = Events(answer->body);
  ASSERT_EQ(events.size(), 6u);
  const auto delta = [&](size_t i) {
    return Member(Member(Json(events[i]), "choices").items().at(0), "delta").Dump();
  };
  EXPECT_EQ(delta(0), R"({"role": "assistant", "content": ""})");
  EXPECT_EQ(delta(1), R"({"content": "Par"})");
  EXPECT_EQ(delta(2), R"({"content": "is"})");
  EXPECT_EQ(delta(3), "{}");
  EXPECT_EQ(Member(Member(Json(events[3]), "choices").items().at(0), "finish_reason").text(),
            "stop");
  EXPECT_TRUE(Member(Json(events[4]), "choices").items().empty());
  EXPECT_EQ(Member(Member(Json(events[4]), "usage"), "completion_tokens").text(), "2");
  EXPECT_EQ(events[5], "[DONE]");
  EXPECT_TRUE(answer->is_ended);
}

TEST_F(ApiTest, AStreamsLastUsageTellsStageTimesIfAsked) {
  const auto answer = Chat(R"("stream": true, "stream_options": {"include_usage": true, )"
                           R"("continuous_usage_stats": true, "include_stage_times": true})");
  RequestEnded ended;
  ended.times.parse = absl::Microseconds(1500);
  ended.times.first_step = absl::Milliseconds(7);
  Say(0, {RequestAccepted{}, Tokens("Paris"), Eos(), ended}, *answer);
  const std::vector<std::string> events = Events(answer->body);
  ASSERT_GE(events.size(), 3u);
  for (size_t i = 0; i + 2 < events.size(); ++i)  // not known yet
    EXPECT_EQ(events[i].find("stage_times_ms"), std::string::npos);
  const JsonValue usage = Member(Json(events[events.size() - 2]), "usage");
  EXPECT_EQ(Member(usage, "stage_times_ms").Dump(),
            R"({"parse": 1.5, "queue": 0.0, "booking": 0.0, "prefill_queue": 0.0, )"
            R"("prefill": 0.0, "emit": 0.0, "transfer": 0.0, "decode_queue": 0.0, )"
            R"("first_step": 7.0})");
  const auto plain = Chat(R"("stream": true, "stream_options": {"include_usage": true})");
  Say(1, {RequestAccepted{}, Tokens("Paris"), Eos(), ended}, *plain);
  EXPECT_EQ(plain->body.find("stage_times_ms"), std::string::npos);
  EXPECT_EQ(Chat(R"("stream": true, "stream_options": {"include_stage_times": 1})")->status, 400);
}

TEST_F(ApiTest, SplitsReasoning) {
  const auto answer =
      Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "hi"}], )"
                                   R"("chat_template_kwargs": {"thinking": true}})");
  Say(0, {RequestAccepted{}, Tokens("hm</think>yes"), Eos(), RequestEnded{}}, *answer);
  const JsonValue body = Json(answer->body);
  const JsonValue& message = Member(Member(body, "choices").items().at(0), "message");
  EXPECT_EQ(Member(message, "content").text(), "yes");
  EXPECT_EQ(Member(message, "reasoning_content").text(), "hm");
}

TEST_F(ApiTest, CutsAtAStopStringThatSpansTokens) {
  const auto answer = Chat(R"("stop": ["is fr"])");
  Say(0, {RequestAccepted{}, Tokens("Paris")}, *answer);
  EXPECT_FALSE(answer->is_ended);
  Say(0, {Tokens(" from here")}, *answer);
  const std::vector<FakeDispatcher::Cancelled> cancelled = {{RequestKey{1}, 0}};
  EXPECT_EQ(dispatcher_.cancelled, cancelled);
  Say(0, {RequestEnded{}}, *answer);
  const JsonValue body = Json(answer->body);
  const JsonValue& choice = Member(body, "choices").items().at(0);
  EXPECT_EQ(Member(Member(choice, "message"), "content").text(), "Par");
  EXPECT_EQ(Member(choice, "finish_reason").text(), "stop");
  EXPECT_EQ(Member(choice, "stop_reason").text(), "is fr");
}

TEST_F(ApiTest, KeepsTwoChoicesApart) {
  const auto answer = Chat(R"("n": 2, "seed": 7)");
  EXPECT_EQ(dispatcher_.submitted.at(0).request.num_choices, 2);
  EXPECT_EQ(dispatcher_.submitted.at(0).request.sampling.seed, 7u);
  Say(0,
      {RequestAccepted{}, Tokens("b", 1), Tokens("a", 0), Eos(1), Tokens("c", 0), Eos(0),
       RequestEnded{}},
      *answer);
  const JsonValue body = Json(answer->body);
  const auto content = [&](size_t i) {
    return Member(Member(Member(body, "choices").items().at(i), "message"), "content").text();
  };
  EXPECT_EQ(content(0), "ac");
  EXPECT_EQ(content(1), "b");
}

TEST_F(ApiTest, BatchOfPromptsNumbersItsChoices) {
  const auto answer =
      Post("/v1/completions", R"({"prompt": ["one", "two"], "max_tokens": 4, "echo": true})");
  ASSERT_EQ(dispatcher_.submitted.size(), 2u);
  Say(1, {RequestAccepted{}, Tokens("B"), Eos(), RequestEnded{}}, *answer);
  EXPECT_FALSE(answer->is_ended);
  Say(0,
      {RequestAccepted{}, Tokens("A"), ChoiceFinished{.reason = FinishReason::kLength},
       RequestEnded{}},
      *answer);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(Member(Member(body, "choices").items().at(0), "text").text(), "oneA");
  EXPECT_EQ(Member(Member(body, "choices").items().at(0), "finish_reason").text(), "length");
  EXPECT_EQ(Member(Member(body, "choices").items().at(1), "text").text(), "twoB");
}

TEST_F(ApiTest, ReportsLogprobs) {
  const auto answer = Chat(R"("logprobs": true, "top_logprobs": 1)");
  EXPECT_EQ(dispatcher_.submitted.at(0).request.sampling.top_logprobs, 1);
  Say(0, {RequestAccepted{}, Tokens("a"), Eos(), RequestEnded{}}, *answer);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(Member(Member(Member(body, "choices").items().at(0), "logprobs"), "content").Dump(),
            R"([{"token": "a", "logprob": -0.5, "bytes": [97], )"
            R"("top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}]}])");
}

// The report of a prompt's tokens from 1 on: the token itself second best, two entries.
PromptLogprobsEmitted ReportOf(const std::vector<int32_t>& prompt, size_t first, size_t end) {
  PromptLogprobsEmitted event;
  event.first_position = static_cast<int64_t>(first);
  for (size_t i = first; i < end; ++i)
    event.tokens.push_back(
        {.token = prompt[i], .logprob = -2.0f, .top = {{5, -0.25f}, {prompt[i], -2.0f}}});
  return event;
}

TEST_F(ApiTest, ReportsAPromptsLogprobs) {
  const auto chat = Chat(R"("prompt_logprobs": 1)");
  const GenerateRequest& request = dispatcher_.submitted.at(0).request;
  EXPECT_EQ(request.prompt_logprobs, 1u);
  const std::vector<int32_t> prompt = *request.prompt;
  // The decode worker's word may come before the prefill worker's.
  Say(0, {RequestAccepted{}, Tokens("a"), Eos()}, *chat);
  Say(0, {ReportOf(prompt, 1, 3)}, *chat);
  Say(0, {ReportOf(prompt, 3, prompt.size()), RequestEnded{}}, *chat);
  const JsonValue body = Json(chat->body);
  EXPECT_EQ(Member(Member(Member(body, "choices").items().at(0), "message"), "content").text(),
            "a");
  const auto& list = Member(body, "prompt_logprobs").items();
  ASSERT_EQ(list.size(), prompt.size());
  EXPECT_TRUE(list[0].is_null());
  EXPECT_EQ(list[1].members().size(), 2u);  // itself and the best one
  const JsonValue& own = Member(list[1], absl::StrFormat("%d", prompt[1]));
  EXPECT_EQ(Member(own, "logprob").text(), "-2");
  EXPECT_TRUE(Member(own, "rank").is_null());  // not among the best one
  EXPECT_EQ(Member(own, "decoded_token").text(),
            RealTokenizer().Decode(std::span(&prompt[1], 1), false));
  EXPECT_EQ(Member(Member(list[1], "5"), "rank").text(), "1");

  const auto text =
      Post("/v1/completions", R"({"prompt": "one two", "max_tokens": 4, "prompt_logprobs": 2})");
  const std::vector<int32_t> words = *dispatcher_.submitted.at(1).request.prompt;
  Say(1, {RequestAccepted{}, ReportOf(words, 1, words.size()), Tokens("A"), Eos(), RequestEnded{}},
      *text);
  const JsonValue answer = Json(text->body);
  const JsonValue& choice = Member(answer, "choices").items().at(0);
  EXPECT_TRUE(Member(choice, "logprobs").is_null());
  const auto& entries = Member(choice, "prompt_logprobs").items();
  ASSERT_EQ(entries.size(), words.size());
  EXPECT_EQ(Member(Member(entries[1], absl::StrFormat("%d", words[1])), "rank").text(), "2");
}

TEST_F(ApiTest, EchoesAPromptWithItsLogprobs) {
  for (const bool is_stream : {false, true}) {
    SCOPED_TRACE(is_stream);
    const auto answer = Post(
        "/v1/completions",
        absl::StrFormat(
            R"({"prompt": "one two", "max_tokens": 4, "echo": true, "logprobs": 1, "stream": %s})",
            is_stream ? "true" : "false"));
    const GenerateRequest& request = dispatcher_.submitted.back().request;
    EXPECT_EQ(request.prompt_logprobs, 1u);
    const std::vector<int32_t> prompt = *request.prompt;
    ASSERT_EQ(prompt.size(), 2u);
    Say(dispatcher_.submitted.size() - 1, {RequestAccepted{}, Tokens("A")}, *answer);
    EXPECT_TRUE(Events(answer->body).empty());
    Say(dispatcher_.submitted.size() - 1, {ReportOf(prompt, 1, 2), Eos(), RequestEnded{}}, *answer);
    const std::string first = is_stream ? Events(answer->body).at(0) : answer->body;
    const JsonValue body = Json(first);
    const JsonValue& choice = Member(body, "choices").items().at(0);
    EXPECT_EQ(Member(choice, "text").text(), is_stream ? "one two" : "one twoA");
    const JsonValue& lists = Member(choice, "logprobs");
    EXPECT_EQ(Member(lists, "tokens").Dump(),
              is_stream ? R"(["one", " two"])" : R"(["one", " two", "A"])");
    EXPECT_EQ(Member(lists, "token_logprobs").Dump(),
              is_stream ? "[null, -2]" : "[null, -2, -0.5]");
    EXPECT_EQ(Member(lists, "text_offset").Dump(), is_stream ? "[0, 3]" : "[0, 3, 7]");
    EXPECT_TRUE(Member(lists, "top_logprobs").items().at(0).is_null());
    EXPECT_EQ(Member(Member(lists, "top_logprobs").items().at(1), " two").text(), "-2");
    if (!is_stream) continue;
    EXPECT_NE(Events(answer->body).at(1).find("\"text_offset\":[7]"), std::string::npos);
  }
}

TEST_F(ApiTest, ScoresAPromptWithoutGenerating) {
  const auto answer =
      Post("/v1/completions",
           R"({"prompt": ["one two", "one"], "max_tokens": 0, "echo": true, "logprobs": 0})");
  ASSERT_EQ(dispatcher_.submitted.size(), 2u);
  const std::vector<int32_t> prompt = *dispatcher_.submitted[0].request.prompt;
  Say(0, {RequestAccepted{}, Tokens("x"), ReportOf(prompt, 1, prompt.size())}, *answer);
  Say(1, {RequestAccepted{}, Tokens("x")}, *answer);  // one token: there is nothing to report
  const std::vector<FakeDispatcher::Cancelled> cancelled = {{RequestKey{1}, 0}, {RequestKey{2}, 0}};
  EXPECT_EQ(dispatcher_.cancelled, cancelled);
  Say(0, {RequestEnded{}}, *answer);
  Say(1, {RequestEnded{}}, *answer);
  const JsonValue body = Json(answer->body);
  const JsonValue& choice = Member(body, "choices").items().at(0);
  EXPECT_EQ(Member(choice, "text").text(), "one two");
  EXPECT_EQ(Member(choice, "finish_reason").text(), "length");
  EXPECT_EQ(Member(Member(choice, "logprobs"), "token_logprobs").Dump(), "[null, -2]");
  EXPECT_EQ(Member(Member(body, "usage"), "completion_tokens").text(), "0");
  EXPECT_EQ(Member(Member(body, "choices").items().at(1), "text").text(), "one");
  EXPECT_EQ(Post("/v1/completions", R"({"prompt": "a", "max_tokens": 0, "echo": true})")->status,
            400);
}

TEST_F(ApiTest, RefusesPromptLogprobsByValue) {
  const auto message = [&](const std::string& members) {
    const auto answer = Chat(members);
    EXPECT_EQ(answer->status, 400) << answer->body;
    const JsonValue body = Json(answer->body);
    EXPECT_EQ(Member(Member(body, "error"), "param").text(), "prompt_logprobs");
    return Member(Member(body, "error"), "message").text();
  };
  EXPECT_EQ(message(R"("prompt_logprobs": 0, "stream": true)"),
            "`prompt_logprobs` are not available when `stream=True`.");
  EXPECT_EQ(message(R"("prompt_logprobs": 21)"),
            "Requested prompt logprobs of 21, which is greater than max allowed: 20");
  EXPECT_EQ(message(R"("prompt_logprobs": -1)"), "prompt_logprobs must be in 0..20, got -1.");
}

TEST_F(ApiTest, AnErrorBeforeTheStreamIsAStatus) {
  const auto answer = Chat(R"("stream": true)");
  Say(0, {Ended(absl::ResourceExhaustedError("full"), absl::Seconds(2.5))}, *answer);
  EXPECT_EQ(answer->status, 429);
  EXPECT_EQ(answer->Header("Retry-After"), "3");
  EXPECT_EQ(Member(Member(Json(answer->body), "error"), "type").text(), "TooManyRequestsError");
}

TEST_F(ApiTest, AnErrorInTheStreamIsAnEvent) {
  const auto answer = Chat(R"("stream": true)");
  Say(0, {RequestAccepted{}, Tokens("a")}, *answer);
  Say(0, {Ended(absl::DeadlineExceededError("late"))}, *answer);
  const std::vector<std::string> events = Events(answer->body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(Member(Member(Json(events[events.size() - 2]), "error"), "code").text(), "504");
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_TRUE(answer->is_ended);
}

TEST_F(ApiTest, CancelsWhenTheClientLeaves) {
  const auto answer = Chat(R"("n": 2, "stream": true)");
  Say(0, {RequestAccepted{}, Tokens("a")}, *answer);
  answer->Gone();
  const std::vector<FakeDispatcher::Cancelled> cancelled = {{RequestKey{1}, std::nullopt}};
  EXPECT_EQ(dispatcher_.cancelled, cancelled);
  Say(0, {Ended(absl::CancelledError("client gone"))}, *answer);  // is harmless
}

TEST_F(ApiTest, SubmitsNothingForAClientThatHasLeft) {
  auto exchange = std::make_shared<FakeExchange>();
  exchange->Gone();
  HttpRequest request;
  request.method = "POST";
  request.path = "/v1/completions";
  request.headers = {{"content-type", "application/json"}};
  request.body = R"({"prompt": "a"})";
  api_->Handle(std::move(request), exchange);
  EXPECT_TRUE(dispatcher_.submitted.empty());
}

TEST_F(ApiTest, ReadsDeadlines) {
  Chat("", {{"x-baton-deadline-ms", "1500"}, {"x-baton-deadline-total-ms", "3000"}});
  EXPECT_EQ(dispatcher_.submitted.at(0).request.first_token_deadline,
            clock_.Now() + absl::Milliseconds(1500));
  EXPECT_EQ(dispatcher_.submitted.at(0).request.total_deadline,
            clock_.Now() + absl::Milliseconds(3000));
  Chat("", {{"x-baton-deadline-ms", "999999999"}});  // never lengthens
  EXPECT_EQ(dispatcher_.submitted.at(1).request.first_token_deadline,
            clock_.Now() + config_.request_deadline);
  const auto refused = Chat("", {{"x-baton-deadline-ms", "0"}});
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(Member(Member(Json(refused->body), "error"), "param").text(), "x-baton-deadline-ms");
}

TEST_F(ApiTest, PingsAQuietStream) {
  const auto answer = Chat(R"("stream": true)");
  Say(0, {RequestAccepted{}}, *answer);
  answer->RunTimers();
  EXPECT_EQ(answer->body, ": ping\n\n");
}

TEST_F(ApiTest, AWorkerWithLessContextLowersTheLimit) {
  Configure(ViewOf(0, 1, 512));
  const auto answer = Chat(R"("max_tokens": 600)");
  EXPECT_EQ(answer->status, 400);
  EXPECT_NE(answer->body.find("maximum context length is 512 tokens"), std::string::npos);
  EXPECT_NE(answer->body.find("context_length_exceeded"), std::string::npos);
}

TEST_F(ApiTest, ProbesSayWhatTheClusterCanDo) {
  EXPECT_EQ(Get("/health")->status, 503);
  EXPECT_EQ(Get("/ready")->status, 503);
  Configure(ViewOf(1, 1, 0));
  EXPECT_EQ(Get("/health")->status, 200);
  EXPECT_EQ(Get("/ready")->status, 200);
  api_->Drain();
  EXPECT_EQ(Get("/ready")->status, 503);
  EXPECT_EQ(Chat("")->status, 503);
}

TEST_F(ApiTest, SmallEndpoints) {
  const JsonValue models = Json(Get("/v1/models")->body);
  EXPECT_EQ(Member(Member(models, "data").items().at(0), "id").text(), "deepseek-v4-flash");
  EXPECT_EQ(Get("/v1/models/other")->status, 404);
  EXPECT_EQ(Get("/nothing")->status, 404);
  EXPECT_EQ(Get("/v1/chat/completions")->status, 405);
  EXPECT_EQ(Get("/metrics")->body, "metrics");
  EXPECT_EQ(Chat(R"("model": "other")")->status, 404);
  const JsonValue tokens =
      Json(Post("/tokenize", R"({"prompt": "Hello world", "return_token_strs": true})")->body);
  EXPECT_EQ(Member(tokens, "token_strs").Dump(), R"(["Hello", " world"])");
  const auto text = Post("/detokenize", "{\"tokens\": " + Member(tokens, "tokens").Dump() + "}");
  EXPECT_EQ(Member(Json(text->body), "prompt").text(), "Hello world");
  const JsonValue chat =
      Json(Post("/v1/tokenize", R"({"messages": [{"role": "user", "content": "hi"}]})")->body);
  Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "hi"}]})");
  EXPECT_EQ(Member(chat, "tokens").items().size(),
            dispatcher_.submitted.back().request.prompt->size());
}

// An operator's abort is an end of its own, with what there is of the answer.
TEST_F(ApiTest, AnAbortedAnswerIsWhatThereIsOfIt) {
  const auto whole = Chat(R"("n": 2)");
  Say(0, {RequestAccepted{}, Tokens("half"), Eos(1), Ended(absl::CancelledError("aborted"))},
      *whole);
  EXPECT_EQ(whole->status, 200);
  const JsonValue body = Json(whole->body);
  const auto& choices = Member(body, "choices").items();
  EXPECT_EQ(Member(choices.at(0), "finish_reason").text(), "abort");
  EXPECT_EQ(Member(Member(choices.at(0), "message"), "content").text(), "half");
  EXPECT_EQ(Member(choices.at(1), "finish_reason").text(), "stop");
  const auto stream = Chat(R"("stream": true)");
  Say(1, {RequestAccepted{}, Tokens("half"), Ended(absl::CancelledError("aborted"))}, *stream);
  EXPECT_NE(stream->body.find(R"("finish_reason":"abort")"), std::string::npos);
  EXPECT_TRUE(stream->body.ends_with("data: [DONE]\n\n")) << stream->body;
}

}  // namespace
}  // namespace baton::router
