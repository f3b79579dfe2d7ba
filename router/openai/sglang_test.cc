#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "router/openai/api_fixture.h"
#include "router/openai/sglang_request.h"
#include "router/openai/sglang_writer.h"

// SGLang's /generate (protocol.md 7.2): the translation, and answers over the API.
namespace baton::router {
namespace {

std::string Completion(const std::string& body) {
  const JsonValue parsed = *JsonValue::Parse(body);
  const auto out = TranslateGenerate(parsed);
  return out.ok() ? out->completion : out.error().param + ": " + out.error().message;
}

TEST(TranslateGenerate, RenamesSamplingParams) {
  EXPECT_EQ(Completion(R"({"text": "q"})"), R"({"stream":false,"priority":0,"max_tokens":128})");
  EXPECT_EQ(Completion(R"({"input_ids": [5], "stream": true, "priority": -2, "lora_path": null,
                "return_logprob": false, "logprob_start_len": -1, "sampling_params": {
                "temperature": 0.0, "max_new_tokens": 7, "min_new_tokens": 2, "ignore_eos": true,
                "top_k": -1, "stop": ["a"], "sampling_seed": 3, "custom_params": {"x": 1}}})"),
            R"({"stream":true,"priority":-2,"max_tokens":7,"min_tokens":2,"seed":3,)"
            R"("temperature":0.0,"top_k":-1,"stop":["a"],"ignore_eos":true})");
}

TEST(TranslateGenerate, NamesWhatItRefuses) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "text: "},
      {R"({"text": "a", "input_ids": [5]})", "input_ids: "},
      {R"({"text": 5})", "text: "},
      {R"({"text": ["a", 5]})", "text: "},
      {R"({"text": []})", "text: "},
      {R"({"input_ids": "a"})", "input_ids: "},
      {R"({"input_ids": [[5], 6]})", "input_ids: "},
      {R"({"text": "a", "sampling_params": [{}]})", "sampling_params: "},
      {R"({"text": "a", "sampling_params": {"stop_regex": "x"}})", "sampling_params.stop_regex: "},
      {R"({"text": "a", "stream": 1})", "stream: "},
      {R"({"text": "a", "return_logprob": true})", "return_logprob: "},
      {R"({"text": "a", "image_data": "x"})", "image_data: "},
  };
  for (const auto& [body, begin] : cases)
    EXPECT_EQ(Completion(body).rfind(begin, 0), 0u) << body << " " << Completion(body);
}

TEST(InGenerateNames, FollowsEveryKindOfPath) {
  const std::pair<const char*, const char*> cases[] = {
      {"prompt", "text"},
      {"max_tokens", "sampling_params.max_new_tokens"},
      {"seed", "sampling_params.sampling_seed"},
      {"logit_bias.5", "sampling_params.logit_bias.5"},
      {"n", "sampling_params.n"},
      {"priority", "priority"},
      {"", ""},
  };
  for (const auto& [from, to] : cases) {
    const ApiError error =
        InGenerateNames(BadRequest(std::string(from) + " is wrong", from), "text");
    EXPECT_EQ(error.param, to);
    EXPECT_EQ(error.message, std::string(to) + " is wrong");
  }
}

class SglangTest : public ApiTest {
 protected:
  std::shared_ptr<FakeExchange> Generate(const std::string& members) {
    return Post("/generate", "{" + members + "}", {{"x-request-id", "r1"}});
  }
  static const JsonValue& Meta(const JsonValue& object, std::string_view key) {
    return Member(Member(object, "meta_info"), key);
  }
};

TEST_F(SglangTest, AnswersWhole) {
  const auto answer = Generate(R"("text": "One two", "sampling_params": {"max_new_tokens": 9})");
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  const GenerateRequest& request = dispatcher_.submitted[0].request;
  EXPECT_EQ(*request.prompt, RealTokenizer().Encode("One two", SpecialTokens::kRecognise));
  EXPECT_EQ(request.finish.max_tokens, 9);
  clock_.Advance(absl::Milliseconds(250));
  Say(0, {RequestAccepted{}, Tokens(" three"), Eos(), Ended(absl::OkStatus(), {}, 2)}, *answer);
  EXPECT_EQ(answer->status, 200);
  const JsonValue body = Json(answer->body);
  EXPECT_EQ(Member(body, "text").text(), " three");
  EXPECT_EQ(IdsOf(Member(body, "output_ids")),
            RealTokenizer().Encode(" three", SpecialTokens::kRecognise));
  EXPECT_EQ(Meta(body, "id").text(), "r1");
  EXPECT_EQ(Meta(body, "prompt_tokens").AsInt64(), 2);
  EXPECT_EQ(Meta(body, "completion_tokens").AsInt64(), 1);
  EXPECT_EQ(Meta(body, "cached_tokens").AsInt64(), 2);
  EXPECT_EQ(Meta(body, "e2e_latency").AsDouble(), 0.25);
  EXPECT_EQ(Meta(body, "finish_reason").Dump(), R"({"type": "stop", "matched": 1})");
  EXPECT_EQ(body.Find("index"), nullptr);
}

