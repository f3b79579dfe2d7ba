#include "router/front/openapi.h"

#include "absl/strings/str_format.h"

#include "router/front/routes.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

// Appends `item` to a list of JSON members or values.
void Add(std::string& list, const std::string& item) { list += (list.empty() ? "" : ",") + item; }

// Schemas that more than one member uses.
constexpr std::string_view kShared = R"(
"Message":{"type":"object","required":["role"],"properties":{
 "role":{"enum":["system","developer","user","assistant","tool","function","latest_reminder"]},
 "content":{"anyOf":[{"type":"null"},{"type":"string"},
  {"type":"array","items":{"$ref":"#/components/schemas/TextPart"}}]},
 "reasoning_content":{"type":["string","null"]},"reasoning":{"type":["string","null"]},
 "tool_calls":{"type":["array","null"],"items":{"$ref":"#/components/schemas/ToolCall"}},
 "tool_call_id":{"type":["string","null"]},"prefix":{"type":"boolean"}}},
"TextPart":{"type":"object","required":["type"],"properties":{
 "type":{"type":"string"},"text":{"type":"string"}}},
"ToolCall":{"type":"object","required":["function"],"properties":{
 "id":{"type":"string"},"type":{"const":"function"},
 "function":{"type":"object","required":["name"],"properties":{
  "name":{"type":"string"},"arguments":{"type":["string","object","null"]}}}}},
"Tool":{"type":"object","required":["function"],"properties":{
 "type":{"const":"function"},
 "function":{"type":"object","required":["name"],"properties":{
  "name":{"type":"string"},"description":{"type":"string"},"parameters":{"type":"object"},
  "strict":{"type":"boolean"}}}}},
"ResponseFormat":{"type":"object","required":["type"],"properties":{
 "type":{"enum":["text","json_object","json_schema"]},
 "json_schema":{"type":"object","properties":{"name":{"type":"string"},"schema":{},
  "strict":{"type":["boolean","null"]}}}}},
"AnthropicMessage":{"type":"object","required":["role","content"],"properties":{
 "role":{"enum":["user","assistant","system","ctx","msg"]},
 "content":{"anyOf":[{"type":"string"},
  {"type":"array","items":{"$ref":"#/components/schemas/AnthropicBlock"}}]}}},
"AnthropicBlock":{"type":"object","required":["type"],"properties":{
 "type":{"enum":["text","thinking","redacted_thinking","tool_use","tool_result"]},
 "text":{"type":"string"},"thinking":{"type":"string"},"signature":{"type":"string"},
 "id":{"type":"string"},"name":{"type":"string"},"input":{"type":"object"},
 "tool_use_id":{"type":"string"},"is_error":{"type":"boolean"},
 "content":{"type":["string","array"]}}},
"AnthropicTool":{"type":"object","required":["name"],"properties":{
 "type":{"type":"string"},"name":{"type":"string"},"description":{"type":"string"},
 "input_schema":{"type":"object"}}},
"Error":{"type":"object","required":["error"],"properties":{"error":{"type":"object",
 "required":["message","type","param","code"],"properties":{
 "message":{"type":"string"},"type":{"type":"string"},"param":{"type":["string","null"]},
 "code":{"type":"integer"},"error_code":{"type":"string"}}}}},
"AnthropicError":{"type":"object","required":["type","error","request_id"],"properties":{
 "type":{"const":"error"},"request_id":{"type":"string"},"error":{"type":"object",
 "required":["type","message"],"properties":{
  "type":{"type":"string"},"message":{"type":"string"}}}}}
)";

std::string FieldJson(const Field& field) {
  std::string members(field.schema);
  if (!field.description.empty()) Add(members, "\"description\":" + Quoted(field.description));
  if (field.use == FieldUse::kRefused) Add(members, "\"deprecated\":true");
  return Quoted(field.name) + ":{" + members + "}";
}

std::string SchemaJson(std::string_view name) {
  std::string properties, required;
  for (const Field& field : RequestFields(name)) {
    Add(properties, FieldJson(field));
    if (field.is_required) Add(required, Quoted(field.name));
  }
  return absl::StrFormat("%s:{\"type\":\"object\",\"properties\":{%s}%s}", Quoted(name), properties,
                         required.empty() ? "" : ",\"required\":[" + required + "]");
}

std::string AnswerJson(const Route& route) {
  std::string types = Quoted(route.answer) + ":{}";
  const bool may_stream = route.is_generation && !route.request.empty();
  if (may_stream) Add(types, "\"text/event-stream\":{}");
  return absl::StrFormat(
      "\"responses\":{\"200\":{\"description\":\"The answer.\",\"content\":{%s}},"
      "\"default\":{\"description\":\"An error.\",\"content\":{\"application/json\":{\"schema\":"
      "{\"$ref\":\"#/components/schemas/%s\"}}}}}",
      types, route.surface == Surface::kAnthropic ? "AnthropicError" : "Error");
}

std::string OperationJson(const Route& route) {
  std::string members = absl::StrFormat("\"summary\":%s", Quoted(route.summary));
  if (route.path.ends_with("{id}"))
    Add(members,
        R"("parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}])");
  if (!route.request.empty())
    Add(members, absl::StrFormat("\"requestBody\":{\"required\":true,\"content\":{"
                                 "\"application/json\":{\"schema\":{\"$ref\":"
                                 "\"#/components/schemas/%s\"}}}}",
                                 route.request));
  if (route.is_open) Add(members, "\"security\":[]");
  Add(members, AnswerJson(route));
  const std::string_view method = route.method == "GET" ? "get" : "post";
  return absl::StrFormat("\"%s\":{%s}", method, members);
}

}  // namespace

std::string OpenApiDocument(std::string_view version) {
  std::string paths, schemas;
  for (size_t i = 0; i < Routes().size(); ++i) {
    const Route& route = Routes()[i];
    const bool is_second = i > 0 && Routes()[i - 1].path == route.path;  // methods of one path
    if (is_second) paths.pop_back();
    Add(paths, is_second ? OperationJson(route) + "}"
                         : absl::StrFormat("%s:{%s}", Quoted(route.path), OperationJson(route)));
  }
  for (const std::string_view name : RequestNames()) Add(schemas, SchemaJson(name));
  Add(schemas, std::string(kShared));
  return absl::StrFormat(
      "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"Baton\",\"version\":%s},"
      "\"security\":[{\"bearer\":[]},{\"header\":[]}],\"paths\":{%s},"
      "\"components\":{\"securitySchemes\":{\"bearer\":{\"type\":\"http\",\"scheme\":\"bearer\"},"
      "\"header\":{\"type\":\"apiKey\",\"in\":\"header\",\"name\":\"x-api-key\"}},"
      "\"schemas\":{%s}}}",
      Quoted(version), paths, schemas);
}

}  // namespace baton::router
