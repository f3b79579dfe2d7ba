#include "router/openai/chat_messages.h"

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"

namespace baton::router {
namespace {

constexpr std::string_view kOnlyText = "Only text content is supported by this model";

ApiError TypeError(const std::string& path, std::string_view expected, const JsonValue* got) {
  const std::string_view kind = got == nullptr ? "nothing" : got->KindName();
  return BadRequest(absl::StrFormat("%s: expected %s, got %s", path, expected, kind), path);
}

bool IsTextPart(std::string_view type) {
  return type == "text" || type == "input_text" || type == "output_text";
}

// A member that is a string; absent and null are empty.
ApiResult<std::string> TextMember(const JsonValue& in, std::string_view key,
                                  const std::string& path) {
  const JsonValue* value = in.FindNonNull(key);
  if (value == nullptr) return std::string();
  if (!value->is_string()) return TypeError(absl::StrFormat("%s.%s", path, key), "string", value);
  return value->text();
}

ApiResult<std::optional<bool>> BoolMember(const JsonValue& in, std::string_view key,
                                          std::string_view prefix) {
  const JsonValue* value = in.FindNonNull(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return TypeError(absl::StrFormat("%s%s", prefix, key), "boolean", value);
  return std::optional<bool>(value->boolean());
}

// `content` as a string: text parts joined by an empty line. In a tool's content a part of another
// type is named instead of refused (protocol.md 2.1).
ApiResult<std::string> ContentText(const JsonValue* content, const std::string& path,
                                   bool is_tool) {
  if (content == nullptr || content->is_null()) return std::string();
  if (content->is_string()) return content->text();
  if (!content->is_array()) return TypeError(path, "string or array", content);
  std::string text;
  for (size_t i = 0; i < content->items().size(); ++i) {
    const JsonValue& part = content->items()[i];
    const std::string part_path = absl::StrFormat("%s[%d]", path, i);
    if (!part.is_object()) return TypeError(part_path, "object", &part);
    const JsonValue* type = part.Find("type");
    if (type == nullptr || !type->is_string())
      return TypeError(part_path + ".type", "string", type);
    if (i > 0) text += "\n\n";
    if (!IsTextPart(type->text())) {
      if (!is_tool) return BadRequest(std::string(kOnlyText), part_path);
      text += absl::StrFormat("[Unsupported %s]", type->text());
      continue;
    }
    const JsonValue* value = part.Find("text");
    if (value == nullptr || !value->is_string())
      return TypeError(part_path + ".text", "string", value);
    text += value->text();
  }
  return text;
}

// Arguments as JSON text: an object is accepted in place of its text.
ApiResult<std::string> ArgumentsText(const JsonValue* arguments, const std::string& path) {
  if (arguments == nullptr || arguments->is_null()) return std::string("{}");
  if (arguments->is_object()) return arguments->Dump();
  const ApiError not_object = BadRequest(path + " must be a JSON object", path);
  if (!arguments->is_string()) return not_object;
  const absl::StatusOr<JsonValue> parsed = JsonValue::Parse(arguments->text());
  if (parsed.ok() && !parsed->is_object()) return not_object;
  return arguments->text();
}

ApiResult<std::vector<ChatToolCall>> ToolCalls(const JsonValue& message, const std::string& path) {
  std::vector<ChatToolCall> calls;
  const JsonValue* list = message.FindNonNull("tool_calls");
  if (list == nullptr) return calls;
  if (!list->is_array()) return TypeError(path + ".tool_calls", "array", list);
  for (size_t i = 0; i < list->items().size(); ++i) {
    const JsonValue& item = list->items()[i];
    const std::string item_path = absl::StrFormat("%s.tool_calls[%d]", path, i);
    const JsonValue* function = item.Find("function");
    if (function == nullptr || !function->is_object()) {
      return TypeError(item_path + ".function", "object", function);
    }
    const JsonValue* name = function->Find("name");
    if (name == nullptr || !name->is_string()) {
      return TypeError(item_path + ".function.name", "string", name);
    }
    ApiResult<std::string> id = TextMember(item, "id", item_path);
    if (!id.ok()) return id.error();
    ApiResult<std::string> arguments =
        ArgumentsText(function->Find("arguments"), item_path + ".function.arguments");
    if (!arguments.ok()) return arguments.error();
    calls.push_back({.id = *id, .name = name->text(), .arguments = *arguments});
  }
  return calls;
}

std::optional<ChatRole> RoleOf(std::string_view name, const ChatDefaults& defaults) {
  if (name == "system") return ChatRole::kSystem;
  if (name == "user") return ChatRole::kUser;
  if (name == "assistant") return ChatRole::kAssistant;
  if (name == "tool" || name == "function") return ChatRole::kTool;
  if (name == "latest_reminder") return ChatRole::kLatestReminder;
  if (name != "developer") return std::nullopt;
  return defaults.is_developer_native ? ChatRole::kDeveloper : ChatRole::kSystem;
}

ApiResult<std::string> ReasoningOf(const JsonValue& message, const std::string& path) {
  const bool has_content = message.FindNonNull("reasoning_content") != nullptr;
  return TextMember(message, has_content ? "reasoning_content" : "reasoning", path);
}

ApiResult<ChatMessage> ParseMessage(const JsonValue& message, const std::string& path,
                                    const ChatDefaults& defaults) {
  if (!message.is_object()) return TypeError(path, "object", &message);
  const JsonValue* role = message.Find("role");
  if (role == nullptr || !role->is_string()) return TypeError(path + ".role", "string", role);
  const std::optional<ChatRole> known = RoleOf(role->text(), defaults);
  if (!known) {
    return BadRequest(absl::StrFormat("%s.role: unknown role \"%s\"", path, role->text()),
                      path + ".role");
  }
  ChatMessage out;
  out.role = *known;
  const JsonValue* content = message.FindNonNull("content");
  if (content == nullptr && out.role == ChatRole::kUser) {
    return BadRequest(path + ".content must not be null", path + ".content");
  }
  ApiResult<std::string> text =
      ContentText(content, path + ".content", out.role == ChatRole::kTool);
  if (!text.ok()) return text.error();
  out.content = *std::move(text);
  if (out.role == ChatRole::kDeveloper && out.content.empty()) {
    return BadRequest(path + ".content must not be empty", path + ".content");
  }
  ApiResult<std::string> call_id = TextMember(message, "tool_call_id", path);
  if (!call_id.ok()) return call_id.error();
  out.tool_call_id = *std::move(call_id);
  if (out.role != ChatRole::kAssistant) return out;
  ApiResult<std::string> reasoning = ReasoningOf(message, path);
  if (!reasoning.ok()) return reasoning.error();
  out.reasoning = *std::move(reasoning);
  ApiResult<std::vector<ChatToolCall>> calls = ToolCalls(message, path);
  if (!calls.ok()) return calls.error();
  out.tool_calls = *std::move(calls);
  return out;
}

// The system message that tools and response format hang on, made if absent (2.8.5, 2.8.7).
ChatMessage& FirstSystem(std::vector<ChatMessage>& messages) {
  if (messages.front().role != ChatRole::kSystem) {
    messages.emplace(messages.begin())->role = ChatRole::kSystem;
  }
  return messages.front();
}

std::optional<ApiError> AttachTools(const JsonValue& body, std::vector<ChatMessage>& messages) {
  const JsonValue* tools = body.FindNonNull("tools");
  if (tools == nullptr) return std::nullopt;
  if (!tools->is_array()) return TypeError("tools", "array", tools);
  if (tools->items().empty()) {
    return BadRequest(
        "`tools` must not be an empty array. Either provide at least one tool or omit the field "
        "entirely.",
        "tools");
  }
  std::vector<std::string> schemas;
  for (size_t i = 0; i < tools->items().size(); ++i) {
    const JsonValue* function = tools->items()[i].Find("function");
    if (function == nullptr || !function->is_object()) {
      return TypeError(absl::StrFormat("tools[%d].function", i), "object", function);
    }
    schemas.push_back(function->Dump());
  }
  FirstSystem(messages).tools = std::move(schemas);
  return std::nullopt;
}

std::optional<ApiError> AttachResponseFormat(const JsonValue& body, const ChatDefaults& defaults,
                                             std::vector<ChatMessage>& messages) {
  ApiResult<ResponseFormat> format = ParseResponseFormat(body);
  if (!format.ok()) return format.error();
  if (format->schema != nullptr && defaults.inject_response_format)
    FirstSystem(messages).response_format = format->schema->Dump();
  return std::nullopt;
}

std::optional<ApiError> AttachTask(const JsonValue& body, std::vector<ChatMessage>& messages) {
  const JsonValue* task = body.FindNonNull("task");
  if (task == nullptr) return std::nullopt;
  if (!task->is_string()) return TypeError("task", "string", task);
  constexpr std::array<std::string_view, 6> kTasks = {"action", "query", "authority",
                                                      "domain", "title", "read_url"};
  for (const std::string_view known : kTasks) {
    if (known != task->text()) continue;
    for (size_t i = messages.size(); i > 0; --i) {
      if (messages[i - 1].role != ChatRole::kUser) continue;
      messages[i - 1].task = task->text();
      return std::nullopt;
    }
    return BadRequest("task needs a user message", "task");
  }
  return BadRequest(absl::StrFormat("unknown task \"%s\"", task->text()), "task");
}

// Whether the last message is left open, or the error that it must not be an assistant's (2.8.8).
std::optional<ApiError> ApplyContinuation(const JsonValue& body, ChatInput& input) {
  ApiResult<std::optional<bool>> continues = BoolMember(body, "continue_final_message", "");
  if (!continues.ok()) return continues.error();
  ApiResult<std::optional<bool>> generation = BoolMember(body, "add_generation_prompt", "");
  if (!generation.ok()) return generation.error();
  const bool is_continued = continues->value_or(false);
  if (is_continued && generation->value_or(false)) {
    return BadRequest(
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        "continue_final_message");
  }
  input.options.add_generation_prompt = generation->value_or(true);
  const bool is_assistant = input.messages.back().role == ChatRole::kAssistant;
  if (!is_assistant && is_continued) {
    return BadRequest("continue_final_message needs an assistant message at the end", "messages");
  }
  if (!is_assistant) return std::nullopt;
  const std::vector<JsonValue>& list = body.Find("messages")->items();
  ApiResult<std::optional<bool>> prefix =
      BoolMember(list.back(), "prefix", absl::StrFormat("messages[%d].", list.size() - 1));
  if (!prefix.ok()) return prefix.error();
  if (!is_continued && !prefix->value_or(false)) {
    return BadRequest(
        "The last message must be a user or tool message, or an assistant message with \"prefix\": "
        "true",
        "messages");
  }
  input.options.continue_final = true;
  return std::nullopt;
}

// Top-level `thinking`: a boolean, or an object with a type.
ApiResult<std::optional<bool>> TopLevelThinking(const JsonValue& body) {
  const JsonValue* thinking = body.FindNonNull("thinking");
  if (thinking == nullptr) return std::optional<bool>();
  if (thinking->is_bool()) return std::optional<bool>(thinking->boolean());
  if (!thinking->is_object()) return TypeError("thinking", "boolean or object", thinking);
  const JsonValue* type = thinking->Find("type");
  if (type == nullptr || !type->is_string()) return TypeError("thinking.type", "string", type);
  if (type->text() == "disabled") return std::optional<bool>(false);
  if (type->text() == "enabled" || type->text() == "adaptive") return std::optional<bool>(true);
  return BadRequest(absl::StrFormat("thinking.type: unknown value \"%s\"", type->text()),
                    "thinking.type");
}

}  // namespace

ApiResult<ChatOptions> ResolveThinking(const ThinkingRequest& request,
                                       const ChatDefaults& defaults) {
  struct Row {
    std::string_view level;
    Effort on_0731, on_preview;
  };
  constexpr std::array<Row, 7> kTable = {{
      {"minimal", Effort::kLow, Effort::kHigh},
      {"low", Effort::kLow, Effort::kHigh},
      {"medium", Effort::kHigh, Effort::kHigh},
      {"high", Effort::kHigh, Effort::kHigh},
      {"xhigh", Effort::kHigh, Effort::kMax},
      {"max", Effort::kMax, Effort::kMax},
      {"ultra", Effort::kMax, Effort::kMax},
  }};
  ChatOptions options;
  options.profile = defaults.profile;
  const bool is_preview = defaults.profile == EffortProfile::kPreview;
  options.effort = is_preview ? Effort::kUnset : Effort::kHigh;
  options.is_thinking =
      request.template_thinking.value_or(request.thinking.value_or(defaults.is_thinking));
  options.drop_thinking = request.drop_thinking.value_or(true);
  if (!request.level) return options;
  if (*request.level == "none") {
    options.is_thinking = false;
    return options;
  }
  for (const Row& row : kTable) {
    if (row.level != *request.level) continue;
    options.effort = is_preview ? row.on_preview : row.on_0731;
    return options;
  }
  return BadRequest(
      absl::StrFormat(
          "reasoning_effort \"%s\" is not one of none, minimal, low, medium, high, xhigh, "
          "max, ultra",
          *request.level),
      request.level_path);
}

ApiResult<ChatOptions> ParseThinking(const JsonValue& body, const ChatDefaults& defaults) {
  const JsonValue empty;
  const JsonValue* kwargs = body.FindNonNull("chat_template_kwargs");
  if (kwargs != nullptr && !kwargs->is_object()) {
    return TypeError("chat_template_kwargs", "object", kwargs);
  }
  if (kwargs == nullptr) kwargs = &empty;
  constexpr std::string_view kPrefix = "chat_template_kwargs.";
  ThinkingRequest request;
  ApiResult<std::optional<bool>> thinking = BoolMember(*kwargs, "thinking", kPrefix);
  if (!thinking.ok()) return thinking.error();
  ApiResult<std::optional<bool>> enabled = BoolMember(*kwargs, "enable_thinking", kPrefix);
  if (!enabled.ok()) return enabled.error();
  if (thinking->has_value() || enabled->has_value()) {
    request.template_thinking = thinking->value_or(false) || enabled->value_or(false);
  }
  ApiResult<std::optional<bool>> drop = BoolMember(*kwargs, "drop_thinking", kPrefix);
  if (!drop.ok()) return drop.error();
  request.drop_thinking = *drop;
  ApiResult<std::optional<bool>> top_level = TopLevelThinking(body);
  if (!top_level.ok()) return top_level.error();
  request.thinking = *top_level;
  const JsonValue* level = body.FindNonNull("reasoning_effort");
  if (level == nullptr) {
    level = kwargs->FindNonNull("reasoning_effort");
    request.level_path = "chat_template_kwargs.reasoning_effort";
  } else {
    request.level_path = "reasoning_effort";
  }
  if (level == nullptr) return ResolveThinking(request, defaults);
  if (!level->is_string()) return TypeError(request.level_path, "string", level);
  request.level = level->text();
  return ResolveThinking(request, defaults);
}

ApiResult<ResponseFormat> ParseResponseFormat(const JsonValue& body) {
  const JsonValue* format = body.FindNonNull("response_format");
  if (format == nullptr) return ResponseFormat{};
  if (!format->is_object()) return TypeError("response_format", "object", format);
  const JsonValue* type = format->Find("type");
  if (type == nullptr || !type->is_string())
    return TypeError("response_format.type", "string", type);
  if (type->text() == "text") return ResponseFormat{};
  if (type->text() == "json_object") return ResponseFormat{.is_json_object = true};
  if (type->text() != "json_schema") {
    return BadRequest(absl::StrFormat("response_format.type \"%s\" is not supported", type->text()),
                      "response_format");
  }
  const JsonValue* holder = format->Find("json_schema");
  const JsonValue* schema = holder == nullptr ? nullptr : holder->FindNonNull("schema");
  if (schema == nullptr) {
    return BadRequest(
        "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
        "response_format");
  }
  return ResponseFormat{.schema = schema};
}

ApiResult<std::vector<ChatMessage>> ParseChatMessages(const JsonValue& messages,
                                                      const ChatDefaults& defaults) {
  if (!messages.is_array()) return TypeError("messages", "array", &messages);
  if (messages.items().empty()) return BadRequest("messages must not be empty", "messages");
  std::vector<ChatMessage> out;
  bool is_leading = true;  // only system messages so far
  for (size_t i = 0; i < messages.items().size(); ++i) {
    ApiResult<ChatMessage> message =
        ParseMessage(messages.items()[i], absl::StrFormat("messages[%d]", i), defaults);
    if (!message.ok()) return message.error();
    is_leading = is_leading && message->role == ChatRole::kSystem;
    if (!is_leading && message->role == ChatRole::kSystem) message->role = ChatRole::kUser;
    out.push_back(*std::move(message));
  }
  return out;
}

ApiResult<ChatInput> ParseChatInput(const JsonValue& body, const ChatDefaults& defaults) {
  const JsonValue* list = body.Find("messages");
  if (list == nullptr) return TypeError("messages", "array", list);
  if (body.FindNonNull("chat_template") != nullptr) {
    return BadRequest("chat_template is not supported: the model has a fixed encoder",
                      "chat_template");
  }
  ApiResult<std::vector<ChatMessage>> messages = ParseChatMessages(*list, defaults);
  if (!messages.ok()) return messages.error();
  ApiResult<ChatOptions> options = ParseThinking(body, defaults);
  if (!options.ok()) return options.error();
  ChatInput input = {.messages = *std::move(messages), .options = *options};
  if (auto error = ApplyContinuation(body, input)) return *error;
  if (auto error = AttachTask(body, input.messages)) return *error;
  if (auto error = AttachTools(body, input.messages)) return *error;
  if (auto error = AttachResponseFormat(body, defaults, input.messages)) return *error;
  return input;
}

}  // namespace baton::router
