#pragma once

#include <optional>
#include <string>
#include <vector>

#include "router/openai/api_error.h"
#include "router/text/chat_encoder.h"
#include "router/text/json_value.h"

namespace baton::router {

// What the server decides about chats where a request is silent (protocol.md 2.8).
struct ChatDefaults {
  EffortProfile profile = EffortProfile::k0731;
  bool is_thinking = true;
  bool inject_response_format = true;
  bool is_developer_native = false;  // --developer-role=native: a user turn, not a system message
};

// The encoder's input, ready for ChatEncoder::Encode.
struct ChatInput {
  std::vector<ChatMessage> messages;
  ChatOptions options;
};

// `response_format` (protocol.md 5.4); `schema` lies in the body and is null but for json_schema.
struct ResponseFormat {
  bool is_json_object = false;
  const JsonValue* schema = nullptr;
};
ApiResult<ResponseFormat> ParseResponseFormat(const JsonValue& body);

// From the body of /v1/chat/completions, an object: messages, tools, response_format, task,
// thinking, reasoning_effort, chat_template_kwargs, continue_final_message, add_generation_prompt
// (protocol.md 2.8). Other members are not looked at. Errors are 400 with the member's path. Pure;
// any thread.
ApiResult<ChatInput> ParseChatInput(const JsonValue& body, const ChatDefaults& defaults);

// `messages` alone, before the rules that need the rest of the body. Late system messages are user
// messages already (2.8.4).
ApiResult<std::vector<ChatMessage>> ParseChatMessages(const JsonValue& messages,
                                                      const ChatDefaults& defaults);

// What one request says about thinking, on whichever surface (2.8.9).
struct ThinkingRequest {
  std::optional<bool> template_thinking{};  // chat_template_kwargs: thinking or enable_thinking
  std::optional<bool> thinking{};           // top-level; Anthropic's thinking.type
  std::optional<bool> drop_thinking{};      // chat_template_kwargs
  std::optional<std::string> level{};  // reasoning_effort, output_config.effort, reasoning.effort
  std::string level_path = "reasoning_effort";  // where `level` stood, for the error
};

// The precedence and the effort table of 2.8.9. 400 for an unknown level.
ApiResult<ChatOptions> ResolveThinking(const ThinkingRequest& request,
                                       const ChatDefaults& defaults);

// Thinking on or off and the encoder's effort from a chat body (2.8.9).
ApiResult<ChatOptions> ParseThinking(const JsonValue& body, const ChatDefaults& defaults);

}  // namespace baton::router
