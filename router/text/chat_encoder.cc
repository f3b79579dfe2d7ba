#include "router/text/chat_encoder.h"

#include <span>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "router/text/chat_literals.h"
#include "router/text/chat_turns.h"
#include "router/text/json_value.h"

namespace baton::router {

// Renders one prompt. `turns` holds every turn, those before `begin` only as context.
class ChatRenderer {
 public:
  ChatRenderer(const ChatEncoder& encoder, const ChatOptions& options, std::span<const Turn> turns,
               bool drops)
      : encoder_(encoder),
        tokens_(encoder.tokens_),
        options_(options),
        turns_(turns),
        drops_(drops),
        last_user_(LastUserTurn(turns)) {}

  absl::StatusOr<std::vector<Segment>> Render(size_t begin, const ChatMessage* first_message) {
    first_message_ = first_message;
    if (options_.num_context == 0 && options_.add_bos) AddToken(tokens_.bos);
    if (begin == 0 && options_.is_thinking) RETURN_IF_ERROR(AddEffort());
    for (size_t i = begin; i < turns_.size(); ++i) {
      RETURN_IF_ERROR(AddTurn(i));
      const bool is_last = i + 1 == turns_.size();
      if (!is_last || options_.add_generation_prompt) RETURN_IF_ERROR(AddTransition(i));
    }
    return std::move(segments_);
  }

 private:
  void AddToken(TokenId id) { segments_.push_back(Segment::Special(id)); }

