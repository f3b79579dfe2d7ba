#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/openai/chat_messages.h"
#include "router/openai/responses_request.h"
#include "router/openai/tool_choice.h"

namespace baton::router {
namespace {

const TextSealer kSealer("a secret that seeds may have been sealed with");

// Any bytes as a body of /v1/responses: refused with 400, or translated into a chat's JSON, which
// the chat refuses with 400 or takes. (Nesting that the translation pushes over the parser's limit
// is refused as well.)
int TranslateOne(const uint8_t* data, size_t size) {
  const auto body = JsonValue::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok() || !body->is_object()) return 0;
  const auto response = TranslateResponses(*body, kSealer);
  if (!response.ok()) {
    CHECK(response.error().http_status == 400 && !response.error().message.empty());
    return 0;
  }
  const auto chat = JsonValue::Parse(response->chat);
  if (!chat.ok()) {
    CHECK(chat.status().message().find("levels") != std::string::npos);
    return 0;
  }
  CHECK(chat->is_object());
  CHECK(JsonValue::Parse(response->echo.tools).ok());
  CHECK(JsonValue::Parse(response->echo.format).ok());
  const auto input = ParseChatInput(*chat, {});
  CHECK(input.ok() ? !input->messages.empty() : input.error().http_status == 400);
  const auto tools = ParseToolRequest(*chat);
  CHECK(tools.ok() || tools.error().http_status == 400);
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::TranslateOne(data, size);
}
