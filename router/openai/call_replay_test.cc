#include "router/openai/call_replay.h"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace baton::router {
namespace {

SampledBlock BlockOf(const std::string& text) { return {.text = text, .tokens_at = {1}}; }

std::vector<ParsedCall> Calls() {
  return {{.name = "f", .arguments = R"({"a": 1.50, "b": [1,2]})", .is_complete = true},
          {.name = "g", .arguments = "{}", .is_complete = true}};
}

std::vector<ChatMessage> MessageWith(std::vector<ChatToolCall> calls) {
  return {{.role = ChatRole::kUser, .content = "q"},
          {.role = ChatRole::kAssistant, .tool_calls = std::move(calls)}};
}

class CallReplayTest : public testing::Test {
 protected:
  // The text that the message would be rendered with; empty: its JSON.
  std::string Restored(std::vector<ChatToolCall> calls) {
    std::vector<ChatMessage> messages = MessageWith(std::move(calls));
    replay_.Restore(messages);
    EXPECT_TRUE(messages[0].sampled_calls.text.empty());
    return messages[1].sampled_calls.text;
  }

  ManualClock clock_;
  CallReplay replay_{clock_, {.max_bytes = 8192, .max_age = absl::Hours(1)}};
};

TEST_F(CallReplayTest, RestoresABlockWhoseCallsComeBackEqual) {
  replay_.Keep({"x", "y"}, Calls(), BlockOf("<block"));
  EXPECT_EQ(Restored({{"x", "f", R"({"b":[1, 2],"a":1.5})"}, {"y", "g", "{}"}}), "<block");
}

TEST_F(CallReplayTest, RendersTheJsonOfCallsThatDiffer) {
  replay_.Keep({"x", "y"}, Calls(), BlockOf("<block"));
  const std::string arguments = R"({"a": 1.50, "b": [1,2]})";
  EXPECT_EQ(Restored({{"x", "f", arguments}}), "") << "one call less";
  EXPECT_EQ(Restored({{"y", "g", "{}"}, {"x", "f", arguments}}), "") << "another order";
  EXPECT_EQ(Restored({{"x", "F", arguments}, {"y", "g", "{}"}}), "") << "another name";
  EXPECT_EQ(Restored({{"x", "f", R"({"a": 1.51, "b": [1,2]})"}, {"y", "g", "{}"}}), "");
  EXPECT_EQ(Restored({{"x", "f", R"({"a": 1.50, "b": [2,1]})"}, {"y", "g", "{}"}}), "");
  EXPECT_EQ(Restored({{"x", "f", "no JSON"}, {"y", "g", "{}"}}), "");
  EXPECT_EQ(Restored({{"z", "f", arguments}, {"y", "g", "{}"}}), "") << "an unknown id";
  EXPECT_EQ(Restored({{"", "f", arguments}}), "");
}

TEST_F(CallReplayTest, RestoresABlockOncePerRequest) {
  replay_.Keep({"x", "y"}, Calls(), BlockOf("<block"));
  const std::vector<ChatToolCall> calls = {{"x", "f", Calls()[0].arguments}, {"y", "g", "{}"}};
  std::vector<ChatMessage> messages(3, MessageWith(calls)[1]);
  replay_.Restore(messages);
  EXPECT_EQ(messages[0].sampled_calls.text, "<block");
  EXPECT_EQ(messages[1].sampled_calls.text, "");
  EXPECT_EQ(messages[2].sampled_calls.text, "");
}

TEST_F(CallReplayTest, ForgetsAfterItsAge) {
  replay_.Keep({"x", "y"}, Calls(), BlockOf("<block"));
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(Restored({{"x", "f", Calls()[0].arguments}, {"y", "g", "{}"}}), "<block");
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Restored({{"x", "f", Calls()[0].arguments}, {"y", "g", "{}"}}), "");
  EXPECT_EQ(replay_.bytes(), 0u);
}

TEST_F(CallReplayTest, DropsWhatWasUsedLeastRecently) {
  const std::vector<ParsedCall> call = {{.name = "f", .arguments = "{}", .is_complete = true}};
  const std::string text(1000, 'x');
  for (const char* id : {"a", "b", "c", "d", "e"}) replay_.Keep({id}, call, BlockOf(text));
  EXPECT_EQ(Restored({{"a", "f", "{}"}}), text);
  replay_.Keep({"f"}, call, BlockOf(text));
  EXPECT_EQ(Restored({{"b", "f", "{}"}}), "");
  EXPECT_EQ(Restored({{"a", "f", "{}"}}), text);
  EXPECT_EQ(Restored({{"f", "f", "{}"}}), text);
  EXPECT_LE(replay_.bytes(), 8192u);
}

TEST_F(CallReplayTest, DoesNotKeepWhatWouldPushEverythingOut) {
  const std::vector<ParsedCall> call = {{.name = "f", .arguments = "{}", .is_complete = true}};
  replay_.Keep({"a"}, call, BlockOf(std::string(3000, 'x')));
  EXPECT_EQ(replay_.bytes(), 0u);
}

}  // namespace
}  // namespace baton::router
