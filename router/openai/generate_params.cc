#include "router/openai/generate_params.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_format.h"

// The checks below return early with an ApiError; this is the API's RETURN_IF_ERROR.
#define RETURN_IF_API_ERROR(expr)                                                               \
  do {                                                                                          \
    if (std::optional<ApiError> error_ = (expr); error_.has_value()) return *std::move(error_); \
  } while (false)

namespace baton::router {
namespace {

using MaybeError = std::optional<ApiError>;

constexpr double kTwo32 = 4294967296.0;
constexpr double kGreedyBelow = 1e-5;
constexpr double kLeastTemperature = 0.01;
constexpr double kMostTemperature = 1e30;  // its inverse is still a normal float
constexpr int kMaxChoices = 128;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxListItems = 100'000;

template <typename T>
MaybeError Take(ApiResult<T> result, T& out) {
  if (!result.ok()) return result.error();
  out = *std::move(result);
  return std::nullopt;
}

ApiResult<double> NumberMember(const JsonValue& body, std::string_view key, double fallback) {
  const JsonValue* value = body.FindNonNull(key);
  if (value == nullptr) return fallback;
  const std::optional<double> number = value->AsDouble();
  if (!number) return WrongType(key, "number", *value);
  return *number;
}

MaybeError CheckNumber(bool is_fine, std::string_view key, std::string_view rule, double value) {
  if (is_fine) return std::nullopt;
  return BadRequest(absl::StrFormat("%s must be %s, got %g.", key, rule, value), std::string(key));
}

MaybeError ParseTemperature(const JsonValue& body, SamplingSpec& out) {
  double temperature = 1.0;
  RETURN_IF_API_ERROR(Take(NumberMember(body, "temperature", 1.0), temperature));
  RETURN_IF_API_ERROR(CheckNumber(temperature >= 0, "temperature", "non-negative", temperature));
  out.greedy = temperature < kGreedyBelow;
  out.inv_temperature =
      out.greedy
          ? 1.0f
          : 1.0f / static_cast<float>(std::clamp(temperature, kLeastTemperature, kMostTemperature));
  return std::nullopt;
}

MaybeError ParseTruncation(const JsonValue& body, SamplingSpec& out) {
  double top_p = 1.0, min_p = 0.0;
  int64_t top_k = 0;
  RETURN_IF_API_ERROR(Take(NumberMember(body, "top_p", 1.0), top_p));
  RETURN_IF_API_ERROR(CheckNumber(top_p > 0 && top_p <= 1, "top_p", "in (0, 1]", top_p));
  RETURN_IF_API_ERROR(Take(IntMember(body, "top_k", 0), top_k));
  if (top_k < -1 || top_k > INT32_MAX)
    return BadRequest(absl::StrFormat("top_k must be 0 (disable), or at least 1, got %d.", top_k),
                      "top_k");
  RETURN_IF_API_ERROR(Take(NumberMember(body, "min_p", 0.0), min_p));
  RETURN_IF_API_ERROR(CheckNumber(min_p >= 0 && min_p <= 1, "min_p", "in [0, 1]", min_p));
  if (out.greedy) return std::nullopt;  // protocol.md 5.4: greedy ignores the three
  out.top_p = std::max<uint64_t>(1, static_cast<uint64_t>(std::rint(top_p * kTwo32)));
  out.top_k = top_k == -1 ? 0 : static_cast<int>(top_k);
  out.min_p = static_cast<uint64_t>(std::rint(min_p * kTwo32));
  return std::nullopt;
}

MaybeError ParsePenalties(const JsonValue& body, SamplingSpec& out) {
  double repetition = 1.0, presence = 0.0, frequency = 0.0;
  RETURN_IF_API_ERROR(Take(NumberMember(body, "repetition_penalty", 1.0), repetition));
  RETURN_IF_API_ERROR(CheckNumber(repetition > 0 && std::isfinite(static_cast<float>(repetition)) &&
                                      static_cast<float>(repetition) > 0,
                                  "repetition_penalty", "greater than zero", repetition));
  RETURN_IF_API_ERROR(Take(NumberMember(body, "presence_penalty", 0.0), presence));
  RETURN_IF_API_ERROR(
      CheckNumber(std::abs(presence) <= 2, "presence_penalty", "in [-2, 2]", presence));
  RETURN_IF_API_ERROR(Take(NumberMember(body, "frequency_penalty", 0.0), frequency));
  RETURN_IF_API_ERROR(
      CheckNumber(std::abs(frequency) <= 2, "frequency_penalty", "in [-2, 2]", frequency));
  out.repetition_penalty = static_cast<float>(repetition);
  out.presence_penalty = static_cast<float>(presence);
  out.frequency_penalty = static_cast<float>(frequency);
  return std::nullopt;
}

MaybeError ParseLogitBias(const JsonValue& body, int vocab_size, SamplingSpec& out) {
  const JsonValue* bias = body.FindNonNull("logit_bias");
  if (bias == nullptr) return std::nullopt;
  if (!bias->is_object()) return WrongType("logit_bias", "object", *bias);
  for (const auto& [key, value] : bias->members()) {
    int64_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size())
      return BadRequest(absl::StrFormat("logit_bias: the key '%s' is no token id", key),
                        "logit_bias");
    if (token < 0 || token >= vocab_size)
      return BadRequest(
          absl::StrFormat(
              "token_id(s) [%d] in logit_bias contain out-of-vocab token ids. Vocabulary size: %d",
              token, vocab_size),
          "logit_bias");
    const std::optional<double> number = value.AsDouble();
    if (!number) return WrongType("logit_bias." + key, "number", value);
    out.logit_bias.emplace_back(static_cast<int32_t>(token),
                                static_cast<float>(std::clamp(*number, -100.0, 100.0)));
  }
  const auto by_token = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::stable_sort(out.logit_bias.begin(), out.logit_bias.end(), by_token);
  const auto same =
      std::adjacent_find(out.logit_bias.begin(), out.logit_bias.end(),
                         [](const auto& a, const auto& b) { return a.first == b.first; });
  if (same == out.logit_bias.end()) return std::nullopt;
  return BadRequest(absl::StrFormat("logit_bias: token %d is named twice", same->first),
                    "logit_bias");
}

MaybeError ParseTokenIds(const JsonValue& body, std::string_view key, int vocab_size,
                         std::vector<int32_t>& out) {
  const JsonValue* ids = body.FindNonNull(key);
  if (ids == nullptr) return std::nullopt;
  if (!ids->is_array()) return WrongType(key, "array", *ids);
  if (ids->items().size() > kMaxListItems)
    return BadRequest(
        absl::StrFormat("%s: %d items, the limit is %d", key, ids->items().size(), kMaxListItems),
        std::string(key));
  for (const JsonValue& item : ids->items()) {
    const std::optional<int64_t> id = item.is_number() ? item.AsInt64() : std::nullopt;
    if (!id) return WrongType(key, "array of integers", item);
    if (*id < 0 || *id >= vocab_size)
      return BadRequest(
          absl::StrFormat("%s: token id %d is outside the vocabulary of %d", key, *id, vocab_size),
          std::string(key));
    out.push_back(static_cast<int32_t>(*id));
  }
  return std::nullopt;
}

MaybeError ParseAllowed(const JsonValue& body, int vocab_size, SamplingSpec& out) {
  RETURN_IF_API_ERROR(ParseTokenIds(body, "allowed_token_ids", vocab_size, out.allowed_tokens));
  if (body.FindNonNull("allowed_token_ids") != nullptr && out.allowed_tokens.empty())
    return BadRequest("allowed_token_ids must not be empty.", "allowed_token_ids");
  std::sort(out.allowed_tokens.begin(), out.allowed_tokens.end());
  out.allowed_tokens.erase(std::unique(out.allowed_tokens.begin(), out.allowed_tokens.end()),
                           out.allowed_tokens.end());
  return std::nullopt;
}

// Each word is banned with and without a leading space.
MaybeError ParseBadWords(const JsonValue& body, const Tokenizer& tokenizer, SamplingSpec& out) {
  const JsonValue* words = body.FindNonNull("bad_words");
  if (words == nullptr) return std::nullopt;
  if (!words->is_array()) return WrongType("bad_words", "array", *words);
  constexpr size_t kMaxWords = 256;
  if (words->items().size() > kMaxWords)
    return BadRequest(
        absl::StrFormat("bad_words: %d words, the limit is %d", words->items().size(), kMaxWords),
        "bad_words");
  for (const JsonValue& word : words->items()) {
    if (!word.is_string()) return WrongType("bad_words", "array of strings", word);
    if (word.text().empty() || word.text().size() > 512)
      return BadRequest(
          absl::StrFormat("bad_words: a word has %d bytes, want 1..512", word.text().size()),
          "bad_words");
    for (const std::string& spelling : {word.text(), " " + word.text()}) {
      std::vector<int32_t> ids = tokenizer.Encode(spelling, SpecialTokens::kPlain);
      if (std::find(out.bad_words.begin(), out.bad_words.end(), ids) == out.bad_words.end())
        out.bad_words.push_back(std::move(ids));
    }
  }
  return std::nullopt;
}

MaybeError ParseStops(const JsonValue& body, GenerateParams& out) {
  const JsonValue* stop = body.FindNonNull("stop");
  if (stop == nullptr) return std::nullopt;
  if (stop->is_string()) {
    out.stops.push_back(stop->text());
  } else if (stop->is_array()) {
    for (const JsonValue& item : stop->items()) {
      if (!item.is_string()) return WrongType("stop", "string or array of strings", item);
      out.stops.push_back(item.text());
    }
  } else {
    return WrongType("stop", "string or array of strings", *stop);
  }
  if (out.stops.size() > kMaxStops)
    return BadRequest(
        absl::StrFormat("stop: %d strings, the limit is %d", out.stops.size(), kMaxStops), "stop");
  for (const std::string& text : out.stops) {
    if (text.empty()) return BadRequest("stop cannot contain an empty string.", "stop");
    if (text.size() > 4096)
      return BadRequest(
          absl::StrFormat("stop: a string of %d bytes, the limit is 4096", text.size()), "stop");
  }
  return std::nullopt;
}

MaybeError ParseLengths(const JsonValue& body, CompletionKind kind, GenerateParams& out) {
  for (const std::string_view key : {"max_completion_tokens", "max_tokens"}) {
    if (kind == CompletionKind::kText && key == "max_completion_tokens") continue;
    if (body.FindNonNull(key) == nullptr || out.max_tokens) continue;
    int64_t tokens = 0;
    RETURN_IF_API_ERROR(Take(IntMember(body, key, 0), tokens));
    // With echo and logprobs the prompt is scored and nothing is generated.
    out.scores_only = tokens == 0 && out.echoes && body.FindNonNull("logprobs") != nullptr;
    if (tokens < 1 && !out.scores_only)
      return BadRequest(absl::StrFormat("%s must be at least 1, got %d.", key, tokens),
                        std::string(key));
    out.max_tokens = tokens;
  }
  if (kind == CompletionKind::kText && !out.max_tokens) out.max_tokens = 16;
  RETURN_IF_API_ERROR(Take(IntMember(body, "min_tokens", 0), out.min_tokens));
  if (out.min_tokens < 0)
    return BadRequest(
        absl::StrFormat("min_tokens must be greater than or equal to 0, got %d.", out.min_tokens),
        "min_tokens");
  if (out.max_tokens && out.min_tokens > *out.max_tokens)
    return BadRequest(
        absl::StrFormat("min_tokens must be less than or equal to max_tokens=%d, got %d.",
                        *out.max_tokens, out.min_tokens),
        "min_tokens");
  if (out.scores_only) out.max_tokens = 1;  // the engine's least; it is not shown
  return std::nullopt;
}

MaybeError ParsePromptLogprobs(const JsonValue& body, GenerateParams& out) {
  if (body.FindNonNull("prompt_logprobs") == nullptr) return std::nullopt;
  int64_t count = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "prompt_logprobs", 0), count));
  if (out.is_stream)
    return BadRequest("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs");
  if (count > kMaxTopLogprobs)
    return BadRequest(
        absl::StrFormat("Requested prompt logprobs of %d, which is greater than max allowed: %d",
                        count, kMaxTopLogprobs),
        "prompt_logprobs");
  if (count < 0)
    return BadRequest(
        absl::StrFormat("prompt_logprobs must be in 0..%d, got %d.", kMaxTopLogprobs, count),
        "prompt_logprobs");
  out.prompt_logprobs = static_cast<int>(count);
  return std::nullopt;
}

