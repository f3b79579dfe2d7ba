#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "router/text/json_value.h"
#include "router/text/tool_call_parser.h"

// The output machine run over a text instead of tokens, for tests and for the check of
// vectors/chat/parse.json: markup counts by its spelling.
namespace baton::router {

struct ParsedText {
  std::string reasoning, content;
  std::vector<ParsedCall> calls;  // complete ones
  std::string finish_reason;
  bool operator==(const ParsedText&) const = default;
};
std::ostream& operator<<(std::ostream& out, const ParsedText& parsed);

struct TextToParse {
  std::string_view text;
  bool starts_in_reasoning = false;
  const ToolSchemas* tools = nullptr;  // null: tools are off
  std::string_view finish = "stop";    // or "length"
};

// What a whole answer shows. `cuts`: ascending offsets at which the text is cut into pieces.
ParsedText ParseText(const TextToParse& in, std::span<const size_t> cuts);

// What the deltas of a stream add up to: calls that were opened count, complete or not. Equal to
// ParseText where every opened call is complete.
ParsedText ParseTextStreamed(const TextToParse& in, std::span<const size_t> cuts);

// `tools` of a request or of a vector.
ToolSchemas SchemasOf(const JsonValue* tools);

}  // namespace baton::router
