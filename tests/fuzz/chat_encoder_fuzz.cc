#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/openai/chat_messages.h"
#include "router/openai/generate_params.h"
#include "router/openai/tool_choice.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

// Any bytes as a chat's or completion's body: refused with 400, or rendered into a prompt that
// starts with bos and whose caller texts stay plain.
int EncodeOne(const uint8_t* data, size_t size) {
  const Tokenizer& tokenizer = RealTokenizer();
  static const ChatEncoder encoder = *ChatEncoder::Create(tokenizer);
  const auto body = JsonValue::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok()) return 0;
  for (const auto kind : {CompletionKind::kChat, CompletionKind::kText}) {
    const auto params = ParseGenerateParams(*body, kind, tokenizer, /*eos=*/1);
    CHECK(params.ok() || params.error().http_status == 400);
  }
  const auto tools = ParseToolRequest(*body);
  CHECK(tools.ok() || tools.error().http_status == 400);
  const auto input = ParseChatInput(*body, {});
  if (!input.ok()) {
    CHECK(input.error().http_status == 400);
    return 0;
  }
  const auto segments = encoder.Encode(input->messages, input->options);
  CHECK(segments.ok());
  const auto ids = tokenizer.EncodeSegments(*segments);
  CHECK(!ids.empty() && ids[0] == tokenizer.IdOf("<｜begin▁of▁sentence｜>"));
  CHECK(tokenizer.Decode(ids, false) == tokenizer.ToText(*segments));
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::EncodeOne(data, size);
}