MaybeError ParseChatLogprobs(const JsonValue& body, GenerateParams& out) {
  int64_t top = 0;
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "logprobs", false), out.wants_logprobs));
  RETURN_IF_API_ERROR(Take(IntMember(body, "top_logprobs", 0), top));
  if (top > kMaxTopLogprobs)
    return BadRequest(
        absl::StrFormat("Requested sample logprobs of %d, which is greater than max allowed: %d",
                        top, kMaxTopLogprobs),
        "top_logprobs");
  if (top < 0)
    return BadRequest(
        absl::StrFormat("top_logprobs must be in 0..%d, got %d.", kMaxTopLogprobs, top),
        "top_logprobs");
  if (top > 0 && !out.wants_logprobs)
    return BadRequest("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs");
  out.sampling.top_logprobs = out.wants_logprobs ? static_cast<int>(top) : -1;
  return std::nullopt;
}

MaybeError ParseTextLogprobs(const JsonValue& body, GenerateParams& out) {
  if (body.FindNonNull("logprobs") == nullptr) return std::nullopt;
  int64_t count = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "logprobs", 0), count));
  if (count < 0 || count > kMaxTopLogprobs)
    return BadRequest(
        absl::StrFormat("Requested sample logprobs of %d, which is greater than max allowed: %d",
                        count, kMaxTopLogprobs),
        "logprobs");
  out.wants_logprobs = true;
  out.sampling.top_logprobs = static_cast<int>(count);
  return std::nullopt;
}

