#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/hash.h"
#include "common/ids.h"
#include "router/anthropic/messages_request.h"
#include "router/openai/chat_messages.h"
#include "router/text/chat_literals.h"
#include "router/text/render_vectors.h"
#include "tests/vectors/vector_file.h"

// chat/wire_strings.json, chat/render_encoder.json and chat/render_request.json.
namespace baton::vectors {

using router::ApiResult;
using router::ChatDefaults;
using router::ChatEncoder;
using router::ChatInput;
using router::ChatMessage;
using router::ChatOptions;
using router::EffortProfile;
using router::Segment;
using router::SpecialTokens;
using router::Tokenizer;

namespace {

// Our prompt against the case's `prompt`, `ids` and `ids_content_plain`.
Failure ComparePrompt(const JsonValue& item, const std::vector<Segment>& segments,
                      const Tokenizer& tokenizer, FileResult& result) {
  const std::string text = tokenizer.ToText(segments);
  const std::string want = TextOf(item, "prompt");
  const auto ids = IdsOf(item.Find("ids"));
  if (text != want && DifferInSpellingOfNumbers(text, want)) {
    ++result.respelled;
    return CompareIds("ids of the prompt", tokenizer.Encode(want, SpecialTokens::kRecognise), ids);
  }
  if (auto failure = Compare("prompt", text, want)) return failure;
  if (auto failure =
          CompareIds("ids of the text", tokenizer.Encode(text, SpecialTokens::kRecognise), ids))
    return failure;
  const JsonValue* plain = item.Find("ids_content_plain");
  return CompareIds("ids", tokenizer.EncodeSegments(segments), plain ? IdsOf(plain) : ids);
}

Failure CheckEncoderCase(const JsonValue& item, const ChatEncoder& encoder,
                         const Tokenizer& tokenizer, FileResult& result) {
  std::vector<ChatMessage> messages;
  ChatOptions options = router::VectorOptions(item);
  if (const JsonValue* context = item.Find("context")) {
    for (const JsonValue& message : context->items())
      messages.push_back(router::VectorMessage(message));
  }
  options.num_context = messages.size();
  if (const JsonValue* list = item.Find("messages")) {
    for (const JsonValue& message : list->items())
      messages.push_back(router::VectorMessage(message));
  }
  const auto segments = encoder.Encode(messages, options);
  if (!segments.ok()) return std::string(segments.status().message());
  return ComparePrompt(item, *segments, tokenizer, result);
}

ChatDefaults DefaultsOf(const JsonValue* server) {
  ChatDefaults defaults;
  if (server == nullptr) return defaults;
  if (TextOf(*server, "profile") == "preview") defaults.profile = EffortProfile::kPreview;
  defaults.is_thinking = FlagOf(*server, "default_thinking", true);
  defaults.inject_response_format = FlagOf(*server, "inject_response_format", true);
  defaults.is_developer_native = TextOf(*server, "developer_role") == "native";
  return defaults;
}

ApiResult<ChatInput> InputOf(const JsonValue& item) {
  const ChatDefaults defaults = DefaultsOf(item.Find("server"));
  const JsonValue* body = item.Find("body");
  if (body == nullptr) return router::BadRequest("the file has no body", "body");
  if (TextOf(item, "api") != "anthropic") return router::ParseChatInput(*body, defaults);
  const auto chat = router::TranslateMessages(*body, /*needs_max_tokens=*/false);
  if (!chat.ok()) return chat.error();
  const auto parsed = JsonValue::Parse(chat->body);
  if (!parsed.ok()) return router::BadRequest(std::string(parsed.status().message()), "body");
  return router::ParseChatInput(*parsed, defaults);
}

Failure CheckRequestCase(const JsonValue& item, const ChatEncoder& encoder,
                         const Tokenizer& tokenizer, FileResult& result) {
  const ApiResult<ChatInput> input = InputOf(item);
  if (!input.ok()) return "refused: " + input.error().message;
  const std::string mode = input->options.is_thinking ? "thinking" : "chat";
  if (auto failure = Compare("thinking_mode", mode, TextOf(item, "thinking_mode"))) return failure;
  const auto segments = encoder.Encode(input->messages, input->options);
  if (!segments.ok()) return std::string(segments.status().message());
  return ComparePrompt(item, *segments, tokenizer, result);
}

std::string Hex(std::string_view text) {
  const Sha256Bytes hash = Sha256Of(text);
  return ToHex(hash.data(), hash.size());
}

using RenderCheck = Failure (*)(const JsonValue&, const ChatEncoder&, const Tokenizer&,
                                FileResult&);

FileResult CheckRenderFile(const JsonValue& file, const Tokenizer& tokenizer, RenderCheck check) {
  FileResult notes;
  const auto encoder = ChatEncoder::Create(tokenizer);
  if (!encoder.ok()) {
    notes.Count("tokenizer", std::string(encoder.status().message()));
    return notes;
  }
  FileResult result = CheckCases(
      file, [&](const JsonValue& item) { return check(item, *encoder, tokenizer, notes); });
  result.respelled = notes.respelled;
  return result;
}

}  // namespace

FileResult CheckRenderEncoder(const JsonValue& file, const Tokenizer& tokenizer) {
  return CheckRenderFile(file, tokenizer, CheckEncoderCase);
}

FileResult CheckRenderRequest(const JsonValue& file, const Tokenizer& tokenizer) {
  return CheckRenderFile(file, tokenizer, CheckRequestCase);
}

// The literals themselves, and that each name of a token is one.
FileResult CheckWireStrings(const JsonValue& file, const Tokenizer& tokenizer) {
  const std::pair<const char*, std::string> literals[] = {
      {"tools_block", std::string(router::kToolsBlockBefore) + "{tool_schemas}" +
                          std::string(router::kToolsBlockAfter)},
      {"response_format_block", std::string(router::kResponseFormatBefore) + "{schema}"},
      {"effort_text_A", std::string(router::kEffortTextA)},
      {"effort_text_B", std::string(router::kEffortTextB)},
      {"tool_result", "<tool_result>{content}</tool_result>"},
  };
  FileResult result;
  for (const auto& [key, text] : literals) result.Count(key, Compare(key, text, TextOf(file, key)));
  if (const JsonValue* hashes = file.Find("sha256")) {
    for (const auto& [key, text] : literals) {
      if (hashes->Find(key) == nullptr) continue;
      result.Count(std::string("sha256.") + key, Compare("hash", Hex(text), TextOf(*hashes, key)));
    }
  }
  const auto check_token = [&](const std::string& key, const std::string& name) {
    const bool is_token = tokenizer.IdOf(name).has_value();
    result.Count(key, is_token ? Failure() : absl::StrFormat("\"%s\" is no token", name));
  };
  for (const char* key :
       {"bos", "eos", "user", "assistant", "latest_reminder", "think_open", "think_close", "dsml"})
    check_token(key, TextOf(file, key));
  if (const JsonValue* tasks = file.Find("task_tokens")) {
    for (const auto& [task, name] : tasks->members()) check_token("task " + task, name.text());
  }
  return result;
}

}  // namespace baton::vectors
