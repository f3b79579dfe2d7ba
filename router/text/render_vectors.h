#pragma once

#include "router/text/chat_encoder.h"
#include "router/text/json_value.h"

// vectors/chat/render_encoder.json writes messages and options as the checkpoint's encoder takes
// them; for tests. A member of another type than the encoder's reads as absent.
namespace baton::router {

ChatMessage VectorMessage(const JsonValue& message);
// From a case: `profile` and `options`.
ChatOptions VectorOptions(const JsonValue& item);

}  // namespace baton::router