MaybeError ParseStreaming(const JsonValue& body, GenerateParams& out) {
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "stream", false), out.is_stream));
  const JsonValue* options = body.FindNonNull("stream_options");
  if (options == nullptr) return std::nullopt;
  if (!options->is_object()) return WrongType("stream_options", "object", *options);
  if (!out.is_stream)
    return BadRequest("Stream options can only be defined when `stream=True`.", "stream_options");
  RETURN_IF_API_ERROR(Take(BoolMemberOr(*options, "include_usage", false), out.include_usage));
  RETURN_IF_API_ERROR(
      Take(BoolMemberOr(*options, "include_stage_times", false), out.includes_stages));
  return Take(BoolMemberOr(*options, "continuous_usage_stats", false), out.continuous_usage);
}

MaybeError ParseChoices(const JsonValue& body, GenerateParams& out) {
  int64_t n = 1;
  RETURN_IF_API_ERROR(Take(IntMember(body, "n", 1), n));
  if (n < 1) return BadRequest(absl::StrFormat("n must be at least 1, got %d.", n), "n");
  if (n > kMaxChoices)
    return BadRequest(absl::StrFormat("n must be at most %d, got %d.", kMaxChoices, n), "n");
  if (n > 1 && out.sampling.greedy)
    return BadRequest(absl::StrFormat("n must be 1 when using greedy sampling, got %d.", n), "n");
  out.num_choices = static_cast<int>(n);
  return std::nullopt;
}

