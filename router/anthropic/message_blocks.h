#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"

// The messages of protocol.md 6.2, block by block. Pure; one thread.
namespace baton::router {

// Writes one JSON object, member by member; values are JSON already.
class JsonWriter {
 public:
  void Member(std::string_view key, std::string_view json);
  std::string Finish() { return (text_.empty() ? "{" : std::move(text_)) + "}"; }

 private:
  std::string text_;
};

// The text of a block of type "text". 400 with `path` in front.
ApiResult<std::string> TextBlock(const JsonValue& block, const std::string& path);

// The list `messages` of a chat, from Anthropic's.
class ChatMessagesJson {
 public:
  void Add(std::string_view role, std::string_view content);
  // One message may become several. `is_last`: an assistant's is then left open, a prefill.
  std::optional<ApiError> Translate(const JsonValue& message, const std::string& path,
                                    bool is_last);
  size_t text_bytes() const { return text_bytes_; }
  std::string Finish() { return (text_.empty() ? "[" : std::move(text_)) + "]"; }

 private:
  void Append(std::string_view json);
  std::optional<ApiError> TranslateUser(const JsonValue& content, const std::string& path);
  std::optional<ApiError> TranslateResult(const JsonValue& block, const std::string& path);
  std::optional<ApiError> TranslateAssistant(const JsonValue& content, const std::string& path,
                                             bool is_last);

  std::string text_;
  size_t text_bytes_ = 0;
};

}  // namespace baton::router
