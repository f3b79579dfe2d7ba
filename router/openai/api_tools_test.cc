#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

#include "router/openai/api_fixture.h"

// Tool calls, thinking budgets and the other rules of protocol.md 3 and 4 over the API.
namespace baton::router {
namespace {

constexpr const char* kTools =
    R"("tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": )"
    R"("object", "properties": {"q": {"type": "string"}}}}}, {"type": "function", "function": )"
    R"({"name": "now"}}])";
constexpr const char* kOpen = "\n\n<｜DSML｜tool_calls>\n";
constexpr const char* kLook =
    "<｜DSML｜invoke name=\"look\">\n<｜DSML｜parameter name=\"q\" string=\"true\">x\ny"
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n";
constexpr const char* kNow = "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n";
constexpr const char* kClose = "</｜DSML｜tool_calls>";

class ApiToolsTest : public ApiTest {
 protected:
  // A chat with tools, thinking off unless `thinks`.
  std::shared_ptr<FakeExchange> Ask(const std::string& members, bool thinks = false) {
    return Post(
        "/v1/chat/completions",
        absl::StrFormat(R"({"messages": [{"role": "user", "content": "hi"}], %s, )"
                        R"("chat_template_kwargs": {"thinking": %s}%s})",
                        kTools, thinks ? "true" : "false", members.empty() ? "" : ", " + members));
  }
  const GenerateRequest& Request(size_t index) { return dispatcher_.submitted.at(index).request; }
  std::string TextOf(const std::vector<int32_t>& ids, size_t from) {
    return RealTokenizer().Decode(std::span(ids).subspan(from), false);
  }
  static JsonValue Choice(const FakeExchange& answer) {
    return Member(Json(answer.body), "choices").items().at(0);
  }
  // The calls of a stream, put together as a client does; and the number of chunks that had any.
  static std::string Streamed(const FakeExchange& answer, std::string& finish, int& num_chunks) {
    std::vector<std::string> calls;
    num_chunks = 0;
    for (const std::string& event : Events(answer.body)) {
      if (event == "[DONE]") continue;
      const JsonValue chunk = Json(event);
      const JsonValue& choice = Member(chunk, "choices").items().at(0);
      if (const JsonValue* reason = choice.FindNonNull("finish_reason")) finish = reason->text();
      const JsonValue* list = Member(choice, "delta").Find("tool_calls");
      if (list == nullptr) continue;
      ++num_chunks;
      for (const JsonValue& part : list->items()) {
        const auto index = static_cast<size_t>(*Member(part, "index").AsInt64());
        const JsonValue& function = Member(part, "function");
        if (index == calls.size()) {
          EXPECT_EQ(Member(part, "id").text().substr(0, 5), "call_");
          EXPECT_EQ(Member(part, "type").text(), "function");
          calls.push_back(Member(function, "name").text() + " ");
        } else {
          EXPECT_EQ(part.Find("id"), nullptr);
          EXPECT_EQ(function.Find("name"), nullptr);
        }
        calls.at(index) += Member(function, "arguments").text();
      }
    }
    std::string out;
    for (const std::string& call : calls) out += call + ";";
    return out;
  }
};

TEST_F(ApiToolsTest, AnswersWithCalls) {
  const auto answer = Ask("");
  Say(0,
      {RequestAccepted{}, Tokens(std::string("Let me.") + kOpen + kLook + kNow + kClose), Eos(),
       RequestEnded{}},
      *answer);
  const JsonValue choice = Choice(*answer);
  EXPECT_EQ(Member(choice, "finish_reason").text(), "tool_calls");
  EXPECT_TRUE(Member(choice, "stop_reason").is_null());
  const JsonValue& message = Member(choice, "message");
  EXPECT_EQ(Member(message, "content").text(), "Let me.");
  const auto& calls = Member(message, "tool_calls").items();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(Member(calls[0], "function").Dump(),
            R"({"name": "look", "arguments": "{\"q\": \"x\\ny\"}"})");
  EXPECT_EQ(Member(calls[1], "function").Dump(), R"({"name": "now", "arguments": "{}"})");
  EXPECT_EQ(Member(calls[0], "type").text(), "function");
  const std::string& id = Member(calls[0], "id").text();
  EXPECT_EQ(id.size(), 5u + 24);
  EXPECT_EQ(id.find_first_not_of("0123456789abcdef", 5), std::string::npos);
  EXPECT_NE(id, Member(calls[1], "id").text());
}

TEST_F(ApiToolsTest, StreamsCallsTokenByToken) {
  const auto answer = Ask(R"("stream": true)");
  Say(0, {RequestAccepted{}}, *answer);
  const TokensEmitted all = Tokens(std::string("Hm.") + kOpen + kLook + kNow + kClose);
  for (const TokenRecord& record : all.tokens) {
    TokensEmitted one;
    one.tokens = {record};
    Say(0, {one}, *answer);
  }
  Say(0, {Eos(), RequestEnded{}}, *answer);
  std::string finish;
  int num_chunks = 0;
  EXPECT_EQ(Streamed(*answer, finish, num_chunks), "look {\"q\": \"x\\ny\"};now {};");
  EXPECT_EQ(finish, "tool_calls");
  EXPECT_GT(num_chunks, 4);
  EXPECT_LT(num_chunks, static_cast<int>(all.tokens.size()));
}

TEST_F(ApiToolsTest, StreamsAStepInOneChunk) {
  const auto answer = Ask(R"("stream": true)");
  Say(0, {RequestAccepted{}, Tokens(std::string(kOpen) + kLook + kNow + kClose), Eos()}, *answer);
  Say(0, {RequestEnded{}}, *answer);
  std::string finish;
  int num_chunks = 0;
  EXPECT_EQ(Streamed(*answer, finish, num_chunks), "look {\"q\": \"x\\ny\"};now {};");
  EXPECT_EQ(num_chunks, 1);
}

TEST_F(ApiToolsTest, KeepsTheReasonOfAnAnswerThatWasCut) {
  const ChoiceFinished length = {.choice = 0, .reason = FinishReason::kLength};
  const std::string cut = std::string(kOpen) + "<｜DSML｜invoke name=\"look\">\n";
  const auto whole = Ask("");
  Say(0, {RequestAccepted{}, Tokens(cut), length, RequestEnded{}}, *whole);
  EXPECT_EQ(Member(Choice(*whole), "finish_reason").text(), "length");
  EXPECT_EQ(Member(Member(Choice(*whole), "message"), "content").text(), cut);
  EXPECT_EQ(Member(Choice(*whole), "message").Find("tool_calls"), nullptr);
  const auto stream = Ask(R"("stream": true)");
  Say(1, {RequestAccepted{}, Tokens(cut), length, RequestEnded{}}, *stream);
  std::string finish;
  int num_chunks = 0;
  EXPECT_EQ(Streamed(*stream, finish, num_chunks), "look ;");
  EXPECT_EQ(finish, "length");
}

TEST_F(ApiToolsTest, ChoiceNoneKeepsTheToolsAndBansTheMarker) {
  Ask("");
  const auto answer = Ask(R"("tool_choice": "none")");
  EXPECT_EQ(*Request(1).prompt, *Request(0).prompt);
  EXPECT_TRUE(Request(0).sampling.bad_words.empty());
  EXPECT_EQ(Request(1).sampling.bad_words, (std::vector<std::vector<int32_t>>{{markup_.dsml}}));
  Say(1, {RequestAccepted{}, Tokens(std::string(kOpen) + kNow + kClose), Eos(), RequestEnded{}},
      *answer);
  EXPECT_EQ(Member(Member(Choice(*answer), "message"), "content").text(),
            std::string(kOpen) + kNow + kClose);
  EXPECT_EQ(Member(Choice(*answer), "finish_reason").text(), "stop");
}

TEST_F(ApiToolsTest, StopsAfterOneCallWhenAsked) {
  const auto answer = Ask(R"("parallel_tool_calls": false)");
  Say(0, {RequestAccepted{}, Tokens(std::string(kOpen) + kLook + kNow)}, *answer);
  EXPECT_EQ(dispatcher_.cancelled.size(), 1u);
  Say(0, {RequestEnded{}}, *answer);
  EXPECT_EQ(Member(Choice(*answer), "finish_reason").text(), "tool_calls");
  EXPECT_EQ(Member(Member(Choice(*answer), "message"), "tool_calls").items().size(), 1u);
  // The token that completed the call is the last one that counts.
  const auto counted = Tokens(std::string(kOpen) + kLook).tokens.size();
  EXPECT_EQ(Member(Member(Json(answer->body), "usage"), "completion_tokens").AsInt64(),
            static_cast<int64_t>(counted));
}

TEST_F(ApiToolsTest, ForcesANamedCall) {
  const auto answer =
      Ask(R"("max_tokens": 100, "tool_choice": {"type": "function", "function": {"name": "now"}})");
  Ask("");
  EXPECT_EQ(*Request(0).prompt, *Request(1).prompt);
  EXPECT_TRUE(Request(1).masks.IsEmpty());
  const MaskRules& masks = Request(0).masks;
  const std::string prefix = std::string(kOpen) + "<｜DSML｜invoke name=\"now\">\n";
  EXPECT_EQ(TextOf(masks.forced_prefix, 0), prefix);
  EXPECT_NE(masks.grammar.find("start: body0 rest\n"), std::string::npos) << masks.grammar;
  EXPECT_EQ(masks.grammar.find("look"), std::string::npos) << "no other tool may follow";
  EXPECT_FALSE(masks.starts_in_reasoning);
  EXPECT_TRUE(masks.reasoning_bans.empty());
  EXPECT_EQ(Request(0).finish.max_tokens, 100);
  EXPECT_EQ(Request(0).finish.stop_tokens, (std::vector<int32_t>{markup_.eos}));
  Say(0,
      {RequestAccepted{}, Tokens(prefix + "</｜DSML｜invoke>\n" + kClose), Eos(), RequestEnded{}},
      *answer);
  EXPECT_EQ(Member(Choice(*answer), "finish_reason").text(), "tool_calls");
  const JsonValue call = Member(Member(Choice(*answer), "message"), "tool_calls").items().at(0);
  EXPECT_EQ(Member(call, "function").Dump(), R"({"name": "now", "arguments": "{}"})");
}

TEST_F(ApiToolsTest, RequiresACallBehindTheReasoning) {
  Ask(R"("tool_choice": "required", "n": 2, "logprobs": true, "presence_penalty": 1)",
      /*thinks=*/true);
  ASSERT_EQ(dispatcher_.submitted.size(), 1u);
  const MaskRules& masks = Request(0).masks;
  EXPECT_TRUE(masks.starts_in_reasoning);
  EXPECT_EQ(masks.reasoning_bans, (std::vector<int32_t>{markup_.eos, markup_.dsml}));
  EXPECT_EQ(TextOf(masks.forced_prefix, 0), std::string(kOpen) + "<｜DSML｜invoke name=\"");
  EXPECT_NE(masks.grammar.find("call: call0 | call1\n"), std::string::npos);
  EXPECT_NE(masks.grammar.find("call)*"), std::string::npos);
  Ask(R"("tool_choice": "required", "parallel_tool_calls": false)");
  EXPECT_EQ(Request(1).masks.grammar.find("call)*"), std::string::npos);
}

TEST_F(ApiToolsTest, RefusesAnUnknownTool) {
  const auto unknown = Ask(R"("tool_choice": {"type": "function", "function": {"name": "no"}})");
  EXPECT_NE(unknown->body.find("does not match any of the specified `tools`"), std::string::npos);
  EXPECT_TRUE(dispatcher_.submitted.empty());
}

TEST_F(ApiToolsTest, EndsTheReasoningAtItsBudgetWhereThatIsHonoured) {
  const std::string members = R"("thinking_token_budget": 2, "max_tokens": 9)";
  Ask(members, /*thinks=*/true);
  EXPECT_TRUE(Request(0).masks.IsEmpty()) << "off unless the server honours it";
  config_.honours_thinking_budget = true;
  Ask(members, /*thinks=*/true);
  EXPECT_EQ(Request(1).masks.thinking_budget, 2);
  EXPECT_TRUE(Request(1).masks.starts_in_reasoning);
  EXPECT_TRUE(Request(1).masks.reasoning_bans.empty()) << "the model may still end by itself";
  EXPECT_EQ(Request(1).finish.max_tokens, 9);
  Ask(members);
  EXPECT_TRUE(Request(2).masks.IsEmpty()) << "there is no reasoning";
}

TEST_F(ApiToolsTest, HoldsTheReasoningOfAStreamUntilItEnds) {
  const auto answer = Ask(R"("stream": true, "stream_reasoning": false)", /*thinks=*/true);
  Say(0, {RequestAccepted{}, Tokens("one ")}, *answer);
  Say(0, {Tokens("two</think>")}, *answer);
  EXPECT_EQ(answer->body.find("reasoning_content"), std::string::npos);
  Say(0, {Tokens("yes"), Eos(), RequestEnded{}}, *answer);
  EXPECT_NE(answer->body.find("\"reasoning_content\":\"one two\""), std::string::npos);
  const auto cut = Ask(R"("stream": true, "stream_reasoning": false)", /*thinks=*/true);
  Say(1,
      {RequestAccepted{}, Tokens("one two"), ChoiceFinished{.reason = FinishReason::kLength},
       RequestEnded{}},
      *cut);
  EXPECT_NE(cut->body.find("\"reasoning_content\":\"one two\""), std::string::npos);
}

TEST_F(ApiToolsTest, StopsInsideACall) {
  const auto answer = Ask(R"("stop": ["STOP"])");
  const std::string text = std::string(kOpen) + kNow +
                           "<｜DSML｜invoke name=\"look\">\n<｜DSML｜parameter name=\"q\" "
                           "string=\"true\">aSTOPb";
  Say(0, {RequestAccepted{}, Tokens(text)}, *answer);
  Say(0, {RequestEnded{}}, *answer);
  EXPECT_EQ(Member(Choice(*answer), "finish_reason").text(), "tool_calls");
  EXPECT_EQ(Member(Choice(*answer), "stop_reason").text(), "STOP");
  EXPECT_EQ(Member(Member(Choice(*answer), "message"), "tool_calls").items().size(), 1u);
}

TEST_F(ApiToolsTest, TruncatesPromptsOnRequest) {
  Ask("");
  const std::vector<int32_t>& whole = *Request(0).prompt;
  const auto end_of = [&](size_t count) {
    return std::vector<int32_t>(whole.end() - static_cast<ptrdiff_t>(count), whole.end());
  };
  Ask(R"("truncate_prompt_tokens": 7)");
  EXPECT_EQ(*Request(1).prompt, end_of(7));
  Ask(R"("truncate_prompt_tokens": 9999)");
  EXPECT_EQ(*Request(2).prompt, whole);
  Ask(R"("truncate_prompt_tokens": -1, "max_tokens": 4000)");
  EXPECT_EQ(*Request(3).prompt, end_of(96));
  EXPECT_EQ(Ask(R"("truncate_prompt_tokens": 0)")->status, 400);
  Post("/v1/completions",
       R"({"prompt": [5, 6, 7], "truncate_prompt_tokens": 2, "max_tokens": 1, "echo": true})");
  EXPECT_EQ(*Request(4).prompt, (std::vector<int32_t>{6, 7}));
}

TEST_F(ApiToolsTest, TakesAPromptAsIdsAndShowsIt) {
  const auto answer = Post("/v1/chat/completions",
                           R"({"prompt_token_ids": [5, 6, 128822], "return_token_ids": true})");
  EXPECT_EQ(*Request(0).prompt, (std::vector<int32_t>{5, 6, 128822}));
  Say(0, {RequestAccepted{}, Tokens("a"), Eos(), RequestEnded{}}, *answer);
  EXPECT_EQ(Member(Json(answer->body), "prompt_token_ids").Dump(), "[5, 6, 128822]");
  const auto stream =
      Post("/v1/chat/completions",
           R"({"prompt_token_ids": [5], "return_token_ids": true, "stream": true})");
  Say(1, {RequestAccepted{}, Tokens("a"), Eos(), RequestEnded{}}, *stream);
  EXPECT_EQ(Member(Json(Events(stream->body).at(0)), "prompt_token_ids").Dump(), "[5]");
  EXPECT_EQ(Json(Events(stream->body).at(1)).Find("prompt_token_ids"), nullptr);
  EXPECT_EQ(Post("/v1/chat/completions", R"({"prompt_token_ids": []})")->status, 400);
}

TEST_F(ApiToolsTest, EchoesAContinuedMessage) {
  for (const bool is_stream : {false, true}) {
    const auto answer = Post(
        "/v1/chat/completions",
        absl::StrFormat(R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", )"
                        R"("content": "One", "prefix": true}], "echo": true, "stream": %s, )"
                        R"("reasoning_effort": "none"})",
                        is_stream ? "true" : "false"));
    Say(dispatcher_.submitted.size() - 1,
        {RequestAccepted{}, Tokens(" two"), Eos(), RequestEnded{}}, *answer);
    std::string text;
    if (!is_stream) text = Member(Member(Choice(*answer), "message"), "content").text();
    for (const std::string& event : is_stream ? Events(answer->body) : std::vector<std::string>()) {
      if (event == "[DONE]") continue;
      const JsonValue chunk = Json(event);
      const JsonValue& delta = Member(Member(chunk, "choices").items().at(0), "delta");
      if (const JsonValue* content = delta.Find("content")) text += content->text();
    }
    EXPECT_EQ(text, "One two");
  }
}

TEST_F(ApiToolsTest, CountsWhatBecameOfTheMarkup) {
  const std::string texts[] = {"plain", std::string(kOpen) + kNow + kClose,
                               std::string(kOpen) + kNow + "junk" + kClose,
                               std::string(kOpen) + "junk", std::string(kOpen) + kNow};
  const size_t outcomes[] = {0, 1, 2, 3, 4};
  for (size_t i = 0; i < std::size(texts); ++i) {
    const auto answer = Ask("");
    Say(i, {RequestAccepted{}, Tokens(texts[i]), Eos(), RequestEnded{}}, *answer);
    EXPECT_EQ(api_->dsml_counts().choices[outcomes[i]], 1u) << texts[i];
  }
}

// The text of a turn that comes again is not tokenized again.
TEST_F(ApiToolsTest, TokenizesTheHistoryOnce) {
  Ask("");
  const uint64_t misses = api_->run_cache().misses();
  EXPECT_GT(misses, 0u);
  Ask("");
  EXPECT_EQ(api_->run_cache().misses(), misses);
  EXPECT_EQ(*Request(0).prompt, *Request(1).prompt);
}

// A conversation comes back as JSON with other spacing: the prompt holds what was sampled.
TEST_F(ApiToolsTest, ReplaysTheSampledBlock) {
  const auto answer = Ask("");
  const std::string block =
      std::string(kOpen) +
      "<｜DSML｜invoke name=\"look\">\n<｜DSML｜parameter name=\"q\" string=\"false\">[1,  2.50]"
      "</｜DSML｜parameter>\n</｜DSML｜invoke>\n" +
      kClose;
  Say(0, {RequestAccepted{}, Tokens("So:" + block), Eos(), RequestEnded{}}, *answer);
  const JsonValue choice = Choice(*answer);
  const JsonValue& call = Member(Member(choice, "message"), "tool_calls").items().at(0);
  const std::string& id = Member(call, "id").text();
  const auto back = [&](const std::string& call_id) {
    Post("/v1/chat/completions",
         absl::StrFormat(
             R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": )"
             R"("So:", "tool_calls": [{"id": "%s", "type": "function", "function": {"name": )"
             R"("look", "arguments": "{\"q\":[1,2.5]}"}}]}, {"role": "tool", "tool_call_id": )"
             R"("%s", "content": "r"}], %s, "chat_template_kwargs": {"thinking": false}})",
             call_id, call_id, kTools));
    return TextOf(*dispatcher_.submitted.back().request.prompt, Request(0).prompt->size());
  };
  EXPECT_EQ(back(id).substr(0, 3 + block.size()), "So:" + block);
  EXPECT_NE(back("call_other").substr(0, 3 + block.size()), "So:" + block);
  // The very tokens, too: all pages of the turn before are found again.
  back(id);
  const std::vector<int32_t>& prompt = *dispatcher_.submitted.back().request.prompt;
  std::vector<int32_t> sampled = *Request(0).prompt;
  for (const TokenRecord& record : Tokens("So:" + block).tokens) sampled.push_back(record.token);
  ASSERT_GT(prompt.size(), sampled.size());
  EXPECT_TRUE(std::equal(sampled.begin(), sampled.end(), prompt.begin()));
}

}  // namespace
}  // namespace baton::router