MaybeError ParseSeed(const JsonValue& body, GenerateParams& out) {
  if (body.FindNonNull("seed") == nullptr) return std::nullopt;
  int64_t seed = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "seed", 0), seed));
  out.has_seed = true;
  out.sampling.seed = static_cast<uint64_t>(seed);
  return std::nullopt;
}

MaybeError ParsePlacement(const JsonValue& body, GenerateParams& out) {
  int64_t priority = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "priority", 0), priority));
  out.priority = static_cast<int>(std::clamp<int64_t>(priority, INT32_MIN, INT32_MAX));
  const JsonValue* salt = body.FindNonNull("cache_salt");
  if (salt == nullptr) return std::nullopt;
  if (!salt->is_string()) return WrongType("cache_salt", "string", *salt);
  if (salt->text().empty() || salt->text().size() > 1024)
    return BadRequest(
        absl::StrFormat("cache_salt must have 1..1024 bytes, got %d.", salt->text().size()),
        "cache_salt");
  out.salt = salt->text();
  return std::nullopt;
}

// What is asked for and not served: named, instead of silently left out.
MaybeError RefuseUnserved(const JsonValue& body) {
  bool beam = false;
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "use_beam_search", false), beam));
  if (beam) return BadRequest("use_beam_search: beam search is not supported", "use_beam_search");
  return std::nullopt;
}

