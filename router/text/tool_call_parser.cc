#include "router/text/tool_call_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/check.h"
#include "router/text/chat_literals.h"

namespace baton::router {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n\f\v";

bool IsWhiteSpace(std::string_view text) {
  return text.find_first_not_of(kWhiteSpace) == std::string_view::npos;
}

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kWhiteSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kWhiteSpace) - begin + 1);
}

// A schema's `type`, a name or a list of names.
bool NamesString(const JsonValue& type) {
  const auto is_string = [](const JsonValue& name) {
    return name.is_string() && name.text() == "string";
  };
  if (type.is_array()) return std::any_of(type.items().begin(), type.items().end(), is_string);
  return is_string(type);
}

}  // namespace

std::string_view DsmlOutcomeName(DsmlOutcome outcome) {
  constexpr std::array<std::string_view, kNumDsmlOutcomes> kNames = {"none", "ok", "repaired",
                                                                     "text", "cut"};
  return kNames[static_cast<size_t>(outcome)];
}

void AppendJsonEscaped(std::string_view text, std::string& out) {
  std::string quoted;
  AppendJsonString(text, quoted);
  out.append(quoted, 1, quoted.size() - 2);
}

void ToolSchemas::Add(const JsonValue& function) {
  const JsonValue* name = function.Find("name");
  const JsonValue* parameters = function.Find("parameters");
  const JsonValue* properties = parameters == nullptr ? nullptr : parameters->Find("properties");
  if (name == nullptr || !name->is_string() || properties == nullptr) return;
  for (const auto& [key, schema] : properties->members()) {
    const JsonValue* type = schema.FindNonNull("type");
    if (type != nullptr && !NamesString(*type)) not_strings_[name->text()].insert(key);
  }
}

bool ToolSchemas::TakesString(std::string_view tool, std::string_view key) const {
  const auto found = not_strings_.find(tool);
  return found == not_strings_.end() || found->second.find(key) == found->second.end();
}

void ToolCallParser::OnStart(std::string_view marker) {
  state_ = State::kBlock;
  tags_.Reset();
  CHECK(record_.text.empty());
  const size_t token = marker.find(kDsmlText);
  CHECK(token != std::string_view::npos);
  record_.tokens_at.push_back(token);
  record_.text = marker;
}

size_t ToolCallParser::OnPiece(const OutputPiece& piece, std::vector<OutputDelta>& out) {
  if (is_full()) return piece.text.size();
  if (piece.markup != Markup::kNone) {
    const bool stays = piece.markup == Markup::kDsml ? PushToken(out) : PushThink(piece.text, out);
    if (!stays) return 0;
    Record(piece);
    return piece.text.size();
  }
  std::string_view rest = piece.text;
  while (!rest.empty() && !is_full()) {
    const size_t plain = PlainStretch(rest);
    const size_t taken = std::max<size_t>(plain, 1);
    const bool stays = plain > 0 ? OnText(rest.substr(0, plain), out) : PushByte(rest[0], out);
    if (!stays) return piece.text.size() - rest.size();
    Record({.text = rest.substr(0, taken)});
    rest.remove_prefix(taken);
  }
  return piece.text.size();
}

void ToolCallParser::Record(const OutputPiece& piece) {
  if (piece.markup == Markup::kDsml) record_.tokens_at.push_back(record_.text.size());
  record_.text += piece.text;
}

// Bytes at the front of `text` that can be taken at once: inside a value or of what is dropped, up
// to the next tag. 0: take one byte.
size_t ToolCallParser::PlainStretch(std::string_view text) const {
  const bool is_open_text = state_ == State::kStringValue || state_ == State::kJsonValue ||
                            state_ == State::kDirectJson || state_ == State::kAfter ||
                            state_ == State::kDrop;
  if (!is_open_text || !tags_.is_idle()) return 0;
  return std::min(text.find('<'), text.size());
}

DsmlTagSet ToolCallParser::Wanted() const {
  switch (state_) {
    case State::kBlock:
      return SetOf(DsmlTag::kOpenInvoke) | SetOf(DsmlTag::kCloseCalls) |
             (calls_.empty() ? SetOf(DsmlTag::kOpenCalls) : 0);
    case State::kParams:
      return SetOf(DsmlTag::kOpenParameter) | SetOf(DsmlTag::kCloseInvoke) |
             SetOf(DsmlTag::kCloseCalls);
    case State::kStringValue:
    case State::kJsonValue:
      return SetOf(DsmlTag::kCloseParameter) | SetOf(DsmlTag::kOpenParameter) |
             SetOf(DsmlTag::kCloseInvoke);
    case State::kDirectJson:
      return SetOf(DsmlTag::kCloseInvoke);
    case State::kAfter:
      return SetOf(DsmlTag::kOpenCalls);
    case State::kDrop:
      return SetOf(DsmlTag::kCloseCalls);
    case State::kInvokeTag:
    case State::kParameterTag:
      break;
  }
  return 0;
}

