#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "router/text/tokenizer.h"
#include "router/text/tool_call_parser.h"

namespace baton::router {

enum class ChatRole { kSystem, kUser, kDeveloper, kAssistant, kTool, kLatestReminder };

struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text, as received
};

// One message as the checkpoint's encoder takes it (protocol.md 2.1). Texts are the caller's,
// verbatim.
struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content{};
  std::string reasoning{};                 // assistant
  std::vector<ChatToolCall> tool_calls{};  // assistant
  SampledBlock sampled_calls{};            // the same calls as they were sampled (2.6), if known
  std::string tool_call_id{};              // tool
  std::vector<std::string> tools{};  // system, developer: each tool's `function`, JSON as in 2.3
  std::optional<std::string> response_format{};  // system, developer: the schema, JSON as in 2.3
  std::string task{};                            // empty, or a name of 2.5
};

enum class EffortProfile { kPreview, k0731 };  // of the checkpoint (2.4)
enum class Effort { kUnset, kLow, kHigh, kMax };

struct ChatOptions {
  bool is_thinking = true;
  Effort effort = Effort::kUnset;
  EffortProfile profile = EffortProfile::k0731;
  bool drop_thinking = true;  // 2.2; any tools switch it off
  bool add_bos = true;
  bool continue_final = false;        // 2.8.8: the last message, an assistant's, is left open
  bool add_generation_prompt = true;  // false: without the last transition
  size_t num_context = 0;  // the first messages are encoded already: only what follows, no bos
};

// Messages to a prompt (protocol.md 2). Immutable; any thread.
class ChatEncoder {
 public:
  // kInvalidArgument names the template's token that the tokenizer lacks.
  static absl::StatusOr<ChatEncoder> Create(const Tokenizer& tokenizer);

  // Template tokens as Special, everything the caller wrote as Text (1.6). kInvalidArgument: no
  // messages, a developer message without content, an unknown task, preview with low effort, or
  // tool call arguments that are JSON but no object: the message then starts with "messages[i]", i
  // counted as passed in here.
  absl::StatusOr<std::vector<Segment>> Encode(const std::vector<ChatMessage>& messages,
                                              const ChatOptions& options) const;

  // The beginning of a block that calls `name`, up to behind its invoke tag; without a name up to
  // where the name begins (3.5).
  std::vector<Segment> CallPrefix(std::string_view name) const;

 private:
  friend class ChatRenderer;
  struct Tokens {
    TokenId bos, eos, user, assistant, latest_reminder, think_open, think_close, dsml;
    TokenId action, query, authority, domain, title, read_url;
  };
  ChatEncoder() = default;

  Tokens tokens_ = {};
  std::vector<Segment> tools_before_, tools_after_;  // the tools block around its schemas
  std::vector<Segment> calls_open_, calls_close_;
  std::vector<Segment> invoke_open_, invoke_close_;
  std::vector<Segment> parameter_open_, parameter_close_;
};

}  // namespace baton::router
