#include "router/anthropic/message_blocks.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "router/openai/generate_params.h"

namespace baton::router {
namespace {

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

// A block's member that is a string.
ApiResult<std::string> TextMember(const JsonValue& block, std::string_view key,
                                  const std::string& path) {
  const JsonValue* value = block.FindNonNull(key);
  if (value == nullptr)
    return BadRequest(absl::StrFormat("%s.%s: Field required", path, key), path);
  if (!value->is_string()) return WrongType(absl::StrFormat("%s.%s", path, key), "string", *value);
  return value->text();
}

ApiResult<std::string> TypeOf(const JsonValue& block, const std::string& path) {
  if (!block.is_object()) return WrongType(path, "object", block);
  return TextMember(block, "type", path);
}

ApiError NotTaken(const std::string& type, const std::string& path) {
  return BadRequest(
      absl::StrFormat("%s.type: '%s' is not supported: this model reads text only", path, type),
      path);
}

// What an assistant's blocks add up to.
struct AssistantParts {
  std::string text, reasoning;
  std::string calls;  // JSON objects, separated by commas
};

std::optional<ApiError> AddCall(const JsonValue& block, const std::string& path,
                                AssistantParts& parts) {
  ApiResult<std::string> id = TextMember(block, "id", path);
  if (!id.ok()) return id.error();
  ApiResult<std::string> name = TextMember(block, "name", path);
  if (!name.ok()) return name.error();
  const JsonValue* input = block.FindNonNull("input");
  if (input != nullptr && !input->is_object()) return WrongType(path + ".input", "object", *input);
  if (!parts.calls.empty()) parts.calls += ", ";
  parts.calls += absl::StrFormat(
      "{\"id\": %s, \"type\": \"function\", \"function\": {\"name\": %s, \"arguments\": %s}}",
      Quoted(*id), Quoted(*name), input == nullptr ? "{}" : input->Dump());
  return std::nullopt;
}

std::optional<ApiError> AddBlock(const JsonValue& block, const std::string& path,
                                 AssistantParts& parts) {
  ApiResult<std::string> type = TypeOf(block, path);
  if (!type.ok()) return type.error();
  if (*type == "tool_use") return AddCall(block, path, parts);
  if (*type == "redacted_thinking") return std::nullopt;  // nobody here can read it
  const bool is_thinking = *type == "thinking";
  if (!is_thinking && *type != "text") return NotTaken(*type, path);
  ApiResult<std::string> text = TextMember(block, *type, path);
  if (!text.ok()) return text.error();
  (is_thinking ? parts.reasoning : parts.text) += *text;
  return std::nullopt;
}

}  // namespace

void JsonWriter::Member(std::string_view key, std::string_view json) {
  text_ += text_.empty() ? "{" : ", ";
  AppendJsonString(key, text_);
  text_ += ": ";
  text_ += json;
}

ApiResult<std::string> TextBlock(const JsonValue& block, const std::string& path) {
  ApiResult<std::string> type = TypeOf(block, path);
  if (!type.ok()) return type.error();
  if (*type != "text") return NotTaken(*type, path);
  return TextMember(block, "text", path);
}

void ChatMessagesJson::Append(std::string_view json) {
  text_ += text_.empty() ? "[" : ", ";
  text_ += json;
}

void ChatMessagesJson::Add(std::string_view role, std::string_view content) {
  text_bytes_ += content.size();
  Append(absl::StrFormat("{\"role\": \"%s\", \"content\": %s}", role, Quoted(content)));
}

std::optional<ApiError> ChatMessagesJson::Translate(const JsonValue& message,
                                                    const std::string& path, bool is_last) {
  if (!message.is_object()) return WrongType(path, "object", message);
  ApiResult<std::string> role = TextMember(message, "role", path);
  if (!role.ok()) return role.error();
  const JsonValue* content = message.FindNonNull("content");
  const std::string content_path = path + ".content";
  if (content == nullptr) return BadRequest(content_path + ": Field required", content_path);
  if (!content->is_string() && !content->is_array())
    return WrongType(content_path, "string or array", *content);
  if (*role == "assistant") return TranslateAssistant(*content, content_path, is_last);
  // Claude Code's ctx and msg are users too (6.1).
  if (*role == "user" || *role == "ctx" || *role == "msg")
    return TranslateUser(*content, content_path);
  if (*role != "system")
    return BadRequest(
        absl::StrFormat("%s.role: '%s' is none of user, assistant, system", path, *role), path);
  if (content->is_string()) {
    Add("system", content->text());
    return std::nullopt;
  }
  for (size_t i = 0; i < content->items().size(); ++i) {
    ApiResult<std::string> text =
        TextBlock(content->items()[i], absl::StrFormat("%s.%d", content_path, i));
    if (!text.ok()) return text.error();
    Add("system", *text);
  }
  return std::nullopt;
}

std::optional<ApiError> ChatMessagesJson::TranslateUser(const JsonValue& content,
                                                        const std::string& path) {
  if (content.is_string()) {
    Add("user", content.text());
    return std::nullopt;
  }
  if (content.items().empty()) return BadRequest(path + ": at least one block is required", path);
  for (size_t i = 0; i < content.items().size(); ++i) {
    const JsonValue& block = content.items()[i];
    const std::string block_path = absl::StrFormat("%s.%d", path, i);
    ApiResult<std::string> type = TypeOf(block, block_path);
    if (!type.ok()) return type.error();
    if (*type == "tool_result") {
      if (auto error = TranslateResult(block, block_path)) return error;
      continue;
    }
    ApiResult<std::string> text = TextBlock(block, block_path);
    if (!text.ok()) return text.error();
    Add("user", *text);
  }
  return std::nullopt;
}

// A result may hold what the model cannot see, such as a screenshot: the encoder names it instead
// (protocol.md 2.1), so that an agent's session goes on.
std::optional<ApiError> ChatMessagesJson::TranslateResult(const JsonValue& block,
                                                          const std::string& path) {
  ApiResult<std::string> id = TextMember(block, "tool_use_id", path);
  if (!id.ok()) return id.error();
  const JsonValue* content = block.FindNonNull("content");
  std::string json = "\"\"";
  if (content != nullptr) {
    if (!content->is_string() && !content->is_array())
      return WrongType(path + ".content", "string or array", *content);
    for (size_t i = 0; i < content->items().size(); ++i) {
      const std::string part_path = absl::StrFormat("%s.content.%d", path, i);
      ApiResult<std::string> type = TypeOf(content->items()[i], part_path);
      if (!type.ok()) return type.error();
      if (*type != "text") continue;
      ApiResult<std::string> text = TextMember(content->items()[i], "text", part_path);
      if (!text.ok()) return text.error();
      text_bytes_ += text->size();
    }
    text_bytes_ += content->text().size();
    json = content->Dump();
  }
  Append(absl::StrFormat("{\"role\": \"tool\", \"tool_call_id\": %s, \"content\": %s}", Quoted(*id),
                         json));
  return std::nullopt;
}

std::optional<ApiError> ChatMessagesJson::TranslateAssistant(const JsonValue& content,
                                                             const std::string& path,
                                                             bool is_last) {
  AssistantParts parts;
  if (content.is_string()) parts.text = content.text();
  for (size_t i = 0; i < content.items().size(); ++i)
    if (auto error = AddBlock(content.items()[i], absl::StrFormat("%s.%d", path, i), parts))
      return error;
  text_bytes_ += parts.text.size() + parts.reasoning.size();
  JsonWriter message;
  message.Member("role", "\"assistant\"");
  message.Member("content", Quoted(parts.text));
  if (!parts.reasoning.empty()) message.Member("reasoning_content", Quoted(parts.reasoning));
  if (!parts.calls.empty()) message.Member("tool_calls", "[" + parts.calls + "]");
  if (is_last) message.Member("prefix", "true");
  Append(message.Finish());
  return std::nullopt;
}

}  // namespace baton::router