bool ToolCallParser::PushByte(char byte, std::vector<OutputDelta>& out) {
  if (state_ == State::kInvokeTag || state_ == State::kParameterTag) return OnAttribute(byte, out);
  switch (tags_.Push(byte, Wanted())) {
    case DsmlTagMatcher::Result::kText:
      return OnText(std::string_view(&byte, 1), out);
    case DsmlTagMatcher::Result::kMore:
      return true;
    case DsmlTagMatcher::Result::kMatch:
      tags_.Reset();
      return OnTag(tags_.tag(), out);
    case DsmlTagMatcher::Result::kMiss:
      return OnMiss(out) && PushByte(byte, out);  // the matcher is idle: no further miss
  }
  return true;
}

bool ToolCallParser::PushToken(std::vector<OutputDelta>& out) {
  if (state_ == State::kInvokeTag || state_ == State::kParameterTag) {
    return std::ranges::all_of(kDsmlText, [&](char byte) { return PushByte(byte, out); });
  }
  switch (tags_.PushToken()) {
    case DsmlTagMatcher::Result::kText:
      return OnText(kDsmlText, out);
    case DsmlTagMatcher::Result::kMiss:
      return OnMiss(out) && OnText(kDsmlText, out);
    default:
      return true;
  }
}

// `<think>` or `</think>`, whole: no part of a tag, though it begins as one.
bool ToolCallParser::PushThink(std::string_view text, std::vector<OutputDelta>& out) {
  if (state_ == State::kInvokeTag || state_ == State::kParameterTag) {
    return std::ranges::all_of(text, [&](char byte) { return PushByte(byte, out); });
  }
  return (tags_.is_idle() || OnMiss(out)) && OnText(text, out);
}

bool ToolCallParser::OnMiss(std::vector<OutputDelta>& out) {
  const std::string held = tags_.held();
  tags_.Reset();
  return OnText(held, out);
}

// Text that is no tag. False: the block is none, what was recorded is in `out`.
bool ToolCallParser::OnText(std::string_view text, std::vector<OutputDelta>& out) {
  switch (state_) {
    case State::kStringValue:
      OnStringText(text, out);
      return true;
    case State::kJsonValue:
    case State::kDirectJson:
      value_ += text;
      return true;
    case State::kAfter:
    case State::kDrop:
      has_mistake_ = has_mistake_ || !IsWhiteSpace(text);
      return true;
    case State::kParams:
      if (text[0] == '{' && num_parameters_ == 0) {
        state_ = State::kDirectJson;
        has_mistake_ = true;
        value_ = text;
        return true;
      }
      break;
    default:
      break;
  }
  return IsWhiteSpace(text) || OnMistake(out);
}

// Complete calls stay, the rest of the block is dropped; before any call it is text (3.4).
bool ToolCallParser::OnMistake(std::vector<OutputDelta>& out) {
  has_mistake_ = true;
  tags_.Reset();
  if (!calls_.empty()) {
    state_ = State::kDrop;
    return true;
  }
  was_text_ = true;
  AppendContent(record_.text, out);
  record_ = {};
  return false;
}

// What came before a second start tag was none; the block begins with that one, of which all but
// the byte at hand is recorded.
void ToolCallParser::Restart(std::vector<OutputDelta>& out) {
  has_mistake_ = true;
  const size_t token = record_.tokens_at.back();
  const size_t begin = token - 1;  // '<'
  AppendContent(std::string_view(record_.text).substr(0, begin), out);
  record_.text.erase(0, begin);
  record_.tokens_at = {token - begin};
}

void ToolCallParser::AppendContent(std::string_view text, std::vector<OutputDelta>& out) {
  if (out.empty() || out.back().field != OutputField::kContent) {
    out.push_back({.field = OutputField::kContent, .text = {}});
  }
  out.back().text += text;
}

// False as OnText.
bool ToolCallParser::OnTag(DsmlTag tag, std::vector<OutputDelta>& out) {
  switch (tag) {
    case DsmlTag::kOpenCalls:
      if (state_ == State::kBlock) Restart(out);
      state_ = State::kBlock;
      return true;
    case DsmlTag::kOpenInvoke:
      attributes_.Reset(/*has_string=*/false);
      state_ = State::kInvokeTag;
      return true;
    case DsmlTag::kOpenParameter:
      if (state_ != State::kParams) CloseValue(/*is_closed_by_tag=*/false, out);
      attributes_.Reset(/*has_string=*/true);
      state_ = State::kParameterTag;
      return true;
    case DsmlTag::kCloseParameter:
      CloseValue(/*is_closed_by_tag=*/true, out);
      return true;
    case DsmlTag::kCloseInvoke:
      if (state_ == State::kStringValue || state_ == State::kJsonValue)
        CloseValue(/*is_closed_by_tag=*/false, out);
      return CloseCall(out);
    case DsmlTag::kCloseCalls:
      if (state_ == State::kBlock && calls_.empty()) return OnMistake(out);
      if (state_ == State::kParams) {
        has_mistake_ = true;
        CloseCall(out);
      }
      state_ = State::kAfter;
      closed_end_ = record_.text.size() + 1;  // with the byte at hand
      return true;
  }
  return true;
}

