#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "router/openai/api_error.h"
#include "router/openai/call_grammar.h"
#include "router/text/json_value.h"
#include "router/text/tool_call_parser.h"

namespace baton::router {

// What a chat asks of tool calls (protocol.md 3.5).
struct ToolRequest {
  std::shared_ptr<const ToolSchemas> schemas;  // null: no calls are looked for in the answer
  bool is_banned = false;                      // choice "none": the model must not call
  bool is_required = false;                    // a call must come
  std::string required_name;                   // that one; empty: any
  size_t max_calls = 0;                        // 0: any number; 1: parallel_tool_calls is false
  std::vector<CallableTool> tools{};           // what may be called; empty where none may
};

// From `tools`, `tool_choice` and `parallel_tool_calls` of a chat body; what a tool's `function`
// holds is checked where it is rendered. 400 with the member's path. Pure; any thread.
ApiResult<ToolRequest> ParseToolRequest(const JsonValue& body);

}  // namespace baton::router
