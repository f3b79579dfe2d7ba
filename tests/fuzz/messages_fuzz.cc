#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/anthropic/messages_request.h"
#include "router/openai/chat_messages.h"

namespace baton::router {
namespace {

// Any bytes as a body of /v1/messages: refused with 400, or translated into a chat's JSON, which
// the chat refuses with 400 or takes.
int TranslateOne(const uint8_t* data, size_t size) {
  const auto body = JsonValue::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok() || !body->is_object()) return 0;
  const auto chat = TranslateMessages(*body, /*needs_max_tokens=*/size % 2 == 0);
  if (!chat.ok()) {
    CHECK(chat.error().http_status == 400 && !chat.error().message.empty());
    return 0;
  }
  const auto parsed = JsonValue::Parse(chat->body);
  CHECK(parsed.ok() && parsed->is_object());
  CHECK(chat->text_bytes <= size);
  const auto input = ParseChatInput(*parsed, {});
  CHECK(input.ok() ? !input->messages.empty() : input.error().http_status == 400);
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::TranslateOne(data, size);
}
