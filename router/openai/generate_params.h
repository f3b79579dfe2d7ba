#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/sampling_spec.h"
#include "router/openai/api_error.h"
#include "router/text/json_value.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// What chat and text completions share (protocol.md 5.4): checked, with defaults in place.
struct GenerateParams {
  SamplingSpec sampling;  // the seed is drawn by the caller if `has_seed` is false
  bool has_seed = false;
  std::vector<int32_t> stop_tokens;   // eos (unless ignored) and the request's ids
  std::optional<int64_t> max_tokens;  // absent: what the context leaves
  int64_t min_tokens = 0;
  int num_choices = 1;
  std::vector<std::string> stops;
  bool include_stop = false;
  bool skip_special = true;
  bool is_stream = false;
  bool include_usage = false;     // a last chunk with usage
  bool continuous_usage = false;  // usage on every chunk
  bool includes_stages = false;   // the last usage says where the time went
  bool wants_logprobs = false;
  std::optional<int> prompt_logprobs;  // best entries to show per prompt token
  std::optional<int64_t> truncation;   // prompt tokens to keep, the last ones; -1: what fits
  bool echoes = false;                 // the prompt's text first
  bool scores_only = false;  // max_tokens 0: the echo and its logprobs alone; max_tokens is then 1
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // token strings become token_id:N
  bool separates_reasoning = true;
  bool includes_reasoning = true;
  bool streams_reasoning = true;           // false: in one piece, once it has ended
  std::optional<int64_t> thinking_budget;  // reasoning tokens at most
  std::string salt;
  int priority = 0;
};

// Best entries the prefill worker is to report per prompt token; absent: no report.
std::optional<uint32_t> PromptEntries(const GenerateParams& params);

enum class CompletionKind { kChat, kText };

// Errors are 400 with the member's path, the value and the limit. Pure; any thread.
ApiResult<GenerateParams> ParseGenerateParams(const JsonValue& body, CompletionKind kind,
                                              const Tokenizer& tokenizer, int32_t eos);

// A member as an integer; absent and null give `fallback`.
ApiResult<int64_t> IntMember(const JsonValue& body, std::string_view key, int64_t fallback);
ApiResult<bool> BoolMemberOr(const JsonValue& body, std::string_view key, bool fallback);
// "<path>: expected <type>, got <type>".
ApiError WrongType(std::string_view path, std::string_view expected, const JsonValue& got);

}  // namespace baton::router
