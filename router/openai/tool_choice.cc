#include "router/openai/tool_choice.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

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

// What a grammar needs of a tool that may be called.
ApiResult<CallableTool> Callable(const JsonValue& function, const std::string& path) {
  CallableTool out;
  out.path = path;
  const JsonValue* name = function.Find("name");
  if (name != nullptr && name->is_string()) out.name = name->text();
  ApiResult<bool> is_strict = BoolMemberOr(function, "strict", false);
  if (!is_strict.ok()) {
    ApiError error = is_strict.error();
    error.param = path + ".strict";
    error.message = absl::StrFormat("%s.%s", path, error.message);
    return error;
  }
  out.is_strict = *is_strict;
  if (const JsonValue* schema = function.FindNonNull("parameters");
      out.is_strict && schema != nullptr)
    out.parameters = *schema;
  return out;
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
  for (size_t i = 0; i < tools->items().size(); ++i) {
    const JsonValue* function = tools->items()[i].Find("function");
    if (function == nullptr || !function->is_object()) continue;  // refused where it is rendered
    schemas.Add(*function);
    ApiResult<CallableTool> tool = Callable(*function, absl::StrFormat("tools[%d].function", i));
    if (!tool.ok()) return tool.error();
    if (out.required_name.empty() || out.required_name == tool->name)
      out.tools.push_back(*std::move(tool));
  }
  out.schemas = std::make_shared<const ToolSchemas>(std::move(schemas));
  return out;
}

}  // namespace baton::router