MaybeError ParseFlags(const JsonValue& body, GenerateParams& out) {
  bool no_trim = false;
  RETURN_IF_API_ERROR(
      Take(BoolMemberOr(body, "include_stop_str_in_output", false), out.include_stop));
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "no_stop_trim", false), no_trim));
  out.include_stop = out.include_stop || no_trim;
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "skip_special_tokens", true), out.skip_special));
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "return_token_ids", false), out.return_token_ids));
  RETURN_IF_API_ERROR(
      Take(BoolMemberOr(body, "return_tokens_as_token_ids", false), out.tokens_as_ids));
  RETURN_IF_API_ERROR(
      Take(BoolMemberOr(body, "separate_reasoning", true), out.separates_reasoning));
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "stream_reasoning", true), out.streams_reasoning));
  return Take(BoolMemberOr(body, "include_reasoning", true), out.includes_reasoning);
}

MaybeError ParseTruncationOfPrompt(const JsonValue& body, GenerateParams& out) {
  if (body.FindNonNull("truncate_prompt_tokens") == nullptr) return std::nullopt;
  int64_t tokens = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "truncate_prompt_tokens", 0), tokens));
  if (tokens != -1 && tokens < 1)
    return BadRequest(
        absl::StrFormat("truncate_prompt_tokens must be -1 (what fits) or at least 1, got %d.",
                        tokens),
        "truncate_prompt_tokens");
  out.truncation = tokens;
  return std::nullopt;
}

MaybeError ParseThinkingBudget(const JsonValue& body, GenerateParams& out) {
  if (body.FindNonNull("thinking_token_budget") == nullptr) return std::nullopt;
  int64_t budget = 0;
  RETURN_IF_API_ERROR(Take(IntMember(body, "thinking_token_budget", 0), budget));
  if (budget < 0)
    return BadRequest(absl::StrFormat("thinking_token_budget must be at least 0, got %d.", budget),
                      "thinking_token_budget");
  out.thinking_budget = budget;
  return std::nullopt;
}

MaybeError ParseStopTokens(const JsonValue& body, const Tokenizer& tokenizer, int32_t eos,
                           GenerateParams& out) {
  bool ignore_eos = false;
  RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "ignore_eos", false), ignore_eos));
  RETURN_IF_API_ERROR(
      ParseTokenIds(body, "stop_token_ids", tokenizer.vocab_size(), out.stop_tokens));
  const bool has_eos =
      std::find(out.stop_tokens.begin(), out.stop_tokens.end(), eos) != out.stop_tokens.end();
  if (!ignore_eos && !has_eos) out.stop_tokens.push_back(eos);
  std::sort(out.stop_tokens.begin(), out.stop_tokens.end());
  out.stop_tokens.erase(std::unique(out.stop_tokens.begin(), out.stop_tokens.end()),
                        out.stop_tokens.end());
  return std::nullopt;
}

