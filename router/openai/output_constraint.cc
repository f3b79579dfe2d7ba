#include "router/openai/output_constraint.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/openai/chat_messages.h"
#include "router/openai/ebnf.h"
#include "router/openai/generate_params.h"
#include "router/openai/lark_text.h"

namespace baton::router {
namespace {

using Constraint = ApiResult<OutputConstraint>;

// A schema as JSON, or as a text that holds it.
Constraint Schema(const JsonValue& value, const std::string& path) {
  JsonValue parsed;
  const JsonValue* schema = &value;
  if (value.is_string()) {
    absl::StatusOr<JsonValue> inside = JsonValue::Parse(value.text());
    if (!inside.ok())
      return BadRequest(absl::StrFormat("%s: JSON decode error: %s", path,
                                        std::string(inside.status().message())),
                        path);
    parsed = *std::move(inside);
    schema = &parsed;
  }
  const bool allows_all = schema->is_bool() && schema->boolean();
  if (!schema->is_object() && !allows_all) return WrongType(path, "object", *schema);
  std::string json = LarkSchema(*schema);
  return OutputConstraint{
      .grammar = "start: %json " + json + "\n", .schema = std::move(json), .param = path};
}

Constraint AnyObject(const std::string& path) {
  return Schema(*JsonValue::Parse("{\"type\": \"object\"}"), path);
}

Constraint Regex(const JsonValue& value, const std::string& path) {
  if (!value.is_string()) return WrongType(path, "string", value);
  if (value.text().empty()) return BadRequest(path + " must not be empty", path);
  return OutputConstraint{
      .grammar = "start: /" + LarkRegex(value.text()) + "/\n", .schema = {}, .param = path};
}

Constraint Choice(const JsonValue& value, const std::string& path) {
  if (!value.is_array()) return WrongType(path, "array of strings", value);
  if (value.items().empty()) return BadRequest(path + " must not be empty", path);
  std::string list;
  for (const JsonValue& item : value.items()) {
    if (!item.is_string()) return WrongType(path, "array of strings", item);
    if (item.text().empty()) return BadRequest(path + " cannot contain an empty string", path);
    list += (list.empty() ? "" : " | ") + LarkLiteral(item.text());
  }
  return OutputConstraint{
      .grammar = "start: CHOICE\nCHOICE: " + list + "\n", .schema = {}, .param = path};
}

// Lark, or EBNF as llama.cpp and xgrammar write it.
Constraint Grammar(const JsonValue& value, const std::string& path) {
  if (!value.is_string()) return WrongType(path, "string", value);
  OutputConstraint out = {.grammar = value.text(), .schema = {}, .param = path};
  if (value.text().find("::=") == std::string::npos) return out;
  absl::StatusOr<std::string> lark = EbnfToLark(value.text());
  if (!lark.ok())
    return BadRequest(absl::StrFormat("%s: %s", path, std::string(lark.status().message())), path);
  out.grammar = *std::move(lark);
  return out;
}

Constraint ObjectFlag(const JsonValue& value, const std::string& path) {
  if (!value.is_bool()) return WrongType(path, "boolean", value);
  if (!value.boolean()) return BadRequest(path + ": false constrains nothing, leave it out", path);
  return AnyObject(path);
}

struct Member {
  std::string_view name;
  Constraint (*parse)(const JsonValue&, const std::string&);
};
constexpr Member kTopLevel[] = {{"guided_json", Schema},   {"guided_regex", Regex},
                                {"guided_choice", Choice}, {"guided_grammar", Grammar},
                                {"regex", Regex},          {"ebnf", Grammar},
                                {"json_schema", Schema}};
constexpr Member kStructured[] = {{"json", Schema},
                                  {"regex", Regex},
                                  {"choice", Choice},
                                  {"grammar", Grammar},
                                  {"json_object", ObjectFlag}};

Constraint Structured(const JsonValue& holder) {
  constexpr std::string_view kPath = "structured_outputs";
  if (!holder.is_object()) return WrongType(kPath, "object", holder);
  std::optional<OutputConstraint> out;
  for (const Member& member : kStructured) {
    const JsonValue* value = holder.FindNonNull(member.name);
    if (value == nullptr) continue;
    Constraint one = member.parse(*value, absl::StrFormat("%s.%s", kPath, member.name));
    if (!one.ok()) return one;
    if (out)
      return BadRequest(
          absl::StrFormat("%s and %s cannot be used together", out->param, one->param),
          std::string(kPath));
    out = *std::move(one);
  }
  if (out) return *std::move(out);
  return BadRequest("structured_outputs needs one of json, regex, choice, grammar, json_object",
                    std::string(kPath));
}

}  // namespace

ApiResult<std::optional<OutputConstraint>> ParseConstraint(const JsonValue& body) {
  std::optional<OutputConstraint> out;
  std::optional<ApiError> failed;
  const auto take = [&](Constraint one) {
    if (failed) return;
    if (!one.ok()) {
      failed = one.error();
    } else if (out) {
      failed = BadRequest(
          absl::StrFormat("%s and %s cannot be used together", out->param, one->param), one->param);
    } else {
      out = *std::move(one);
    }
  };
  ApiResult<ResponseFormat> format = ParseResponseFormat(body);
  if (!format.ok()) return format.error();
  if (format->schema != nullptr) {
    take(Schema(*format->schema, "response_format"));
  } else if (format->is_json_object) {
    take(AnyObject("response_format"));
  }
  if (const JsonValue* holder = body.FindNonNull("structured_outputs")) take(Structured(*holder));
  for (const Member& member : kTopLevel)
    if (const JsonValue* value = body.FindNonNull(member.name))
      take(member.parse(*value, std::string(member.name)));
  if (failed) return *std::move(failed);
  return out;
}

}  // namespace baton::router
