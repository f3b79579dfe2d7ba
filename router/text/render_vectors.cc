#include "router/text/render_vectors.h"

#include <map>

namespace baton::router {
namespace {

std::string TextOf(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.Find(key);
  return value == nullptr ? std::string() : value->text();
}

bool FlagOf(const JsonValue& object, std::string_view key, bool fallback) {
  const JsonValue* value = object.FindNonNull(key);
  return value == nullptr ? fallback : value->boolean();
}

// A tool's list of parts is joined by the encoder itself.
std::string ContentOf(const JsonValue& message) {
  const JsonValue* content = message.Find("content");
  if (content == nullptr || !content->is_array()) return TextOf(message, "content");
  std::string text;
  for (const JsonValue& part : content->items()) {
    if (&part != &content->items().front()) text += "\n\n";
    const std::string type = TextOf(part, "type");
    text += type == "text" ? TextOf(part, "text") : "[Unsupported " + type + "]";
  }
  return text;
}

ChatToolCall CallOf(const JsonValue& call) {
  ChatToolCall out = {.id = TextOf(call, "id"), .name = {}, .arguments = {}};
  if (const JsonValue* function = call.Find("function")) {
    out.name = TextOf(*function, "name");
    out.arguments = TextOf(*function, "arguments");
  }
  return out;
}

}  // namespace

ChatMessage VectorMessage(const JsonValue& message) {
  const std::map<std::string, ChatRole> roles = {
      {"system", ChatRole::kSystem},       {"user", ChatRole::kUser},
      {"developer", ChatRole::kDeveloper}, {"assistant", ChatRole::kAssistant},
      {"tool", ChatRole::kTool},           {"latest_reminder", ChatRole::kLatestReminder}};
  ChatMessage out;
  const auto role = roles.find(TextOf(message, "role"));
  if (role != roles.end()) out.role = role->second;
  out.content = ContentOf(message);
  out.reasoning = TextOf(message, "reasoning_content");
  out.tool_call_id = TextOf(message, "tool_call_id");
  out.task = TextOf(message, "task");
  if (const JsonValue* tools = message.FindNonNull("tools")) {
    for (const JsonValue& tool : tools->items()) {
      if (const JsonValue* function = tool.Find("function")) out.tools.push_back(function->Dump());
    }
  }
  if (const JsonValue* format = message.FindNonNull("response_format"))
    out.response_format = format->Dump();
  if (const JsonValue* calls = message.FindNonNull("tool_calls")) {
    for (const JsonValue& call : calls->items()) out.tool_calls.push_back(CallOf(call));
  }
  return out;
}

ChatOptions VectorOptions(const JsonValue& item) {
  const std::map<std::string, Effort> efforts = {
      {"low", Effort::kLow}, {"high", Effort::kHigh}, {"max", Effort::kMax}};
  ChatOptions options;
  options.profile =
      TextOf(item, "profile") == "preview" ? EffortProfile::kPreview : EffortProfile::k0731;
  const JsonValue* in = item.Find("options");
  if (in == nullptr) return options;
  options.is_thinking = TextOf(*in, "thinking_mode") == "thinking";
  const auto effort = efforts.find(TextOf(*in, "reasoning_effort"));
  if (effort != efforts.end()) options.effort = effort->second;
  options.drop_thinking = FlagOf(*in, "drop_thinking", true);
  options.add_bos = FlagOf(*in, "add_bos", true);
  return options;
}

}  // namespace baton::router
