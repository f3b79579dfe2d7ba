#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/sampling_spec.h"
#include "router/openai/api_error.h"
#include "router/openai/generate_params.h"
#include "router/plan/request.h"
#include "router/text/tokenizer.h"

// OpenAI's JSON, written by hand (protocol.md 5.3, 5.5, 5.6). Pure; any thread.
namespace baton::router {

struct AnswerHead {
  CompletionKind kind = CompletionKind::kChat;
  std::string id{};     // chatcmpl-... or cmpl-...
  std::string model{};  // as served
  int64_t created = 0;  // UNIX seconds
};

struct UsageCounts {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t reasoning_tokens = 0;
  std::optional<StageTimes> stages{};  // shown if there
};

// Why a choice ended, as JSON members `"finish_reason":...,"stop_reason":...,"matched_stop":...`.
struct ChoiceEnd {
  std::string finish_reason{};  // empty: not ended, null
  std::string stop_string{};    // matched stop string
  int32_t stop_token = -1;      // a stop id of the request; -1: eos or none
  bool has_stop_string = false;
};

// A tool call, or the part of one that a chunk adds: id and name come with its first part only.
struct CallText {
  int index = 0;  // within the choice
  std::string id{};
  std::string name{};
  std::string arguments{};  // JSON
  bool is_start = true;
};

struct ChoiceText {
  int index = 0;
  std::string content;
  std::string reasoning;
  std::vector<CallText> calls;
  std::string logprobs = "null";  // JSON
  std::string prompt_logprobs;    // JSON; empty: none. A chat's choices share the first one's.
  std::vector<int32_t> token_ids;
  ChoiceEnd end;
};

// What of a choice a format shows.
struct ShownFields {
  bool reasoning = true;
  bool token_ids = false;
  std::shared_ptr<const std::vector<int32_t>> prompt_ids;  // null: not shown
};

std::string ErrorJson(const ApiError& error);
std::string UsageJson(const UsageCounts& usage);

// `logprobs` of a chat answer: {"content":[...]}; of a text completion: four arrays. `text_offset`
// is where the first of these tokens begins in the choice's text, and is moved on; the token at 0
// of an echoed prompt (`starts_prompt`) has no logprob: null.
std::string ChatLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                             bool tokens_as_ids);
std::string TextLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                             bool tokens_as_ids, int64_t& text_offset, bool starts_prompt = false);
// vLLM's `prompt_logprobs` (protocol.md 5.5) from the records of positions 1 on: null for the first
// token, then per token itself and its best entries, `max_entries` at most.
std::string PromptLogprobsJson(const std::vector<TokenRecord>& records, const Tokenizer& tokenizer,
                               int max_entries);

// A whole answer that is not streamed.
std::string AnswerJson(const AnswerHead& head, const std::vector<ChoiceText>& choices,
                       const UsageCounts& usage, const ShownFields& shown);

// One SSE event ("data: ...\n\n"). `delta_field` is "content", "reasoning_content", or empty: then
// the delta holds the calls, if any. Text completions show `text` alone. `usage` null: none.
struct ChunkText {
  int index = 0;
  std::string_view delta_field{};
  std::string_view text{};
  const std::vector<CallText>* calls = nullptr;
  bool starts_choice = false;   // the role goes along
  std::string_view logprobs{};  // JSON; empty: null
  const std::vector<int32_t>* token_ids = nullptr;
  const std::vector<int32_t>* prompt_ids = nullptr;
  const ChoiceEnd* end = nullptr;
  const UsageCounts* usage = nullptr;
};
std::string ChunkEvent(const AnswerHead& head, const ChunkText& chunk);
// The last chunk of a stream with include_usage.
std::string UsageEvent(const AnswerHead& head, const UsageCounts& usage);
std::string ErrorEvent(const ApiError& error);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

}  // namespace baton::router
