#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "router/text/detokenizer.h"
#include "router/text/reasoning_parser.h"
#include "router/text/stop_strings.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// Ids of the tokens that the parsers look for, by name (protocol.md 1.4).
struct MarkupIds {
  TokenId think_open = -1, think_close = -1, dsml = -1, eos = -1;
  // kInvalidArgument names the token that the tokenizer lacks.
  static absl::StatusOr<MarkupIds> Find(const Tokenizer& tokenizer);
};

struct ChoiceOutputOptions {
  std::vector<std::string> stops{};  // none empty
  bool include_stop = false;         // include_stop_str_in_output
  bool skip_special = true;
  // False: <think> and </think> are text and all text is content (completions, separate_reasoning).
  bool splits_reasoning = true;
  bool starts_in_reasoning = false;  // the prompt's last token is <think>; see StartsInReasoning
  ToolBlockSink* tools = nullptr;    // null: tools off
};

// All text stages of one choice in their order: ids, bytes, UTF-8, stop strings, reasoning and
// tools (protocol.md 1.7). Markup is known by its token id, never by its spelling. One thread; the
// tokenizer outlives it.
class ChoiceOutput {
 public:
  ChoiceOutput(const Tokenizer& tokenizer, const MarkupIds& ids, ChoiceOutputOptions options);

  // Appends what this token makes certain; nothing for a token that yields no text yet. Ignored
  // after a stop string matched.
  void Push(TokenId id, std::vector<OutputDelta>& out);
  // The end of the output: emits what is held. Call once, also after a stop string matched.
  void Finish(std::vector<OutputDelta>& out);

  bool is_finished() const { return is_finished_; }
  // Inside or behind a tool call block.
  bool is_in_block() const { return parser_.state() == ReasoningParser::State::kBlock; }
  // The stop string that ended the choice; null while none did.
  const std::string* matched_stop() const { return stop_.matched(); }
  // Tokens in front of </think>, without it and without skipped special tokens (protocol.md 4).
  // Final after Finish.
  int64_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  // Raw text of one token that the stop matcher may still hold back.
  struct Run {
    std::string text{};
    Markup markup = Markup::kNone;
    bool is_counted = false;  // as a reasoning token, if it is one
  };
  void AddRuns(TokenId id, std::string text);
  void Release(size_t num_bytes, std::vector<OutputDelta>& out);
  void ReleaseRun(const Run& run, std::vector<OutputDelta>& out);
  void CutAtStop(std::vector<OutputDelta>& out);

  const Tokenizer& tokenizer_;
  const MarkupIds ids_;
  const bool splits_reasoning_;
  const bool skip_special_;
  Detokenizer detokenizer_;
  StopMatcher stop_;
  ReasoningParser parser_;
  std::deque<Run> runs_;       // text given to stop_ but not yet to parser_
  size_t released_bytes_ = 0;  // that stop_ has let go of but whose run is not complete
  int64_t reasoning_tokens_ = 0;
  bool is_finished_ = false;
};

// True if generation starts inside the reasoning: the prompt ends in <think> (protocol.md 4).
bool StartsInReasoning(std::span<const TokenId> prompt, const MarkupIds& ids);

}  // namespace baton::router
