#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "router/text/dsml_tags.h"
#include "router/text/json_value.h"
#include "router/text/reasoning_parser.h"

namespace baton::router {

// What the request's tools say about parameters whose `string` attribute the model left out
// (protocol.md 3.3). Immutable once filled; any thread.
class ToolSchemas {
 public:
  // `function` of one tool: an object; whatever else it holds is ignored.
  void Add(const JsonValue& function);
  // False when the schema names a type for this key and string is none of it.
  bool TakesString(std::string_view tool, std::string_view key) const;

 private:
  std::map<std::string, std::set<std::string, std::less<>>, std::less<>> not_strings_;
};

struct ParsedCall {
  std::string name;
  std::string arguments;  // JSON, of a complete call an object
  bool is_complete = false;
  bool operator==(const ParsedCall&) const = default;
};

// Sampled markup as it is replayed (protocol.md 2.6): its text, and where in it the token ｜DSML｜
// stands; any other spelling of it is text.
struct SampledBlock {
  std::string text;
  std::vector<size_t> tokens_at;  // ascending
};

// How a choice's tool calls ended up: label of dsml_parse (protocol.md 3.4).
inline constexpr size_t kNumDsmlOutcomes = 5;
enum class DsmlOutcome : uint8_t {
  kNone,      // no block
  kOk,        // as the grammar has it
  kRepaired,  // some calls kept, some of the block dropped or read leniently
  kText,      // no call is complete: it is text
  kCut,       // the output ended inside the block
};

// "none", "ok", "repaired", "text", "cut".
std::string_view DsmlOutcomeName(DsmlOutcome outcome);

// States BLOCK to AFTER of protocol.md 3.3: calls out of a block, as deltas while they come. The
// concatenated deltas do not depend on how the output was cut. Linear in the output. One per
// choice, one thread; the schemas outlive it.
class ToolCallParser final : public ToolBlockSink {
 public:
  // `max_calls` 0: no limit; else what follows the last of them is dropped.
  ToolCallParser(const ToolSchemas& schemas, size_t max_calls)
      : schemas_(schemas), max_calls_(max_calls) {}

  void OnStart(std::string_view marker) override;
  size_t OnPiece(const OutputPiece& piece, std::vector<OutputDelta>& out) override;
  void OnFinish(std::vector<OutputDelta>& out) override;

  // Opened calls in order; a stream has shown all of them, a whole answer shows the complete ones.
  const std::vector<ParsedCall>& calls() const { return calls_; }
  size_t num_complete() const { return num_complete_; }
  // The last of max_calls is complete.
  bool is_full() const { return max_calls_ != 0 && num_complete_ == max_calls_; }
  // A block with a complete call was closed, and no other has begun.
  bool is_closed() const { return state_ == State::kAfter && num_complete_ > 0; }
  // What a whole answer appends to its content: the raw text of the block whose calls were opened
  // and none completed (protocol.md 3.4). Empty otherwise.
  std::string_view fallback_text() const;
  // The raw block up to its last complete call, closed; empty if there is none.
  SampledBlock block() const;
  DsmlOutcome outcome() const;

 private:
  enum class State : uint8_t {
    kBlock,
    kInvokeTag,
    kParams,
    kParameterTag,
    kStringValue,
    kJsonValue,
    kDirectJson,
    kAfter,
    kDrop,  // behind a mistake, up to the end of the block
  };

  bool PushByte(char byte, std::vector<OutputDelta>& out);
  bool PushToken(std::vector<OutputDelta>& out);
  void Restart(std::vector<OutputDelta>& out);
  static void AppendContent(std::string_view text, std::vector<OutputDelta>& out);
  bool PushThink(std::string_view text, std::vector<OutputDelta>& out);
  bool OnMiss(std::vector<OutputDelta>& out);
  bool OnText(std::string_view text, std::vector<OutputDelta>& out);
  bool OnTag(DsmlTag tag, std::vector<OutputDelta>& out);
  bool OnAttribute(char byte, std::vector<OutputDelta>& out);
  bool OnMistake(std::vector<OutputDelta>& out);
  DsmlTagSet Wanted() const;
  size_t PlainStretch(std::string_view text) const;
  void OpenCall(std::vector<OutputDelta>& out);
  void OpenParameter(std::vector<OutputDelta>& out);
  void OnStringText(std::string_view text, std::vector<OutputDelta>& out);
  void CloseValue(bool is_closed_by_tag, std::vector<OutputDelta>& out);
  bool CloseCall(std::vector<OutputDelta>& out);
  void Append(std::string_view json, std::vector<OutputDelta>& out);
  void Record(const OutputPiece& piece);

  const ToolSchemas& schemas_;
  const size_t max_calls_;
  State state_ = State::kBlock;
  DsmlTagMatcher tags_;
  DsmlAttributes attributes_;
  std::string value_;           // of kJsonValue and kDirectJson
  bool holds_newline_ = false;  // of a string value, in front of what may be a tag
  size_t num_parameters_ = 0;   // of the open call
  std::vector<ParsedCall> calls_;
  size_t num_complete_ = 0;
  bool has_mistake_ = false;  // some of the output was dropped or read leniently
  bool was_text_ = false;     // a block became text
  bool is_finished_ = false;
  SampledBlock record_;      // everything since the first block that stands
  size_t complete_end_ = 0;  // in record_, behind the last complete call
  size_t closed_end_ = 0;    // in record_, behind the last closed block
};

// Appends `text` as the inside of a JSON string literal.
void AppendJsonEscaped(std::string_view text, std::string& out);

}  // namespace baton::router
