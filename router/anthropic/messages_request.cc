#include "router/anthropic/messages_request.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/anthropic/message_blocks.h"
#include "router/openai/generate_params.h"

namespace baton::router {
namespace {

constexpr std::string_view kBillingPrefix = "x-anthropic-billing-header";

// The system prompt: a string, or text blocks joined by an empty line. A block that holds a hash of
// the request would spoil every cached prefix (6.2).
ApiResult<std::string> SystemText(const JsonValue& body) {
  const JsonValue* system = body.FindNonNull("system");
  if (system == nullptr) return std::string();
  if (system->is_string()) return system->text();
  if (!system->is_array()) return WrongType("system", "string or array", *system);
  std::string text;
  bool is_first = true;
  for (size_t i = 0; i < system->items().size(); ++i) {
    const std::string path = absl::StrFormat("system.%d", i);
    ApiResult<std::string> block = TextBlock(system->items()[i], path);
    if (!block.ok()) return block.error();
    if (std::string_view(*block).starts_with(kBillingPrefix)) continue;
    if (!std::exchange(is_first, false)) text += "\n\n";
    text += *block;
  }
  return text;
}

std::optional<ApiError> AddMessages(const JsonValue& body, JsonWriter& out, size_t& text_bytes) {
  ApiResult<std::string> system = SystemText(body);
  if (!system.ok()) return system.error();
  const JsonValue* messages = body.FindNonNull("messages");
  if (messages == nullptr) return BadRequest("messages: Field required", "messages");
  if (!messages->is_array()) return WrongType("messages", "array", *messages);
  if (messages->items().empty())
    return BadRequest("messages: at least one message is required", "messages");
  ChatMessagesJson list;
  if (!system->empty()) list.Add("system", *system);
  for (size_t i = 0; i < messages->items().size(); ++i) {
    const bool is_last = i + 1 == messages->items().size();
    if (auto error =
            list.Translate(messages->items()[i], absl::StrFormat("messages.%d", i), is_last))
      return error;
  }
  text_bytes = list.text_bytes();
  out.Member("messages", list.Finish());
  return std::nullopt;
}

// One of Anthropic's tools as an OpenAI function, members in this order (6.2).
ApiResult<std::string> ToolJson(const JsonValue& tool, const std::string& path) {
  const JsonValue* name = tool.FindNonNull("name");
  if (name == nullptr) return BadRequest(path + ".name: Field required", path);
  if (!name->is_string()) return WrongType(path + ".name", "string", *name);
  const JsonValue* schema = tool.FindNonNull("input_schema");
  if (schema == nullptr) return BadRequest(path + ".input_schema: Field required", path);
  if (!schema->is_object()) return WrongType(path + ".input_schema", "object", *schema);
  JsonWriter function;
  function.Member("name", name->Dump());
  if (const JsonValue* description = tool.FindNonNull("description")) {
    if (!description->is_string()) return WrongType(path + ".description", "string", *description);
    function.Member("description", description->Dump());
  }
  function.Member("parameters", schema->Dump());
  JsonWriter out;
  out.Member("type", "\"function\"");
  out.Member("function", function.Finish());
  return out.Finish();
}

// The list of tools that the model may call; empty when none is left.
ApiResult<std::string> ToolsJson(const JsonValue& body, size_t& dropped) {
  const JsonValue* tools = body.FindNonNull("tools");
  if (tools == nullptr) return std::string();
  if (!tools->is_array()) return WrongType("tools", "array", *tools);
  std::string list;
  for (size_t i = 0; i < tools->items().size(); ++i) {
    const JsonValue& tool = tools->items()[i];
    const std::string path = absl::StrFormat("tools.%d", i);
    if (!tool.is_object()) return WrongType(path, "object", tool);
    const JsonValue* type = tool.FindNonNull("type");
    if (type != nullptr && type->text() != "custom") {
      ++dropped;
      continue;
    }
    ApiResult<std::string> json = ToolJson(tool, path);
    if (!json.ok()) return json.error();
    list += (list.empty() ? "[" : ", ") + *json;
  }
  return list.empty() ? list : list + "]";
}

std::optional<ApiError> AddToolChoice(const JsonValue& body, bool has_tools, JsonWriter& out) {
  const JsonValue* choice = body.FindNonNull("tool_choice");
  if (choice == nullptr) return std::nullopt;
  if (!choice->is_object()) return WrongType("tool_choice", "object", *choice);
  const JsonValue* type = choice->FindNonNull("type");
  const std::string kind = type == nullptr ? "" : type->text();
  if (kind == "any" || kind == "tool") {
    if (!has_tools)
      return BadRequest(absl::StrFormat("tool_choice.type is '%s', and there is no tool", kind),
                        "tool_choice");
  } else if (kind != "auto" && kind != "none") {
    return BadRequest(
        absl::StrFormat("tool_choice.type: '%s' is none of auto, any, tool, none", kind),
        "tool_choice");
  }
  if (!has_tools) return std::nullopt;
  if (kind == "tool") {
    const JsonValue* name = choice->FindNonNull("name");
    if (name == nullptr || !name->is_string())
      return BadRequest("tool_choice.name: Field required", "tool_choice");
    out.Member(
        "tool_choice",
        absl::StrFormat("{\"type\": \"function\", \"function\": {\"name\": %s}}", name->Dump()));
  } else {
    out.Member("tool_choice", kind == "any" ? "\"required\"" : "\"" + kind + "\"");
  }
  ApiResult<bool> is_single = BoolMemberOr(*choice, "disable_parallel_tool_use", false);
  if (!is_single.ok()) return is_single.error();
  if (*is_single) out.Member("parallel_tool_calls", "false");
  return std::nullopt;
}

std::optional<ApiError> AddTools(const JsonValue& body, JsonWriter& out, size_t& dropped) {
  ApiResult<std::string> tools = ToolsJson(body, dropped);
  if (!tools.ok()) return tools.error();
  if (!tools->empty()) out.Member("tools", *tools);
  return AddToolChoice(body, !tools->empty(), out);
}

std::optional<ApiError> AddThinking(const JsonValue& body, JsonWriter& out) {
  const JsonValue* thinking = body.FindNonNull("thinking");
  if (thinking == nullptr) return std::nullopt;
  if (!thinking->is_object()) return WrongType("thinking", "object", *thinking);
  const JsonValue* type = thinking->FindNonNull("type");
  const std::string kind = type == nullptr ? "" : type->text();
  if (kind != "enabled" && kind != "disabled" && kind != "adaptive")
    return BadRequest(
        absl::StrFormat("thinking.type: '%s' is none of enabled, disabled, adaptive", kind),
        "thinking.type");
  out.Member("thinking", kind == "disabled" ? "false" : "true");
  ApiResult<int64_t> budget = IntMember(*thinking, "budget_tokens", 0);
  if (!budget.ok())
    return BadRequest("thinking.budget_tokens: Input should be a valid integer", "thinking");
  if (kind == "enabled" && *budget > 0)
    out.Member("thinking_token_budget", absl::StrFormat("%d", *budget));
  return std::nullopt;
}

std::optional<ApiError> AddOutputConfig(const JsonValue& body, JsonWriter& out) {
  const JsonValue* config = body.FindNonNull("output_config");
  if (config == nullptr) return std::nullopt;
  if (!config->is_object()) return WrongType("output_config", "object", *config);
  if (const JsonValue* effort = config->FindNonNull("effort")) {
    if (!effort->is_string()) return WrongType("output_config.effort", "string", *effort);
    out.Member("reasoning_effort", effort->Dump());
  }
  const JsonValue* format = config->FindNonNull("format");
  if (format == nullptr) return std::nullopt;
  const JsonValue* type = format->FindNonNull("type");
  const JsonValue* schema = format->FindNonNull("schema");
  if (type == nullptr || type->text() != "json_schema" || schema == nullptr)
    return BadRequest("output_config.format: want {\"type\": \"json_schema\", \"schema\": {...}}",
                      "output_config.format");
  out.Member("response_format",
             absl::StrFormat("{\"type\": \"json_schema\", \"json_schema\": {\"schema\": %s}}",
                             schema->Dump()));
  return std::nullopt;
}

}  // namespace

ApiResult<TranslatedChat> TranslateMessages(const JsonValue& body, bool needs_max_tokens) {
  TranslatedChat out;
  JsonWriter chat;
  if (needs_max_tokens && body.FindNonNull("max_tokens") == nullptr)
    return BadRequest("max_tokens: Field required", "max_tokens");
  if (auto error = AddMessages(body, chat, out.text_bytes)) return *error;
  if (auto error = AddTools(body, chat, out.dropped_tools)) return *error;
  if (auto error = AddThinking(body, chat)) return *error;
  if (auto error = AddOutputConfig(body, chat)) return *error;
  constexpr std::pair<std::string_view, std::string_view> kSame[] = {
      {"model", "model"},
      {"max_tokens", "max_tokens"},
      {"stop_sequences", "stop"},
      {"stream", "stream"},
      {"temperature", "temperature"},
      {"top_p", "top_p"},
      {"top_k", "top_k"},
      {"chat_template_kwargs", "chat_template_kwargs"},
  };
  for (const auto& [theirs, ours] : kSame)
    if (const JsonValue* value = body.FindNonNull(theirs)) chat.Member(ours, value->Dump());
  out.body = chat.Finish();
  return out;
}

}  // namespace baton::router