bool ToolCallParser::OnAttribute(char byte, std::vector<OutputDelta>& out) {
  const DsmlAttributes::Result result = attributes_.Push(byte);
  if (result == DsmlAttributes::Result::kMore) return true;
  if (result == DsmlAttributes::Result::kBad) {
    if (!OnMistake(out)) return false;
    return PushByte(byte, out);  // dropped, but it may begin the block's end
  }
  if (state_ == State::kInvokeTag) {
    OpenCall(out);
  } else {
    OpenParameter(out);
  }
  return true;
}

void ToolCallParser::OpenCall(std::vector<OutputDelta>& out) {
  state_ = State::kParams;
  num_parameters_ = 0;
  calls_.push_back({.name = attributes_.name(), .arguments = {}});
  out.push_back({.field = OutputField::kCallName,
                 .text = attributes_.name(),
                 .call = static_cast<int>(calls_.size()) - 1});
}

void ToolCallParser::OpenParameter(std::vector<OutputDelta>& out) {
  const std::string& key = attributes_.name();
  has_mistake_ = has_mistake_ || !attributes_.has_string();
  const bool is_string = attributes_.has_string() ? attributes_.is_string()
                                                  : schemas_.TakesString(calls_.back().name, key);
  std::string json = num_parameters_++ == 0 ? "{" : ", ";
  AppendJsonString(key, json);
  json += is_string ? ": \"" : ": ";
  Append(json, out);
  value_.clear();
  holds_newline_ = false;
  state_ = is_string ? State::kStringValue : State::kJsonValue;
}

// The last newline waits: it goes if the next parameter or the end follows without a closing tag.
void ToolCallParser::OnStringText(std::string_view text, std::vector<OutputDelta>& out) {
  std::string json;
  if (holds_newline_) AppendJsonEscaped("\n", json);
  holds_newline_ = text.ends_with('\n');
  if (holds_newline_) text.remove_suffix(1);
  AppendJsonEscaped(text, json);
  Append(json, out);
}

void ToolCallParser::CloseValue(bool is_closed_by_tag, std::vector<OutputDelta>& out) {
  has_mistake_ = has_mistake_ || !is_closed_by_tag;
  std::string json;
  if (state_ == State::kStringValue) {
    if (holds_newline_ && is_closed_by_tag) AppendJsonEscaped("\n", json);
    json += '"';
  } else {
    const std::string_view text = Trimmed(value_);
    if (JsonValue::Parse(text).ok()) {
      json = text;
    } else {
      has_mistake_ = true;
      AppendJsonString(text, json);
    }
  }
  Append(json, out);
  state_ = State::kParams;
}

bool ToolCallParser::CloseCall(std::vector<OutputDelta>& out) {
  if (state_ == State::kDirectJson) {
    const std::string_view text = Trimmed(value_);
    const auto parsed = JsonValue::Parse(text);
    if (!parsed.ok() || !parsed->is_object()) return OnMistake(out);
    Append(text, out);
  } else {
    Append(num_parameters_ == 0 ? "{}" : "}", out);
  }
  calls_.back().is_complete = true;
  ++num_complete_;
  complete_end_ = record_.text.size() + 1;  // with the byte at hand
  out.push_back(
      {.field = OutputField::kCallEnd, .text = {}, .call = static_cast<int>(calls_.size()) - 1});
  state_ = State::kBlock;
  return true;
}

void ToolCallParser::Append(std::string_view json, std::vector<OutputDelta>& out) {
  if (json.empty()) return;
  calls_.back().arguments += json;
  const int call = static_cast<int>(calls_.size()) - 1;
  const bool goes_on =
      !out.empty() && out.back().field == OutputField::kCallArguments && out.back().call == call;
  if (!goes_on) out.push_back({.field = OutputField::kCallArguments, .text = {}, .call = call});
  out.back().text += json;
}

void ToolCallParser::OnFinish(std::vector<OutputDelta>& out) {
  is_finished_ = true;
  if (!calls_.empty()) return;
  OnMistake(out);
}

std::string_view ToolCallParser::fallback_text() const {
  if (num_complete_ > 0) return {};
  return record_.text;
}

SampledBlock ToolCallParser::block() const {
  if (num_complete_ == 0) return {};
  const size_t end = std::max(complete_end_, closed_end_);
  SampledBlock block = {.text = record_.text.substr(0, end), .tokens_at = {}};
  for (const size_t at : record_.tokens_at)
    if (at < end) block.tokens_at.push_back(at);
  if (closed_end_ >= complete_end_) return block;
  block.tokens_at.push_back(block.text.size() + kCallsClose.find(kDsmlText));
  block.text += kCallsClose;
  return block;
}

DsmlOutcome ToolCallParser::outcome() const {
  if (num_complete_ == 0 && calls_.empty() && !was_text_) return DsmlOutcome::kNone;
  const bool is_cut = is_finished_ && state_ != State::kAfter && !calls_.empty() && !is_full();
  if (is_cut && !has_mistake_) return DsmlOutcome::kCut;
  if (num_complete_ == 0) return DsmlOutcome::kText;
  return has_mistake_ ? DsmlOutcome::kRepaired : DsmlOutcome::kOk;
}

}  // namespace baton::router
