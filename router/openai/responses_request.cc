#include "router/openai/responses_request.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

#include "router/openai/generate_params.h"

namespace baton::router {
namespace {

using MaybeError = std::optional<ApiError>;

// Of each member that the answer repeats, in three events if it is streamed. Longer instructions
// and tools, which are much of a prompt, are left out of it; what costs no prompt is refused.
constexpr size_t kMaxEchoBytes = 256 << 10;
constexpr size_t kShownBytes = 64;  // of a wrong value in an error

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

ApiError Wrong(const std::string& path, std::string_view expected, const JsonValue* got) {
  const JsonValue null;
  return WrongType(path, expected, got == nullptr ? null : *got);
}

// A member that must be a string; empty where it is absent or null.
ApiResult<std::string> TextAt(const JsonValue& object, std::string_view key,
                              const std::string& path) {
  const JsonValue* value = object.FindNonNull(key);
  if (value == nullptr) return std::string();
  if (!value->is_string()) return Wrong(absl::StrFormat("%s.%s", path, key), "string", value);
  return value->text();
}

// One message of the chat on its way.
struct Draft {
  std::string role;
  std::string content = "null";  // JSON
  std::string reasoning{};
  std::string calls{};         // JSON, without brackets
  std::string tool_call_id{};  // of a tool
  ResponsesSource source{};
};

std::string MessageJson(const Draft& draft) {
  std::string json =
      absl::StrFormat("{\"role\":%s,\"content\":%s", Quoted(draft.role), draft.content);
  if (!draft.reasoning.empty()) json += ",\"reasoning_content\":" + Quoted(draft.reasoning);
  if (!draft.calls.empty()) json += ",\"tool_calls\":[" + draft.calls + "]";
  if (draft.role == "tool") json += ",\"tool_call_id\":" + Quoted(draft.tool_call_id);
  return json + "}";
}

// Items to messages: reasoning and calls join the assistant message they belong to.
class ItemReader {
 public:
  ItemReader(std::vector<Draft>& drafts, const TextSealer& sealer)
      : drafts_(drafts), sealer_(sealer) {}

  MaybeError Read(const JsonValue& item, const std::string& path) {
    if (!item.is_object()) return Wrong(path, "object", &item);
    ApiResult<std::string> type = TextAt(item, "type", path);
    if (!type.ok()) return type.error();
    if (type->empty() || *type == "message") return ReadMessage(item, path);
    if (*type == "function_call") return ReadCall(item, path);
    if (*type == "function_call_output") return ReadOutput(item, path);
    if (*type == "reasoning") return ReadReasoning(item, path);
    return BadRequest(
        absl::StrFormat("%s.type: items of type \"%s\" are not supported", path, *type),
        path + ".type");
  }

 private:
  MaybeError ReadMessage(const JsonValue& item, const std::string& path) {
    constexpr std::string_view kRoles[] = {"user", "assistant", "system", "developer"};
    const JsonValue* role = item.Find("role");
    if (role == nullptr || !role->is_string()) return Wrong(path + ".role", "string", role);
    if (std::find(std::begin(kRoles), std::end(kRoles), role->text()) == std::end(kRoles))
      return BadRequest(absl::StrFormat("%s.role: unknown role \"%s\", want user, assistant, "
                                        "system or developer",
                                        path, role->text().substr(0, kShownBytes)),
                        path + ".role");
    ApiResult<std::string> content = Content(item.Find("content"), path + ".content");
    if (!content.ok()) return content.error();
    Draft draft = {.role = role->text(), .content = *std::move(content), .source = {.item = path}};
    if (draft.role == "assistant") {
      draft.reasoning = std::exchange(reasoning_, {});
    } else {
      EndTurn();
    }
    drafts_.push_back(std::move(draft));
    return std::nullopt;
  }