  void AddText(std::string_view text) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().is_special()) segments_.emplace_back();
    segments_.back().text += text;
  }

  // A literal of the template, cut into tokens and text beforehand.
  void AddTemplate(std::span<const Segment> pieces) {
    for (const Segment& piece : pieces) {
      piece.is_special() ? AddToken(piece.special) : AddText(piece.text);
    }
  }

  absl::Status AddEffort() {
    const bool is_preview = options_.profile == EffortProfile::kPreview;
    switch (options_.effort) {
      case Effort::kUnset:
        return absl::OkStatus();
      case Effort::kLow:
        if (!is_preview) return absl::OkStatus();
        return absl::InvalidArgumentError("effort low does not exist in the preview profile");
      case Effort::kHigh:
        if (!is_preview) AddText(kEffortTextA);
        return absl::OkStatus();
      case Effort::kMax:
        AddText(is_preview ? kEffortTextA : kEffortTextB);
        return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status AddTurn(size_t index) {
    const Turn& turn = turns_[index];
    switch (turn.role) {
      case ChatRole::kSystem:
        AddText(turn.message->content);
        AddBlocks(*turn.message);
        return absl::OkStatus();
      case ChatRole::kDeveloper:
        if (turn.message->content.empty()) {
          return absl::InvalidArgumentError(absl::StrFormat(
              "messages[%d].content of a developer is empty", IndexOf(*turn.message)));
        }
        AddToken(tokens_.user);
        AddText(turn.message->content);
        AddBlocks(*turn.message);
        return absl::OkStatus();
      case ChatRole::kUser:
      case ChatRole::kTool:
        AddUser(turn);
        return absl::OkStatus();
      case ChatRole::kLatestReminder:
        AddToken(tokens_.latest_reminder);
        AddText(turn.message->content);
        return absl::OkStatus();
      case ChatRole::kAssistant:
        return AddAssistant(index);
    }
    return absl::OkStatus();
  }

  // Tools and response format behind a system or developer content.
  void AddBlocks(const ChatMessage& message) {
    if (!message.tools.empty()) {
      AddText("\n\n");
      AddTemplate(encoder_.tools_before_);
      for (size_t i = 0; i < message.tools.size(); ++i) {
        if (i > 0) AddText("\n");
        AddText(message.tools[i]);
      }
      AddTemplate(encoder_.tools_after_);
    }
    // To the checkpoint's encoder an empty schema is none.
    if (message.response_format && *message.response_format != "{}" &&
        *message.response_format != "false") {
      AddText("\n\n");
      AddText(kResponseFormatBefore);
      AddText(*message.response_format);
    }
  }

  void AddUser(const Turn& turn) {
    AddToken(tokens_.user);
    for (size_t i = 0; i < turn.blocks.size(); ++i) {
      const TurnBlock& block = turn.blocks[i];
      if (i > 0) AddText("\n\n");
      if (block.is_result) AddText("<tool_result>");
      AddText(block.text);
      if (block.is_result) AddText("</tool_result>");
    }
  }

  absl::Status AddAssistant(size_t index) {
    const ChatMessage& message = *turns_[index].message;
    const bool stays_open = options_.continue_final && index + 1 == turns_.size();
    const bool follows_task = index > 0 && !turns_[index - 1].task.empty();
    const bool is_recent = last_user_ == turns_.size() || index > last_user_;
    if (options_.is_thinking && !follows_task && (!drops_ || is_recent)) {
      AddText(message.reasoning);
      // An open message that has only reasoning goes on inside it (protocol.md 2.8.8).
      const bool stays_inside = stays_open && message.content.empty() &&
                                message.tool_calls.empty() && !message.reasoning.empty();
      if (!stays_inside) AddToken(tokens_.think_close);
    }
    AddText(message.content);
    if (!message.tool_calls.empty()) RETURN_IF_ERROR(AddCalls(message));
    if (!stays_open) AddToken(tokens_.eos);
    return absl::OkStatus();
  }

  // Markup that we know was sampled: only its tokens are tokens.
  void AddSampled(const SampledBlock& block) {
    size_t begin = 0;
    for (const size_t at : block.tokens_at) {
      AddText(std::string_view(block.text).substr(begin, at - begin));
      AddToken(tokens_.dsml);
      begin = at + kDsmlText.size();
    }
    AddText(std::string_view(block.text).substr(begin));
  }

  absl::Status AddCalls(const ChatMessage& message) {
    if (!message.sampled_calls.text.empty()) {
      AddSampled(message.sampled_calls);
      return absl::OkStatus();
    }
    AddTemplate(encoder_.calls_open_);
    for (size_t i = 0; i < message.tool_calls.size(); ++i) {
      const ChatToolCall& call = message.tool_calls[i];
      if (i > 0) AddText("\n");
      AddTemplate(encoder_.invoke_open_);
      AddText(call.name);
      AddText("\">\n");
      if (!AddArguments(call.arguments)) {
        return absl::InvalidArgumentError(
            absl::StrFormat("messages[%d].tool_calls[%d].function.arguments must be a JSON object",
                            IndexOf(message), i));
      }
      AddTemplate(encoder_.invoke_close_);
    }
    AddTemplate(encoder_.calls_close_);
    return absl::OkStatus();
  }

  // False when the text is JSON but no object. Text that is no JSON becomes one string parameter.
  bool AddArguments(const std::string& arguments) {
    const absl::StatusOr<JsonValue> parsed = JsonValue::Parse(arguments);
    if (!parsed.ok()) {
      AddParameter("arguments", arguments, true);
      return true;
    }
    if (!parsed->is_object()) return false;
    bool is_first = true;
    for (const auto& [key, value] : parsed->members()) {
      if (!is_first) AddText("\n");
      is_first = false;
      AddParameter(key, value.is_string() ? value.text() : value.Dump(), value.is_string());
    }
    return true;
  }

  void AddParameter(std::string_view key, std::string_view value, bool is_string) {
    AddTemplate(encoder_.parameter_open_);
    AddText(key);
    AddText(is_string ? "\" string=\"true\">" : "\" string=\"false\">");
    AddText(value);
    AddTemplate(encoder_.parameter_close_);
  }

  absl::Status AddTransition(size_t index) {
    const Turn& turn = turns_[index];
    if (index + 1 < turns_.size()) {
      const ChatRole next = turns_[index + 1].role;
      if (next != ChatRole::kAssistant && next != ChatRole::kLatestReminder)
        return absl::OkStatus();
    }
    if (!turn.task.empty()) return AddTask(turn.task);
    if (!turn.is_user_side()) return absl::OkStatus();
    AddToken(tokens_.assistant);
    const bool thinks = options_.is_thinking && (!drops_ || index >= last_user_);
    AddToken(thinks ? tokens_.think_open : tokens_.think_close);
    return absl::OkStatus();
  }

  absl::Status AddTask(std::string_view task) {
    if (task == "action") {
      AddToken(tokens_.assistant);
      AddToken(options_.is_thinking ? tokens_.think_open : tokens_.think_close);
    }
    const std::pair<std::string_view, TokenId> known[] = {
        {"action", tokens_.action}, {"query", tokens_.query}, {"authority", tokens_.authority},
        {"domain", tokens_.domain}, {"title", tokens_.title}, {"read_url", tokens_.read_url},
    };
    for (const auto& [name, id] : known) {
      if (name != task) continue;
      AddToken(id);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrFormat("unknown task \"%s\"", task));
  }

  ptrdiff_t IndexOf(const ChatMessage& message) const { return &message - first_message_; }

  const ChatEncoder& encoder_;
  const ChatEncoder::Tokens& tokens_;
  const ChatOptions& options_;
  const std::span<const Turn> turns_;
  const bool drops_;
  const size_t last_user_;
  const ChatMessage* first_message_ = nullptr;
  std::vector<Segment> segments_;
};

absl::StatusOr<ChatEncoder> ChatEncoder::Create(const Tokenizer& tokenizer) {
  ChatEncoder encoder;
  Tokens& t = encoder.tokens_;
  const std::pair<std::string_view, TokenId*> wanted[] = {
      {"<｜begin▁of▁sentence｜>", &t.bos},
      {"<｜end▁of▁sentence｜>", &t.eos},
      {"<｜User｜>", &t.user},
      {"<｜Assistant｜>", &t.assistant},
      {"<｜latest_reminder｜>", &t.latest_reminder},
      {"<think>", &t.think_open},
      {"</think>", &t.think_close},
      {kDsmlText, &t.dsml},
      {"<｜action｜>", &t.action},
      {"<｜query｜>", &t.query},
      {"<｜authority｜>", &t.authority},
      {"<｜domain｜>", &t.domain},
      {"<｜title｜>", &t.title},
      {"<｜read_url｜>", &t.read_url},
  };
  for (const auto& [name, place] : wanted) {
    const std::optional<TokenId> id = tokenizer.IdOf(name);
    if (!id)
      return absl::InvalidArgumentError(absl::StrFormat("tokenizer lacks the token %s", name));
    *place = *id;
  }
  encoder.tools_before_ = tokenizer.Cut(kToolsBlockBefore);
  encoder.tools_after_ = tokenizer.Cut(kToolsBlockAfter);
  encoder.calls_open_ = tokenizer.Cut(kCallsOpen);
  encoder.calls_close_ = tokenizer.Cut(kCallsClose);
  encoder.invoke_open_ = tokenizer.Cut(kInvokeOpen);
  encoder.invoke_close_ = tokenizer.Cut(kInvokeClose);
  encoder.parameter_open_ = tokenizer.Cut(kParameterOpen);
  encoder.parameter_close_ = tokenizer.Cut(kParameterClose);
  return encoder;
}

absl::StatusOr<std::vector<Segment>> ChatEncoder::Encode(const std::vector<ChatMessage>& messages,
                                                         const ChatOptions& options) const {
  if (messages.size() <= options.num_context) {
    return absl::InvalidArgumentError(absl::StrFormat("messages: %d given, %d of them context",
                                                      messages.size(), options.num_context));
  }
  // Context and what follows are merged apart: their border stays where the caller put it.
  const std::span<const ChatMessage> all(messages);
  std::vector<Turn> context = MergeTurns(all.first(options.num_context));
  std::vector<Turn> turns = context;
  for (Turn& turn : MergeTurns(all.subspan(options.num_context))) turns.push_back(std::move(turn));
  SortResults(turns);
  const bool drops = options.drop_thinking && !HasTools(turns);
  if (drops && options.is_thinking) {
    DropOldDevelopers(turns);
    DropOldDevelopers(context);
  }
  ChatRenderer renderer(*this, options, turns, drops);
  return renderer.Render(context.size(), messages.data());
}

std::vector<Segment> ChatEncoder::CallPrefix(std::string_view name) const {
  std::vector<Segment> segments = calls_open_;
  segments.insert(segments.end(), invoke_open_.begin(), invoke_open_.end());
  if (!name.empty()) segments.push_back(Segment::Text(std::string(name) + "\">\n"));
  return segments;
}

}  // namespace baton::router