// The lists travel in one session message to each worker (contracts.md 5: under 1 MB).
MaybeError CheckListBytes(const GenerateParams& params) {
  constexpr size_t kMaxBytes = 512 << 10;
  const SamplingSpec& sampling = params.sampling;
  size_t bytes = 8 * sampling.logit_bias.size() + 4 * sampling.allowed_tokens.size() +
                 4 * params.stop_tokens.size();
  for (const std::vector<int32_t>& word : sampling.bad_words) bytes += 8 + 4 * word.size();
  if (bytes <= kMaxBytes) return std::nullopt;
  return BadRequest(
      absl::StrFormat("logit_bias, allowed_token_ids, stop_token_ids and bad_words together take "
                      "%d bytes, the limit is %d",
                      bytes, kMaxBytes),
      "logit_bias");
}

}  // namespace

ApiError WrongType(std::string_view path, std::string_view expected, const JsonValue& got) {
  return BadRequest(absl::StrFormat("%s: expected %s, got %s", path, expected, got.KindName()),
                    std::string(path));
}

ApiResult<int64_t> IntMember(const JsonValue& body, std::string_view key, int64_t fallback) {
  const JsonValue* value = body.FindNonNull(key);
  if (value == nullptr) return fallback;
  const std::optional<int64_t> number = value->is_number() ? value->AsInt64() : std::nullopt;
  if (!number) return WrongType(key, "integer", *value);
  return *number;
}

ApiResult<bool> BoolMemberOr(const JsonValue& body, std::string_view key, bool fallback) {
  const JsonValue* value = body.FindNonNull(key);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) return WrongType(key, "boolean", *value);
  return value->boolean();
}

std::optional<uint32_t> PromptEntries(const GenerateParams& params) {
  int entries = params.prompt_logprobs.value_or(-1);
  if (params.echoes && params.wants_logprobs)
    entries = std::max(entries, params.sampling.top_logprobs);
  if (entries < 0) return std::nullopt;
  return static_cast<uint32_t>(entries);
}

ApiResult<GenerateParams> ParseGenerateParams(const JsonValue& body, CompletionKind kind,
                                              const Tokenizer& tokenizer, int32_t eos) {
  GenerateParams out;
  RETURN_IF_API_ERROR(ParseTemperature(body, out.sampling));
  RETURN_IF_API_ERROR(ParseTruncation(body, out.sampling));
  RETURN_IF_API_ERROR(ParsePenalties(body, out.sampling));
  RETURN_IF_API_ERROR(ParseLogitBias(body, tokenizer.vocab_size(), out.sampling));
  RETURN_IF_API_ERROR(ParseAllowed(body, tokenizer.vocab_size(), out.sampling));
  RETURN_IF_API_ERROR(ParseBadWords(body, tokenizer, out.sampling));
  RETURN_IF_API_ERROR(ParseStops(body, out));
  RETURN_IF_API_ERROR(ParseStopTokens(body, tokenizer, eos, out));
  RETURN_IF_API_ERROR(CheckListBytes(out));
  if (kind == CompletionKind::kText)
    RETURN_IF_API_ERROR(Take(BoolMemberOr(body, "echo", false), out.echoes));
  RETURN_IF_API_ERROR(ParseLengths(body, kind, out));
  RETURN_IF_API_ERROR(kind == CompletionKind::kChat ? ParseChatLogprobs(body, out)
                                                    : ParseTextLogprobs(body, out));
  RETURN_IF_API_ERROR(ParseStreaming(body, out));
  RETURN_IF_API_ERROR(ParsePromptLogprobs(body, out));
  RETURN_IF_API_ERROR(ParseChoices(body, out));
  RETURN_IF_API_ERROR(ParseSeed(body, out));
  RETURN_IF_API_ERROR(ParsePlacement(body, out));
  RETURN_IF_API_ERROR(ParseFlags(body, out));
  RETURN_IF_API_ERROR(ParseTruncationOfPrompt(body, out));
  if (kind == CompletionKind::kChat) RETURN_IF_API_ERROR(ParseThinkingBudget(body, out));
  RETURN_IF_API_ERROR(RefuseUnserved(body));
  return out;
}

}  // namespace baton::router