  // A string, or text parts, which the chat takes as they are.
  static ApiResult<std::string> Content(const JsonValue* content, const std::string& path) {
    if (content == nullptr) return Wrong(path, "string or array", content);
    if (content->is_string()) return content->Dump();
    if (!content->is_array()) return Wrong(path, "string or array", content);
    for (size_t i = 0; i < content->items().size(); ++i) {
      const JsonValue& part = content->items()[i];
      const std::string part_path = absl::StrFormat("%s[%d]", path, i);
      ApiResult<std::string> type = TextAt(part, "type", part_path);
      if (!type.ok()) return type.error();
      if (*type != "input_text" && *type != "output_text" && *type != "text")
        return BadRequest("Only text content is supported by this model", part_path);
      const JsonValue* text = part.Find("text");
      if (text == nullptr || !text->is_string()) return Wrong(part_path + ".text", "string", text);
    }
    return content->Dump();
  }

  MaybeError ReadCall(const JsonValue& item, const std::string& path) {
    std::string texts[3];
    const char* keys[] = {"call_id", "name", "arguments"};
    for (size_t i = 0; i < std::size(keys); ++i) {
      const JsonValue* value = item.Find(keys[i]);
      if (value == nullptr || !value->is_string())
        return Wrong(absl::StrFormat("%s.%s", path, keys[i]), "string", value);
      texts[i] = value->text();
    }
    const auto arguments = JsonValue::Parse(texts[2]);
    if (arguments.ok() && !arguments->is_object())
      return BadRequest(path + ".arguments must be a JSON object", path + ".arguments");
    if (drafts_.empty() || drafts_.back().role != "assistant" || !reasoning_.empty())
      drafts_.push_back({.role = "assistant",
                         .reasoning = std::exchange(reasoning_, {}),
                         .source = {.item = path}});
    Draft& draft = drafts_.back();
    draft.source.calls.push_back(path);
    absl::StrAppendFormat(
        &draft.calls,
        "%s{\"id\":%s,\"type\":\"function\",\"function\":{\"name\":%s,\"arguments\":%s}}",
        draft.calls.empty() ? "" : ",", Quoted(texts[0]), Quoted(texts[1]), Quoted(texts[2]));
    return std::nullopt;
  }

  MaybeError ReadOutput(const JsonValue& item, const std::string& path) {
    ApiResult<std::string> id = TextAt(item, "call_id", path);
    if (!id.ok()) return id.error();
    ApiResult<std::string> content = Content(item.Find("output"), path + ".output");
    if (!content.ok()) return content.error();
    EndTurn();
    drafts_.push_back({.role = "tool",
                       .content = *std::move(content),
                       .tool_call_id = *std::move(id),
                       .source = {.item = path}});
    return std::nullopt;
  }

  // Reasoning that was cut off before any text or call is a turn of its own.
  void EndTurn() {
    if (reasoning_.empty()) return;
    drafts_.push_back({.role = "assistant",
                       .content = "\"\"",
                       .reasoning = std::exchange(reasoning_, {}),
                       .source = {.item = reasoning_path_}});
  }

  // Its text waits for the assistant's message or call.
  MaybeError ReadReasoning(const JsonValue& item, const std::string& path) {
    reasoning_path_ = path;
    const JsonValue* content = item.FindNonNull("content");
    if (content == nullptr || (content->is_array() && content->items().empty()))
      return ReadSealed(item, path);
    if (!content->is_array()) return Wrong(path + ".content", "array", content);
    for (size_t i = 0; i < content->items().size(); ++i) {
      const std::string part_path = absl::StrFormat("%s.content[%d]", path, i);
      ApiResult<std::string> text = TextAt(content->items()[i], "text", part_path);
      if (!text.ok()) return text.error();
      reasoning_ += *text;
    }
    return std::nullopt;
  }

  // What we sealed for a client that sends no text back (responses_writer.h).
  MaybeError ReadSealed(const JsonValue& item, const std::string& path) {
    ApiResult<std::string> blob = TextAt(item, "encrypted_content", path);
    if (!blob.ok()) return blob.error();
    const auto text = sealer_.Open(*blob);
    if (!text.ok())
      return BadRequest(
          absl::StrFormat("%s.encrypted_content: %s", path, std::string(text.status().message())),
          path + ".encrypted_content");
    reasoning_ += text->value_or("");
    return std::nullopt;
  }

