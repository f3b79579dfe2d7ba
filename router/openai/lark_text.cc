#include "router/openai/lark_text.h"

namespace baton::router {

std::string LarkLiteral(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

std::string LarkRegex(std::string_view regex) {
  std::string out;
  for (size_t i = 0; i < regex.size(); ++i) {
    const bool is_escape = regex[i] == '\\' && i + 1 < regex.size();
    const char c = is_escape ? regex[++i] : regex[i];
    if (c == '\n') {
      out += "\\n";  // lark ends at a line's end
    } else if (is_escape || c == '/') {
      out += '\\';
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

std::string LarkSchema(const JsonValue& schema) {
  // As json.dumps writes, which the model was trained on: with white space at will it may write
  // nothing else until the limit.
  std::string out = R"({"x-guidance": {"whitespace_flexible": false, "item_separator": ", ", )"
                    R"("key_separator": ": "})";
  for (const auto& [key, value] : schema.members()) {
    if (key == "x-guidance") continue;
    out += ", ";
    AppendJsonString(key, out);
    out += ": ";
    value.DumpTo(out);
  }
  return out + "}";
}

}  // namespace baton::router