TEST_F(SglangTest, StreamsTheWholeTextSoFar) {
  const auto answer = Generate(R"("input_ids": [5, 6], "stream": true)");
  Say(0, {RequestAccepted{}, Tokens("One")}, *answer);
  Say(0, {Tokens(" two")}, *answer);
  Say(0,
      {ChoiceFinished{.choice = 0, .reason = FinishReason::kLength},
       Ended(absl::OkStatus(), {}, 1)},
      *answer);
  const std::vector<std::string> events = Events(answer->body);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events.back(), "[DONE]");
  const char* texts[] = {"One", "One two", "One two"};
  for (size_t i = 0; i < 3; ++i) {
    const JsonValue event = Json(events[i]);
    EXPECT_EQ(Member(event, "text").text(), texts[i]);
    EXPECT_EQ(Meta(event, "completion_tokens").AsInt64(), i == 0 ? 1 : 2);
    EXPECT_EQ(Meta(event, "finish_reason").is_null(), i < 2);
  }
  const JsonValue last = Json(events[2]);
  EXPECT_EQ(Meta(last, "finish_reason").Dump(), R"({"type": "length", "length": 2})");
  EXPECT_EQ(Meta(last, "cached_tokens").AsInt64(), 1);
  EXPECT_TRUE(answer->is_ended);
}

TEST_F(SglangTest, StreamsHaveNoCommentLines) {
  const auto answer = Generate(R"("input_ids": [5, 6], "stream": true)");
  Say(0, {RequestAccepted{}, ContinuationInexact{}, Tokens("One"), Eos(), Ended(absl::OkStatus())},
      *answer);
  EXPECT_EQ(answer->body.rfind("data: {", 0), 0u) << answer->body;
}

TEST_F(SglangTest, AnswersAListWithAList) {
  const auto answer = Generate(R"("text": ["One", "Two words"], "stream": true)");
  ASSERT_EQ(dispatcher_.submitted.size(), 2u);
  Say(1, {RequestAccepted{}, Tokens("b"), Eos(), Ended(absl::OkStatus(), {}, 4)}, *answer);
  Say(0, {RequestAccepted{}, Tokens("a"), Eos(), Ended(absl::OkStatus())}, *answer);
  const std::vector<std::string> events = Events(answer->body);
  ASSERT_EQ(events.size(), 5u);
  const int indices[] = {1, 1, 0, 0};
  for (size_t i = 0; i < 4; ++i) {
    const JsonValue event = Json(events[i]);
    EXPECT_EQ(Member(event, "index").AsInt64(), indices[i]);
    EXPECT_EQ(Meta(event, "id").text(), "r1_" + std::to_string(indices[i]));
    EXPECT_EQ(Meta(event, "finish_reason").is_null(), i % 2 == 0);
  }
  const auto whole = Generate(R"("text": ["One"])");
  Say(2, {RequestAccepted{}, Tokens("a"), Eos(), Ended(absl::OkStatus())}, *whole);
  EXPECT_EQ(Json(whole->body).items().size(), 1u);
}

TEST_F(SglangTest, NamesItsOwnMembersInErrors) {
  const auto param = [&](const std::string& members) {
    const auto answer = Generate(members);
    EXPECT_EQ(answer->status, 400) << members << answer->body;
    return Member(Member(Json(answer->body), "error"), "param").text();
  };
  EXPECT_EQ(param(R"("text": "")"), "text");
  EXPECT_EQ(param(R"("input_ids": [999999])"), "input_ids");
  EXPECT_EQ(param(R"("text": "a", "sampling_params": {"max_new_tokens": 0})"),
            "sampling_params.max_new_tokens");
  EXPECT_EQ(param(R"("text": "a", "sampling_params": {"max_new_tokens": 100000})"),
            "sampling_params.max_new_tokens");
  EXPECT_EQ(param(R"("text": "a", "sampling_params": {"top_p": 2})"), "sampling_params.top_p");
  EXPECT_TRUE(dispatcher_.submitted.empty());
}

// Text and ids of every event are those of the whole answer so far: 40,000 tokens in as many events
// would be 40,000 / 2 times the answer.
TEST(SglangWriter, ALongStreamStaysLinear) {
  ManualClock clock;
  SglangWriter writer({.id = "r", .prompt_tokens = {1}, .arrival = clock.Now()}, clock);
  const std::vector<int32_t> ids = {7};
  size_t bytes = 0, events = 0, last = 0;
  for (int i = 0; i < 40'000; ++i) {
    const std::string event =
        writer.Chunk({.delta_field = "content", .text = "ab", .token_ids = &ids});
    EXPECT_TRUE(i >= 1024 || !event.empty()) << i;
    bytes += event.size();
    events += !event.empty();
    last = std::max(last, event.size());
  }
  EXPECT_LT(events, 6000u);
  EXPECT_LT(bytes / last, 1500u);
  const ChoiceEnd end = {.finish_reason = "length"};
  EXPECT_EQ(writer.Chunk({.end = &end}), "");
  EXPECT_NE(writer.PromptEnd(0, 0).find("\"completion_tokens\":40000"), std::string::npos);
}

}  // namespace
}  // namespace baton::router
