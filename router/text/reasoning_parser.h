#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace baton::router {

// Which token a piece of raw output is, as far as the parser cares (protocol.md 3.3).
enum class Markup : uint8_t { kNone, kThinkOpen, kThinkClose, kDsml };

// Ordinary text, or exactly the text of one markup token.
struct OutputPiece {
  std::string_view text;
  Markup markup = Markup::kNone;
};

enum class OutputField : uint8_t {
  kReasoning,
  kContent,
  kCallName,       // a call begins: its name, whole
  kCallArguments,  // more of its arguments' JSON
  kCallEnd,        // the call is complete; the text is empty
};

// Text for one field of the answer; not empty but for kCallEnd and a call without a name.
struct OutputDelta {
  OutputField field = OutputField::kContent;
  std::string text;
  int call = -1;  // which one, of the kCall fields: 0, 1, ...
  bool operator==(const OutputDelta&) const = default;
};

// Takes over the output where a tool call block starts (states BLOCK to AFTER of protocol.md 3.3).
// It stays in charge to the end, unless the block is malformed before any call: then it becomes
// text again (3.4).
class ToolBlockSink {
 public:
  virtual ~ToolBlockSink() = default;
  // `marker` is the raw text dropped from the field before: up to two newlines and the start tag.
  virtual void OnStart(std::string_view marker) = 0;
  // Bytes of `piece` taken; a markup token is taken whole or not at all. Fewer than all: the block
  // was no block, it is in `out` as content, and the rest goes on as content.
  virtual size_t OnPiece(const OutputPiece& piece, std::vector<OutputDelta>& out) = 0;
  virtual void OnFinish(std::vector<OutputDelta>& out) = 0;
};

// Splits the output into reasoning and content (protocol.md 3.3, 4). Deltas of one field may be
// coalesced; their concatenation does not depend on how the output was cut. One per choice, one
// thread.
class ReasoningParser {
 public:
  enum class State { kReason, kContent, kBlock };

  // `starts_in_reasoning`: the prompt's last token is <think>. `tools` null: tools are off and a
  // block is ordinary text; else it outlives the parser.
  ReasoningParser(bool starts_in_reasoning, ToolBlockSink* tools);

  // Appends to the last delta of `out` when the field is the same.
  void Push(const OutputPiece& piece, std::vector<OutputDelta>& out);
  // Emits what is held back; call once, at the end.
  void Finish(std::vector<OutputDelta>& out);
  State state() const { return state_; }

 private:
  void EndStart(std::vector<OutputDelta>& out);
  void PushText(std::string_view text, std::vector<OutputDelta>& out);
  void PushToBlock(const OutputPiece& piece, std::vector<OutputDelta>& out);
  void PushDsml(std::string_view text, std::vector<OutputDelta>& out);
  size_t Hold(std::string_view text, std::vector<OutputDelta>& out);
  void StartBlock();
  void Emit(std::string_view text, std::vector<OutputDelta>& out) const;
  void FlushHeld(std::vector<OutputDelta>& out);

  State state_;
  ToolBlockSink* const tools_;
  bool is_at_start_ = true;  // only white space so far, kept in leading_
  std::string leading_;
  std::string held_;  // up to two newlines, then the start tag as far as it came
  size_t held_newlines_ = 0;
  size_t marker_progress_ = 0;  // bytes of the start tag at the end of held_
};

}  // namespace baton::router
