#pragma once

#include <string>
#include <vector>

#include "router/openai/api_error.h"
#include "router/text/json_value.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// A function that the model may call. With `is_strict` its parameters keep to the schema: declared
// ones only, in their order. Otherwise any, in the form of protocol.md 3.1.
struct CallableTool {
  std::string name;
  bool is_strict = false;
  JsonValue parameters;  // a JSON schema; null: none
  std::string path;      // "tools[0].function", for errors
};

// Where the grammar begins.
enum class CallsBegin {
  kInText,    // free text, or text and a block behind an empty line; ends with either
  kAtBlock,   // as kInText, but `answer` stands for the text
  kAtName,    // behind `<｜DSML｜invoke name="`
  kInInvoke,  // behind the first tool's invoke tag
};

struct CallRules {
  CallsBegin begin = CallsBegin::kAtName;
  std::string answer{};    // lark, of kAtBlock: what may stand instead of a block
  bool is_single = false;  // exactly one call
  TokenId dsml = -1;
};

// A lark grammar of well-formed blocks (protocol.md 3.1) that call nothing but `tools`; the block's
// end is its end. 400 with the tool's path for what a strict schema asks and the grammar cannot
// give, naming the keyword. What lies inside of %json is checked where the grammar is compiled.
// Pure; any thread.
ApiResult<std::string> CallGrammar(const std::vector<CallableTool>& tools, const CallRules& rules);

}  // namespace baton::router