  std::vector<Draft>& drafts_;
  const TextSealer& sealer_;
  std::string reasoning_;
  std::string reasoning_path_;
};

MaybeError RefuseState(const JsonValue& body) {
  for (const std::string_view key : {"previous_response_id", "conversation"}) {
    if (body.FindNonNull(key) != nullptr)
      return BadRequest(absl::StrFormat("%s is not supported; send the full input", key),
                        std::string(key));
  }
  for (const std::string_view key : {"prompt", "max_tool_calls"}) {
    if (body.FindNonNull(key) != nullptr)
      return BadRequest(absl::StrFormat("%s is not supported by this server", key),
                        std::string(key));
  }
  ApiResult<bool> background = BoolMemberOr(body, "background", false);
  if (!background.ok()) return background.error();
  if (*background) return BadRequest("background is not supported by this server", "background");
  const JsonValue* truncation = body.FindNonNull("truncation");
  if (truncation == nullptr) return std::nullopt;
  if (truncation->is_string() && truncation->text() == "disabled") return std::nullopt;
  return BadRequest("truncation must be \"disabled\"", "truncation");
}

MaybeError ReadInput(const JsonValue& body, const TextSealer& sealer, std::vector<Draft>& drafts) {
  const JsonValue* input = body.Find("input");
  if (input == nullptr) return BadRequest("input: expected string or array, got nothing", "input");
  if (input->is_string()) {
    drafts.push_back({.role = "user", .content = input->Dump(), .source = {.item = "input"}});
    return std::nullopt;
  }
  if (!input->is_array()) return WrongType("input", "string or array", *input);
  ItemReader reader(drafts, sealer);
  for (size_t i = 0; i < input->items().size(); ++i) {
    if (auto error = reader.Read(input->items()[i], absl::StrFormat("input[%d]", i))) return error;
  }
  return std::nullopt;
}

MaybeError AddMessages(const JsonValue& body, const TextSealer& sealer, TranslatedResponse& out) {
  std::vector<Draft> drafts;
  if (const JsonValue* instructions = body.FindNonNull("instructions")) {
    if (!instructions->is_string()) return WrongType("instructions", "string", *instructions);
    const std::string text = instructions->Dump();
    if (text.size() <= kMaxEchoBytes) out.echo.instructions = text;
    drafts.push_back({.role = "system", .content = text, .source = {.item = "instructions"}});
  }
  if (auto error = ReadInput(body, sealer, drafts)) return error;
  std::string list;
  for (Draft& draft : drafts) {
    list += (list.empty() ? "" : ",") + MessageJson(draft);
    out.sources.push_back(std::move(draft.source));
  }
  out.chat = "{\"messages\":[" + list + "]";
  return std::nullopt;
}

// Flat tools to the chat's: name, description, parameters, strict, in this order (5.8).
MaybeError AddTools(const JsonValue& body, std::string& chat, ResponsesEcho& echo) {
  const JsonValue* tools = body.FindNonNull("tools");
  if (tools == nullptr) return std::nullopt;
  if (!tools->is_array()) return WrongType("tools", "array", *tools);
  if (tools->items().empty()) return std::nullopt;  // as clients without tools send it
  std::string list;
  for (size_t i = 0; i < tools->items().size(); ++i) {
    const JsonValue& tool = tools->items()[i];
    const std::string path = absl::StrFormat("tools[%d]", i);
    if (!tool.is_object()) return WrongType(path, "object", tool);
    const JsonValue* type = tool.Find("type");
    if (type == nullptr || !type->is_string() || type->text() != "function")
      return BadRequest(path + ".type: only tools of type \"function\" are supported",
                        path + ".type");
    const JsonValue* name = tool.Find("name");
    if (name == nullptr || !name->is_string()) return Wrong(path + ".name", "string", name);
    std::string function;
    for (const std::string_view member : {"name", "description", "parameters", "strict"}) {
      const JsonValue* value = tool.FindNonNull(member);
      if (value == nullptr) continue;
      absl::StrAppendFormat(&function, "%s\"%s\":%s", function.empty() ? "" : ",", member,
                            value->Dump());
    }
    absl::StrAppendFormat(&list, "%s{\"type\":\"function\",\"function\":{%s}}",
                          list.empty() ? "" : ",", function);
  }
  chat += ",\"tools\":[" + list + "]";
  std::string repeated = tools->Dump();
  if (repeated.size() <= kMaxEchoBytes) echo.tools = std::move(repeated);
  return std::nullopt;
}

MaybeError AddToolChoice(const JsonValue& body, std::string& chat, ResponsesEcho& echo) {
  const JsonValue* choice = body.FindNonNull("tool_choice");
  const JsonValue* tools = body.FindNonNull("tools");
  const bool has_tools = tools != nullptr && !tools->items().empty();
  if (choice == nullptr) return std::nullopt;
  echo.tool_choice = choice->Dump();
  if (choice->is_string()) {
    // "auto" and "none" without tools are what clients without tools send.
    const bool is_default = choice->text() == "auto" || choice->text() == "none";
    if (has_tools || !is_default) chat += ",\"tool_choice\":" + choice->Dump();
    return std::nullopt;
  }
  const JsonValue* name = choice->Find("name");
  if (name == nullptr || !name->is_string())
    return BadRequest("Invalid value for `tool_choice`", "tool_choice");
  absl::StrAppendFormat(
      &chat, ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":%s}}", name->Dump());
  return std::nullopt;
}

MaybeError AddReasoning(const JsonValue& body, std::string& chat, ResponsesEcho& echo) {
  const JsonValue* reasoning = body.FindNonNull("reasoning");
  if (reasoning == nullptr) return std::nullopt;
  if (!reasoning->is_object()) return WrongType("reasoning", "object", *reasoning);
  const JsonValue* effort = reasoning->FindNonNull("effort");
  if (effort == nullptr) return std::nullopt;
  if (!effort->is_string()) return WrongType("reasoning.effort", "string", *effort);
  chat += ",\"reasoning_effort\":" + effort->Dump();
  // Typed clients know no higher level (5.8).
  const bool is_higher =
      effort->text() == "xhigh" || effort->text() == "max" || effort->text() == "ultra";
  echo.effort = is_higher ? "\"high\"" : effort->Dump();
  return std::nullopt;
}

MaybeError AddFormat(const JsonValue& body, std::string& chat, ResponsesEcho& echo) {
  const JsonValue* text = body.FindNonNull("text");
  if (text == nullptr) return std::nullopt;
  if (!text->is_object()) return WrongType("text", "object", *text);
  const JsonValue* format = text->FindNonNull("format");
  if (format == nullptr) return std::nullopt;
  const JsonValue* type = format->Find("type");
  if (type == nullptr || !type->is_string()) return Wrong("text.format.type", "string", type);
  echo.format = format->Dump();
  if (type->text() != "json_schema") {
    chat += ",\"response_format\":" + format->Dump();
    return std::nullopt;
  }
  const JsonValue* schema = format->FindNonNull("schema");
  if (schema == nullptr || !schema->is_object())
    return Wrong("text.format.schema", "object", schema);
  absl::StrAppendFormat(
      &chat, ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":%s}}",
      schema->Dump());
  return std::nullopt;
}

// Members that the chat has as well, under its own name.
MaybeError TooLarge(const char* path, size_t bytes) {
  return BadRequest(
      absl::StrFormat("%s has %d bytes, the limit is %d.", path, bytes, kMaxEchoBytes), path);
}

// As OpenAI limits it.
MaybeError CheckMetadata(const JsonValue& body) {
  constexpr size_t kMaxPairs = 16, kMaxKeyBytes = 64, kMaxValueBytes = 512;
  const JsonValue* metadata = body.FindNonNull("metadata");
  if (metadata == nullptr) return std::nullopt;
  if (!metadata->is_object()) return WrongType("metadata", "object", *metadata);
  if (metadata->members().size() > kMaxPairs)
    return BadRequest(absl::StrFormat("metadata has %d pairs, the limit is %d.",
                                      metadata->members().size(), kMaxPairs),
                      "metadata");
  for (const auto& [key, value] : metadata->members()) {
    if (!value.is_string()) return WrongType("metadata", "strings as values", value);
    if (key.size() > kMaxKeyBytes || value.text().size() > kMaxValueBytes)
      return BadRequest(
          absl::StrFormat("metadata has a key of %d and a value of %d bytes, the limits are %d and "
                          "%d.",
                          key.size(), value.text().size(), kMaxKeyBytes, kMaxValueBytes),
          "metadata");
  }
  return std::nullopt;
}

MaybeError AddPlain(const JsonValue& body, std::string& chat, ResponsesEcho& echo) {
  int64_t limit = 0;
  if (body.FindNonNull("max_output_tokens") != nullptr) {
    ApiResult<int64_t> given = IntMember(body, "max_output_tokens", 0);
    if (!given.ok()) return given.error();
    limit = *given;
    if (limit < 1)
      return BadRequest(absl::StrFormat("max_output_tokens must be at least 1, got %d.", limit),
                        "max_output_tokens");
    echo.max_output_tokens = absl::StrFormat("%d", limit);
    chat += ",\"max_completion_tokens\":" + echo.max_output_tokens;
  }
  for (const std::string_view key : {"model", "temperature", "top_p", "stream", "seed",
                                     "parallel_tool_calls", "chat_template_kwargs"}) {
    const JsonValue* value = body.FindNonNull(key);
    if (value != nullptr) absl::StrAppendFormat(&chat, ",\"%s\":%s", key, value->Dump());
  }
  const auto repeat = [&](std::string_view key, std::string& place) {
    if (const JsonValue* value = body.FindNonNull(key)) place = value->Dump();
  };
  repeat("temperature", echo.temperature);
  repeat("top_p", echo.top_p);
  repeat("parallel_tool_calls", echo.parallel_tool_calls);
  if (auto error = CheckMetadata(body)) return error;
  repeat("metadata", echo.metadata);
  return std::nullopt;
}

MaybeError ReadInclude(const JsonValue& body, std::string&, ResponsesEcho& echo) {
  const JsonValue* include = body.FindNonNull("include");
  if (include == nullptr) return std::nullopt;
  if (!include->is_array()) return WrongType("include", "array of strings", *include);
  for (const JsonValue& name : include->items()) {
    if (!name.is_string()) return WrongType("include", "array of strings", name);
    if (name.text() == "reasoning.encrypted_content") echo.seals_reasoning = true;
  }
  return std::nullopt;
}

// What is repeated in the answer is kept until its end, and costs no prompt.
MaybeError CheckEcho(const ResponsesEcho& echo) {
  if (echo.format.size() > kMaxEchoBytes) return TooLarge("text.format", echo.format.size());
  if (echo.tool_choice.size() > kMaxEchoBytes)
    return TooLarge("tool_choice", echo.tool_choice.size());
  return std::nullopt;
}

}  // namespace

ApiResult<TranslatedResponse> TranslateResponses(const JsonValue& body, const TextSealer& sealer) {
  TranslatedResponse out;
  if (auto error = RefuseState(body)) return *error;
  if (auto error = AddMessages(body, sealer, out)) return *error;
  using Add = MaybeError (*)(const JsonValue&, std::string&, ResponsesEcho&);
  for (const Add add : {AddTools, AddToolChoice, AddReasoning, AddFormat, AddPlain, ReadInclude}) {
    if (auto error = add(body, out.chat, out.echo)) return *error;
  }
  if (auto error = CheckEcho(out.echo)) return *error;
  out.chat += "}";
  return out;
}

}  // namespace baton::router
