#include "router/openai/call_grammar.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/sampling_spec.h"
#include "router/openai/lark_text.h"
#include "router/openai/strict_parameter.h"

namespace baton::router {
namespace {

using MaybeError = std::optional<ApiError>;

// What a strict tool's parameters may say beside `properties` and `required`.
constexpr std::string_view kOfObjects[] = {
    "type",    "properties",  "required", "additionalProperties",
    "$defs",   "definitions", "title",    "description",
    "default", "examples",    "$schema",  "$id",
    "$comment"};

constexpr size_t kMaxProperties = 512;  // of a strict tool

bool IsSpellable(std::string_view name) {
  return !name.empty() && std::none_of(name.begin(), name.end(), [](char c) {
    return c == '"' || static_cast<unsigned char>(c) < 0x20;
  });
}

// Writes one grammar; terminals are upper case, as lark has it.
class GrammarWriter {
 public:
  explicit GrammarWriter(const CallRules& rules)
      : rules_(rules), dsml_(absl::StrFormat("<[%d]>", rules.dsml)) {}

  ApiResult<std::string> Write(const std::vector<CallableTool>& tools) {
    std::string names;
    for (size_t i = 0; i < tools.size(); ++i) {
      const CallableTool& tool = tools[i];
      if (!IsSpellable(tool.name))
        return BadRequest(absl::StrFormat("%s.name: a name that is empty or holds a quote or a "
                                          "control character cannot be called",
                                          tool.path),
                          tool.path + ".name");
      names += absl::StrFormat("%scall%d", i == 0 ? "" : " | ", i);
      Add("call%d: %s body%d", i, LarkLiteral(tool.name + "\">\n"), i);
      if (auto error = tool.is_strict ? AddStrict(tool, i) : AddFree(i)) return *error;
      if (out_.size() > kMaxGrammarBytes)
        return BadRequest(
            absl::StrFormat("tools: their grammar has more than %d bytes", kMaxGrammarBytes),
            "tools");
    }
    Add("call: %s", names);
    AddStart();
    Add("OPEN: \"<\"\nCLOSE: \"</\"");
    Add("TEXT: %s", kAnyText);
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void Add(const absl::FormatSpec<Args...>& format, const Args&... args) {
    absl::StrAppendFormat(&out_, format, args...);
    out_ += "\n";
  }

  void AddStart() {
    const std::string block = absl::StrFormat(
        "%s \"tool_calls>\\n\" OPEN %s \"invoke name=\\\"\" call rest", dsml_, dsml_);
    switch (rules_.begin) {
      case CallsBegin::kInText:
        Add("start: FREE | HEAD %s", block);
        Add("FREE: /(?s:.*)/\nHEAD: /(?s:.*)\\n\\n</");
        break;
      case CallsBegin::kAtBlock:
        Add("start: answer | HEAD %s", block);
        Add("HEAD: \"\\n\\n<\"\n%s", rules_.answer);
        break;
      case CallsBegin::kAtName:
        Add("start: call rest");
        break;
      case CallsBegin::kInInvoke:
        Add("start: body0 rest");
        break;
    }
    const std::string more = absl::StrFormat("(OPEN %s \"invoke name=\\\"\" call)* ", dsml_);
    Add("rest: %sCLOSE %s \"tool_calls>\"", rules_.is_single ? "" : more, dsml_);
  }

  // Any parameters in any order.
  MaybeError AddFree(size_t tool) {
    Add("body%d: any_parameter* CLOSE %s \"invoke>\\n\"", tool, dsml_);
    if (std::exchange(has_free_, true)) return std::nullopt;
    Add("any_parameter: OPEN %s \"parameter name=\\\"\" KEY \"\\\" string=\\\"\" (any_text | "
        "any_json)",
        dsml_);
    Add("any_text: \"true\\\">\" TEXT %s \"parameter>\\n\"", dsml_);
    Add("any_json: \"false\\\">\" any_value CLOSE %s \"parameter>\\n\"", dsml_);
    Add("any_value: %%json %s", LarkSchema(JsonValue()));
    Add("KEY: /[^\"\\x00-\\x1f]+/");
    return std::nullopt;
  }

  MaybeError AddStrict(const CallableTool& tool, size_t index) {
    const std::string path = tool.path + ".parameters";
    const JsonValue& schema = tool.parameters;
    std::string body;
    if (!schema.is_null()) {
      if (auto error = CheckObject(schema, path)) return error;
      const JsonValue* properties = schema.Find("properties");
      const size_t count = properties == nullptr ? 0 : properties->members().size();
      for (size_t i = 0; i < count; ++i) {
        const auto& [key, value] = properties->members()[i];
        const std::string name = absl::StrFormat("p%d_%d", index, i);
        body += absl::StrFormat("%s%s ", name, IsRequired(schema, key) ? "" : "?");
        if (auto error = AddParameter(name, key, value, tool)) return error;
      }
    }
    Add("body%d: %sCLOSE %s \"invoke>\\n\"", index, body, dsml_);
    return std::nullopt;
  }

  static bool IsRequired(const JsonValue& schema, std::string_view key) {
    const JsonValue* list = schema.Find("required");
    return list != nullptr && std::any_of(list->items().begin(), list->items().end(),
                                          [&](const JsonValue& one) { return one.text() == key; });
  }

  static MaybeError CheckObject(const JsonValue& schema, const std::string& path) {
    const auto refuse = [&](std::string_view keyword, std::string_view what) {
      return BadRequest(absl::StrFormat("%s: \"%s\" %s", path, keyword, what), path);
    };
    if (!schema.is_object())
      return BadRequest(absl::StrFormat("%s: expected object, got %s", path, schema.KindName()),
                        path);
    for (const auto& [key, value] : schema.members()) {
      if (std::find(std::begin(kOfObjects), std::end(kOfObjects), key) == std::end(kOfObjects))
        return refuse(key, "is not supported at the top of a strict tool's parameters");
    }
    if (const JsonValue* type = schema.Find("type");
        type != nullptr && !(type->is_string() && type->text() == "object"))
      return refuse("type", "must be \"object\"");
    const JsonValue* properties = schema.Find("properties");
    if (properties != nullptr && !properties->is_object())
      return refuse("properties", "must be an object");
    if (properties != nullptr && properties->members().size() > kMaxProperties)
      return refuse("properties", absl::StrFormat("has more than %d members", kMaxProperties));
    const JsonValue* required = schema.Find("required");
    if (required == nullptr) return std::nullopt;
    if (!required->is_array()) return refuse("required", "must be an array");
    if (required->items().size() > kMaxProperties)
      return refuse("required", absl::StrFormat("has more than %d items", kMaxProperties));
    for (const JsonValue& key : required->items()) {
      if (!key.is_string() || properties == nullptr || properties->Find(key.text()) == nullptr)
        return refuse("required", absl::StrFormat("names %s, which is none of the properties",
                                                  key.Dump().substr(0, 128)));
    }
    return std::nullopt;
  }

  MaybeError AddParameter(const std::string& name, const std::string& key, const JsonValue& schema,
                          const CallableTool& tool) {
    const std::string path = absl::StrFormat("%s.parameters.properties.%s", tool.path, key);
    if (!IsSpellable(key))
      return BadRequest(path +
                            ": the name of a parameter is empty or holds a quote or a control "
                            "character",
                        path);
    ApiResult<ParameterForms> forms = SplitParameter(schema, tool.parameters, path);
    if (!forms.ok()) return forms.error();
    std::string choices;
    for (size_t i = 0; i < forms->texts.size(); ++i) {
      std::string terminal = absl::StrFormat("T%s_%d", name.substr(1), i);
      if (forms->texts[i] == kAnyText) {
        terminal = "TEXT";
      } else {
        Add("%s: %s", terminal, forms->texts[i]);
      }
      choices += absl::StrFormat("%s\"true\\\">\" %s", choices.empty() ? "" : " | ", terminal);
    }
    if (!forms->json.empty()) {
      choices += absl::StrFormat("%s\"false\\\">\" j%s CLOSE", choices.empty() ? "" : " | ", name);
      Add("j%s: %%json %s", name, LarkSchema(*JsonValue::Parse(forms->json)));
    }
    Add("%s: OPEN %s %s (%s) %s \"parameter>\\n\"", name, dsml_,
        LarkLiteral(absl::StrFormat("parameter name=\"%s\" string=\"", key)), choices, dsml_);
    return std::nullopt;
  }

  const CallRules& rules_;
  const std::string dsml_;
  std::string out_;
  bool has_free_ = false;
};

}  // namespace

ApiResult<std::string> CallGrammar(const std::vector<CallableTool>& tools, const CallRules& rules) {
  return GrammarWriter(rules).Write(tools);
}

}  // namespace baton::router
