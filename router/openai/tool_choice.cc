#include "router/openai/tool_choice.h"

#include <algorithm>

#include "router/openai/generate_params.h"

namespace baton::router {
namespace {

ApiError InvalidChoice() {
  return BadRequest(
      "Invalid value for `tool_choice`: it must be \"none\", \"auto\", \"required\" or "
      "{\"type\": \"function\", \"function\": {\"name\": ...}}.",
      "tool_choice");
}

const JsonValue* NameOf(const JsonValue& tool) {
  const JsonValue* function = tool.Find("function");
  const JsonValue* name = function == nullptr ? nullptr : function->Find("name");
  return name != nullptr && name->is_string() ? name : nullptr;
}

// A named choice: {"type":"function","function":{"name":N}}.
ApiResult<std::string> NamedTool(const JsonValue& choice, const JsonValue& tools) {
  const JsonValue* type = choice.Find("type");
  const JsonValue* name = NameOf(choice);
  if (name == nullptr || name->text().empty()) return InvalidChoice();
  if (type != nullptr && !(type->is_string() && type->text() == "function")) return InvalidChoice();
  const bool is_known =
      std::any_of(tools.items().begin(), tools.items().end(), [&](const JsonValue& tool) {
        const JsonValue* known = NameOf(tool);
        return known != nullptr && known->text() == name->text();
      });
  if (is_known) return name->text();
  return BadRequest(
      "The tool specified in `tool_choice` does not match any of the specified `tools`",
      "tool_choice");
}

}  // namespace

ApiResult<ToolRequest> ParseToolRequest(const JsonValue& body) {
  ToolRequest out;
  const JsonValue* tools = body.FindNonNull("tools");
  const JsonValue* choice = body.FindNonNull("tool_choice");
  ApiResult<bool> parallel = BoolMemberOr(body, "parallel_tool_calls", true);
  if (!parallel.ok()) return parallel.error();
  if (tools == nullptr) {
    if (choice == nullptr) return out;
    return BadRequest("When using `tool_choice`, `tools` must be set.", "tool_choice");
  }
  if (!*parallel) out.max_calls = 1;
  if (choice != nullptr && choice->is_object()) {
    ApiResult<std::string> name = NamedTool(*choice, *tools);
    if (!name.ok()) return name.error();
    out.is_required = true;
    out.required_name = *std::move(name);
  } else if (choice != nullptr) {
    if (!choice->is_string()) return InvalidChoice();
    out.is_banned = choice->text() == "none";
    out.is_required = choice->text() == "required";
    if (!out.is_banned && !out.is_required && choice->text() != "auto") return InvalidChoice();
  }
  if (out.is_banned) return out;
  // Where only one can be meant, it is as good as named.
  if (out.is_required && tools->items().size() == 1 && out.required_name.empty()) {
    if (const JsonValue* only = NameOf(tools->items()[0])) out.required_name = only->text();
  }
  ToolSchemas schemas;
  for (const JsonValue& tool : tools->items()) {
    if (const JsonValue* function = tool.Find("function")) schemas.Add(*function);
  }
  out.schemas = std::make_shared<const ToolSchemas>(std::move(schemas));
  return out;
}

}  // namespace baton::router
