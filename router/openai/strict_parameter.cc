#include "router/openai/strict_parameter.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/openai/lark_text.h"

namespace baton::router {
namespace {

constexpr int kMaxSchemas = 256;  // of one parameter, looked at: references and unions
constexpr std::array<std::string_view, 6> kOtherTypes = {"object",  "array",   "number",
                                                         "integer", "boolean", "null"};
constexpr std::string_view kAnnotations[] = {
    "title",      "description", "default",         "examples",        "example", "$comment",
    "deprecated", "readOnly",    "writeOnly",       "x-guidance",      "$schema", "$id",
    "$defs",      "definitions", "contentEncoding", "contentMediaType"};
constexpr std::string_view kOfStrings[] = {"minLength", "maxLength", "pattern", "format"};
constexpr std::string_view kNotForText[] = {"not",  "if",          "then",
                                            "else", "$dynamicRef", "$recursiveRef"};

// Formats as they may stand in raw text.
struct Format {
  std::string_view name, regex;
};
constexpr Format kFormats[] = {
    {"date", "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"},
    {"time",
     "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3])"
     ":[0-5][0-9])"},
    {"date-time",
     "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:"
     "[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"},
    {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
    {"ipv4",
     "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}"
     "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"},
    {"email",
     "[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]+(-[A-Za-z0-9]+)*"
     "(\\.[A-Za-z0-9]+(-[A-Za-z0-9]+)*)+"},
};

template <typename List>
bool Has(const List& list, std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

// `schema` without the members of `dropped`, and with `added` in front: JSON.
template <typename List>
std::string Without(const JsonValue& schema, const List& dropped, const std::string& added) {
  std::string out = "{" + added;
  for (const auto& [key, value] : schema.members()) {
    if (Has(dropped, key)) continue;
    if (out.size() > 1) out += ", ";
    AppendJsonString(key, out);
    out += ": " + value.Dump();
  }
  return out + "}";
}

// A pattern as the whole of a text: searched for, unless it is anchored. Nothing where that cannot
// be said: anchored alternatives, parentheses that do not match.
std::optional<std::string> WholeText(std::string_view pattern) {
  bool has_alternatives = false, is_class = false, ends_escaped = false;
  int depth = 0;
  for (size_t i = 0; i < pattern.size() && depth >= 0; ++i) {
    const char c = pattern[i];
    ends_escaped = c == '\\';
    if (ends_escaped) {
      ++i;
    } else if (is_class) {
      is_class = c != ']';
    } else {
      is_class = c == '[';
      depth += c == '(' ? 1 : (c == ')' ? -1 : 0);
      has_alternatives = has_alternatives || (c == '|' && depth == 0);
    }
  }
  const bool is_from_start = pattern.starts_with("^");
  const bool is_to_end = !ends_escaped && !is_class && pattern.ends_with("$");
  if (depth != 0 || ((is_from_start || is_to_end) && has_alternatives)) return std::nullopt;
  if (is_from_start) pattern.remove_prefix(1);
  if (is_to_end) pattern.remove_suffix(1);
  return absl::StrFormat("%s(?:%s)%s", is_from_start ? "" : "(?s:.*)", LarkRegex(pattern),
                         is_to_end ? "" : "(?s:.*)");
}

// What a schema says of each key; its path goes into errors.
class Splitter {
 public:
  Splitter(const JsonValue& root, std::string path) : root_(root), path_(std::move(path)) {}

  ApiResult<ParameterForms> Split(const JsonValue& schema) {
    if (++num_schemas_ > kMaxSchemas)
      return Refuse("$ref", absl::StrFormat("leads to more than %d schemas", kMaxSchemas));
    if (schema.is_bool() && schema.boolean()) return Plain(JsonValue());
    if (!schema.is_object())
      return BadRequest(
          absl::StrFormat("%s: expected an object as schema, got %s", path_, schema.KindName()),
          path_);
    if (schema.Find("$ref") != nullptr) return Referred(schema);
    if (schema.Find("enum") != nullptr || schema.Find("const") != nullptr) return Listed(schema);
    if (!TypesOf(schema, "string")) return ParameterForms{.texts = {}, .json = schema.Dump()};
    for (const std::string_view key : {"anyOf", "oneOf"})
      if (schema.Find(key) != nullptr) return Union(schema, key);
    if (const JsonValue* all = schema.Find("allOf")) {
      const bool is_plain = all->is_array() && all->items().size() == 1 && IsAlone(schema, "allOf");
      if (!is_plain) return Refuse("allOf", "with more than one schema is not supported here");
      return Split(all->items()[0]);
    }
    return Plain(schema);
  }

 private:
  ApiError Refuse(std::string_view keyword, std::string_view what) const {
    return BadRequest(absl::StrFormat("%s: \"%s\" %s", path_, keyword, what), path_);
  }

  static bool IsAlone(const JsonValue& schema, std::string_view keyword) {
    return std::all_of(schema.members().begin(), schema.members().end(), [&](const auto& member) {
      return member.first == keyword || Has(kAnnotations, member.first);
    });
  }

  // Whether a schema's `type` lets `type` be.
  static bool TypesOf(const JsonValue& schema, std::string_view type) {
    const JsonValue* types = schema.Find("type");
    if (types == nullptr) return true;
    if (types->is_string()) return types->text() == type;
    return std::any_of(types->items().begin(), types->items().end(),
                       [&](const JsonValue& one) { return one.text() == type; });
  }

  ApiResult<ParameterForms> Referred(const JsonValue& schema) {
    const JsonValue& ref = *schema.Find("$ref");
    const JsonValue* target = nullptr;
    for (const std::string_view holder : {"$defs", "definitions"}) {
      const std::string prefix = absl::StrFormat("#/%s/", holder);
      if (!ref.is_string() || !ref.text().starts_with(prefix)) continue;
      if (const JsonValue* all = root_.Find(holder))
        target = all->Find(ref.text().substr(prefix.size()));
    }
    if (target == nullptr)
      return Refuse("$ref", "must be #/$defs/NAME or #/definitions/NAME of the tool's parameters");
    if (!IsAlone(schema, "$ref"))
      return Refuse("$ref", "with other keywords is not supported here");
    return Split(*target);
  }

  ApiResult<ParameterForms> Listed(const JsonValue& schema) const {
    ParameterForms forms;
    std::vector<const JsonValue*> values;
    if (const JsonValue* one = schema.Find("const")) values.push_back(one);
    if (const JsonValue* list = schema.Find("enum"); list != nullptr && values.empty()) {
      if (!list->is_array()) return Refuse("enum", "must be an array");
      for (const JsonValue& item : list->items()) values.push_back(&item);
    }
    std::string texts, others;
    for (const JsonValue* value : values) {
      if (value->is_string()) {
        if (TypesOf(schema, "string"))
          texts += (texts.empty() ? "" : " | ") + LarkLiteral(value->text());
      } else {
        others += (others.empty() ? "" : ", ") + value->Dump();
      }
    }
    if (!texts.empty()) forms.texts.push_back("(" + texts + ") \"</\"");
    constexpr std::string_view kHandled[] = {"enum", "const"};
    if (!others.empty()) forms.json = Without(schema, kHandled, "\"enum\": [" + others + "]");
    if (forms.texts.empty() && forms.json.empty()) return Refuse("enum", "allows no value");
    return forms;
  }

  ApiResult<ParameterForms> Union(const JsonValue& schema, std::string_view keyword) {
    const JsonValue& list = *schema.Find(keyword);
    if (!list.is_array() || list.items().empty()) return Refuse(keyword, "must be a filled array");
    if (!IsAlone(schema, keyword))
      return Refuse(keyword, "with other keywords is not supported here");
    ParameterForms forms;
    std::string others;
    for (const JsonValue& item : list.items()) {
      ApiResult<ParameterForms> one = Split(item);
      if (!one.ok()) return one;
      if (keyword == "oneOf" && !forms.texts.empty() && !one->texts.empty())
        return Refuse("oneOf", "with several kinds of strings is not supported here");
      for (std::string& text : one->texts)
        if (!Has(forms.texts, text)) forms.texts.push_back(std::move(text));
      if (!one->json.empty()) others += (others.empty() ? "" : ", ") + one->json;
    }
    if (!others.empty()) forms.json = absl::StrFormat("{\"%s\": [%s]}", keyword, others);
    return forms;
  }

  // No reference, list or union: text, and JSON of the other types.
  ApiResult<ParameterForms> Plain(const JsonValue& schema) const {
    for (const std::string_view key : kNotForText)
      if (schema.Find(key) != nullptr) return Refuse(key, "is not supported here");
    ApiResult<std::string> text = Text(schema);
    if (!text.ok()) return text.error();
    ParameterForms forms = {.texts = {*std::move(text)}, .json = {}};
    std::string types;
    for (const std::string_view type : kOtherTypes) {
      if (!TypesOf(schema, type)) continue;
      if (type == "integer" && TypesOf(schema, "number")) continue;
      types += absl::StrFormat("%s\"%s\"", types.empty() ? "" : ", ", type);
    }
    if (types.empty()) return forms;
    std::vector<std::string_view> dropped = {"type"};
    dropped.insert(dropped.end(), std::begin(kOfStrings), std::end(kOfStrings));
    forms.json = Without(schema, dropped, "\"type\": [" + types + "]");
    return forms;
  }

  ApiResult<std::string> Text(const JsonValue& schema) const {
    std::vector<std::string> rules;
    if (const JsonValue* pattern = schema.Find("pattern")) {
      const auto whole = pattern->is_string() ? WholeText(pattern->text()) : std::nullopt;
      if (!whole)
        return Refuse("pattern",
                      "is not supported here: alternatives beside an anchor, or "
                      "unbalanced parentheses");
      rules.push_back(*whole);
    }
    if (const JsonValue* format = schema.Find("format")) {
      const auto* known = std::find_if(
          std::begin(kFormats), std::end(kFormats),
          [&](const auto& f) { return format->is_string() && f.name == format->text(); });
      if (known == std::end(kFormats))
        return Refuse("format", absl::StrFormat("%s is not supported here", format->Dump()));
      rules.push_back(std::string(known->regex));
    }
    const JsonValue* least = schema.Find("minLength");
    const JsonValue* most = schema.Find("maxLength");
    if (least != nullptr || most != nullptr) {
      const std::optional<int64_t> from = least == nullptr ? 0 : least->AsInt64();
      const std::optional<int64_t> to = most == nullptr ? INT32_MAX : most->AsInt64();
      if (!from || *from < 0 || *from > INT32_MAX) return Refuse("minLength", "is no length");
      if (!to || *to < *from) return Refuse("maxLength", "is no length of at least minLength");
      rules.push_back(absl::StrFormat("(?s:.{%d,%s})", *from,
                                      most == nullptr ? "" : absl::StrFormat("%d", *to)));
    }
    std::string out;
    for (const std::string& rule : rules)
      out += absl::StrFormat("%s/(?:%s)<\\//", out.empty() ? "" : " & ", rule);
    return out.empty() ? std::string(kAnyText) : out;
  }

  const JsonValue& root_;
  const std::string path_;
  int num_schemas_ = 0;
};

}  // namespace

ApiResult<ParameterForms> SplitParameter(const JsonValue& schema, const JsonValue& root,
                                         const std::string& path) {
  ApiResult<ParameterForms> forms = Splitter(root, path).Split(schema);
  if (!forms.ok() || forms->json.find("\"$ref\"") == std::string::npos) return forms;
  std::string definitions;
  for (const std::string_view holder : {"$defs", "definitions"})
    if (const JsonValue* all = root.Find(holder))
      absl::StrAppendFormat(&definitions, "\"%s\": %s, ", holder, all->Dump());
  forms->json.insert(1, definitions);
  return forms;
}

}  // namespace baton::router
