#include "router/text/reasoning_parser.h"

#include <algorithm>
#include <utility>

#include "router/text/chat_literals.h"

namespace baton::router {
namespace {

constexpr std::string_view kStartTag = "<｜DSML｜tool_calls>";
constexpr size_t kDsmlEnd = 1 + kDsmlText.size();  // of the token inside the start tag
constexpr size_t kMaxNewlines = 2;  // in front of a block, part of it (protocol.md 3.1)
constexpr std::string_view kWhiteSpace = " \t\r\n";

}  // namespace

ReasoningParser::ReasoningParser(bool starts_in_reasoning, ToolBlockSink* tools)
    : state_(starts_in_reasoning ? State::kReason : State::kContent), tools_(tools) {}

void ReasoningParser::Push(const OutputPiece& piece, std::vector<OutputDelta>& out) {
  if (state_ == State::kBlock) return PushToBlock(piece, out);
  switch (piece.markup) {
    case Markup::kNone:
      PushText(piece.text, out);
      return;
    case Markup::kDsml:
      PushDsml(piece.text, out);
      return;
    case Markup::kThinkOpen:
      // As the first thing it opens the reasoning, or repeats the prompt's; elsewhere it is noise.
      if (is_at_start_) state_ = State::kReason;
      if (is_at_start_) leading_.clear();
      is_at_start_ = false;
      FlushHeld(out);  // what stands in front of it does not touch a block behind it
      return;
    case Markup::kThinkClose:
      EndStart(out);
      FlushHeld(out);
      state_ = State::kContent;
      return;
  }
}

void ReasoningParser::PushToBlock(const OutputPiece& piece, std::vector<OutputDelta>& out) {
  const size_t taken = tools_->OnPiece(piece, out);
  if (taken == piece.text.size()) return;
  state_ = State::kContent;
  Push({.text = piece.text.substr(taken), .markup = piece.markup}, out);
}

void ReasoningParser::PushText(std::string_view text, std::vector<OutputDelta>& out) {
  if (is_at_start_) {
    const size_t begin = text.find_first_not_of(kWhiteSpace);
    leading_ += text.substr(0, begin);
    if (begin == std::string_view::npos) return;
    text.remove_prefix(begin);
    EndStart(out);
  }
  if (tools_ == nullptr) {
    Emit(text, out);
    return;
  }
  while (!text.empty() && state_ != State::kBlock) text.remove_prefix(Hold(text, out));
  if (!text.empty()) PushToBlock({.text = text}, out);
}

// Takes some bytes of `text`: either a stretch that no block can start in, which is emitted, or one
// byte that goes on with the newlines and the start tag in held_, or, when it doesn't fit, none
// after a flush.
size_t ReasoningParser::Hold(std::string_view text, std::vector<OutputDelta>& out) {
  const char c = text[0];
  if (marker_progress_ == 0) {
    if (c == '\n' && held_newlines_ == kMaxNewlines) {
      Emit("\n", out);
      return 1;
    }
    if (c == '\n' || c == '<') {
      held_ += c;
      ++(c == '\n' ? held_newlines_ : marker_progress_);
      return 1;
    }
    FlushHeld(out);
    const size_t size = std::min(text.find_first_of("\n<"), text.size());
    Emit(text.substr(0, size), out);
    return size;
  }
  // After '<' only the token itself goes on; its spelling in ordinary tokens is no markup.
  if (marker_progress_ < kDsmlEnd || c != kStartTag[marker_progress_]) {
    FlushHeld(out);
    return 0;
  }
  held_ += c;
  if (++marker_progress_ == kStartTag.size()) StartBlock();
  return 1;
}

void ReasoningParser::PushDsml(std::string_view text, std::vector<OutputDelta>& out) {
  if (marker_progress_ == 1) {
    held_ += text;
    marker_progress_ = kDsmlEnd;
    return;
  }
  EndStart(out);
  FlushHeld(out);
  Emit(text, out);
}

void ReasoningParser::StartBlock() {
  state_ = State::kBlock;
  tools_->OnStart(held_);
  held_.clear();
  held_newlines_ = 0;
  marker_progress_ = 0;
}

void ReasoningParser::Emit(std::string_view text, std::vector<OutputDelta>& out) const {
  if (text.empty()) return;
  const OutputField field =
      state_ == State::kReason ? OutputField::kReasoning : OutputField::kContent;
  if (out.empty() || out.back().field != field) out.push_back({.field = field, .text = {}});
  out.back().text += text;
}

// The white space at the very start is text after all; its last newlines may belong to a block
// right behind it.
void ReasoningParser::EndStart(std::vector<OutputDelta>& out) {
  if (!is_at_start_) return;
  is_at_start_ = false;
  PushText(std::exchange(leading_, {}), out);
}

void ReasoningParser::FlushHeld(std::vector<OutputDelta>& out) {
  Emit(held_, out);
  held_.clear();
  held_newlines_ = 0;
  marker_progress_ = 0;
}

void ReasoningParser::Finish(std::vector<OutputDelta>& out) {
  if (state_ == State::kBlock) {
    tools_->OnFinish(out);
    return;
  }
  EndStart(out);
  FlushHeld(out);
}

}  // namespace baton::router
