#include "proto/wire_values.h"

#include <algorithm>
#include <cmath>

#include "common/status.h"

namespace baton::wire {
namespace {

absl::Status CheckFinite(std::string_view field, float value) {
  if (std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: %g is not finite", field, value));
}

bool HasLogprobs(const TokenRecord& record) { return record.logprob != 0 || !record.top.empty(); }

}  // namespace

absl::Status CheckRange(std::string_view field, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: %d is outside %d..%d", field, value, least, most));
}

absl::Status CheckSize(std::string_view field, size_t size, size_t most) {
  if (size <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: size %d is above %d", field, size, most));
}

absl::Status ReadCode(uint32_t value, std::string_view field, absl::StatusCode& out) {
  RETURN_IF_ERROR(CheckRange(field, value, 1, 16));
  out = static_cast<absl::StatusCode>(value);
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const google::protobuf::RepeatedField<uint32_t>& ids,
                          std::string_view field, std::vector<int32_t>& out) {
  RETURN_IF_ERROR(CheckSize(field, static_cast<size_t>(ids.size()), kMaxContext));
  out.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    RETURN_IF_ERROR(CheckRange(field, id, 0, kMaxTokenId));
    out.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

void WriteTokenIds(const std::vector<int32_t>& ids,
                   google::protobuf::RepeatedField<uint32_t>& out) {
  out.Reserve(out.size() + static_cast<int>(ids.size()));
  for (const int32_t id : ids) out.AddAlreadyReserved(static_cast<uint32_t>(id));
}

absl::Status ReadBitmap(const pb::Bitmap& bitmap, std::string_view field, std::vector<bool>& out) {
  const uint32_t bits = bitmap.num_bits();
  RETURN_IF_ERROR(CheckRange(field, bits, 0, kMaxContext / kPageTokens));
  if (bitmap.bits().size() != (bits + 7) / 8)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes for %d bits", field, bitmap.bits().size(), bits));
  out.resize(bits);
  for (uint32_t i = 0; i < bits; ++i)
    out[i] = (static_cast<uint8_t>(bitmap.bits()[i / 8]) >> (i % 8) & 1) != 0;
  return absl::OkStatus();
}

void WriteBitmap(const std::vector<bool>& bits, pb::Bitmap& out) {
  out.set_num_bits(static_cast<uint32_t>(bits.size()));
  std::string bytes((bits.size() + 7) / 8, '\0');
  for (size_t i = 0; i < bits.size(); ++i)
    if (bits[i]) bytes[i / 8] = static_cast<char>(bytes[i / 8] | 1 << (i % 8));
  out.set_bits(std::move(bytes));
}

absl::Status ReadLanding(const pb::Landing& landing, Landing& out) {
  RETURN_IF_ERROR(CheckRange("landing.attempt", landing.attempt(), 1, 1000));
  RETURN_IF_ERROR(ReadId(landing.secret(), "landing.secret", out.secret));
  RETURN_IF_ERROR(CheckSize("landing.kv_address", landing.kv_address().size(), kMaxName));
  RETURN_IF_ERROR(CheckRange("landing.num_ranks", landing.num_ranks(), 1, 64));
  RETURN_IF_ERROR(CheckRange("landing.window", landing.window(), 1, 4096));
  out.attempt = landing.attempt();
  out.incarnation = Incarnation{landing.incarnation()};
  out.kv_address = landing.kv_address();
  out.num_ranks = landing.num_ranks();
  out.window = landing.window();
  return absl::OkStatus();
}

void WriteLanding(const Landing& landing, pb::Landing& out) {
  out.set_attempt(landing.attempt);
  out.set_secret(WriteId(landing.secret));
  out.set_incarnation(landing.incarnation.value);
  out.set_kv_address(landing.kv_address);
  out.set_num_ranks(landing.num_ranks);
  out.set_window(landing.window);
}

absl::Status ReadSampling(const pb::Sampling& sampling, SamplingSpec& out) {
  out.greedy = sampling.greedy();
  out.inv_temperature = sampling.inv_temperature();
  out.seed = sampling.seed();
  RETURN_IF_ERROR(CheckFinite("sampling.inv_temperature", out.inv_temperature));
  if (!out.greedy && out.inv_temperature <= 0)
    return absl::InvalidArgumentError(
        absl::StrFormat("sampling.inv_temperature: %g is not above 0", out.inv_temperature));
  if (sampling.top_k() < 0)
    return absl::InvalidArgumentError(
        absl::StrFormat("sampling.top_k: %d is below 0", sampling.top_k()));
  out.top_k = sampling.top_k();
  RETURN_IF_ERROR(CheckRange("sampling.top_p", sampling.top_p(), 1, kTopPOff));
  RETURN_IF_ERROR(CheckRange("sampling.min_p", sampling.min_p(), 0, kTopPOff));
  out.top_p = sampling.top_p();
  out.min_p = sampling.min_p();
  out.repetition_penalty = sampling.repetition_penalty();
  out.frequency_penalty = sampling.frequency_penalty();
  out.presence_penalty = sampling.presence_penalty();
  RETURN_IF_ERROR(CheckFinite("sampling.repetition_penalty", out.repetition_penalty));
  RETURN_IF_ERROR(CheckFinite("sampling.frequency_penalty", out.frequency_penalty));
  RETURN_IF_ERROR(CheckFinite("sampling.presence_penalty", out.presence_penalty));
  if (out.repetition_penalty <= 0)
    return absl::InvalidArgumentError(
        absl::StrFormat("sampling.repetition_penalty: %g is not above 0", out.repetition_penalty));
  if (sampling.bias_tokens_size() != sampling.bias_values_size())
    return absl::InvalidArgumentError(
        absl::StrFormat("sampling.bias_values: %d values for %d tokens",
                        sampling.bias_values_size(), sampling.bias_tokens_size()));
  std::vector<int32_t> bias_tokens;
  RETURN_IF_ERROR(ReadTokenIds(sampling.bias_tokens(), "sampling.bias_tokens", bias_tokens));
  for (int i = 0; i < sampling.bias_tokens_size(); ++i) {
    RETURN_IF_ERROR(CheckFinite("sampling.bias_values", sampling.bias_values(i)));
    out.logit_bias.emplace_back(bias_tokens[static_cast<size_t>(i)], sampling.bias_values(i));
  }
  RETURN_IF_ERROR(
      ReadTokenIds(sampling.allowed_tokens(), "sampling.allowed_tokens", out.allowed_tokens));
  for (const pb::BadWord& word : sampling.bad_words()) {
    RETURN_IF_ERROR(CheckRange("sampling.bad_words.tokens",
                               static_cast<uint64_t>(word.tokens_size()), 1, 1024));
    RETURN_IF_ERROR(
        ReadTokenIds(word.tokens(), "sampling.bad_words.tokens", out.bad_words.emplace_back()));
  }
  if (sampling.top_logprobs() < -1 || sampling.top_logprobs() > kMaxTopLogprobs)
    return absl::InvalidArgumentError(absl::StrFormat("sampling.top_logprobs: %d is outside -1..%d",
                                                      sampling.top_logprobs(), kMaxTopLogprobs));
  out.top_logprobs = sampling.top_logprobs();
  return absl::OkStatus();
}

void WriteSampling(const SamplingSpec& sampling, pb::Sampling& out) {
  out.set_greedy(sampling.greedy);
  out.set_inv_temperature(sampling.inv_temperature);
  out.set_seed(sampling.seed);
  out.set_top_k(sampling.top_k);
  out.set_top_p(sampling.top_p);
  out.set_min_p(sampling.min_p);
  out.set_repetition_penalty(sampling.repetition_penalty);
  out.set_frequency_penalty(sampling.frequency_penalty);
  out.set_presence_penalty(sampling.presence_penalty);
  for (const auto& [token, bias] : sampling.logit_bias) {
    out.add_bias_tokens(static_cast<uint32_t>(token));
    out.add_bias_values(bias);
  }
  WriteTokenIds(sampling.allowed_tokens, *out.mutable_allowed_tokens());
  for (const auto& word : sampling.bad_words)
    WriteTokenIds(word, *out.add_bad_words()->mutable_tokens());
  out.set_top_logprobs(sampling.top_logprobs);
}

absl::Status ReadFinish(const pb::Finish& finish, FinishRules& out) {
  RETURN_IF_ERROR(ReadTokenIds(finish.stop_tokens(), "finish.stop_tokens", out.stop_tokens));
  RETURN_IF_ERROR(
      CheckRange("finish.max_tokens", static_cast<uint64_t>(finish.max_tokens()), 1, kMaxContext));
  RETURN_IF_ERROR(
      CheckRange("finish.min_tokens", static_cast<uint64_t>(finish.min_tokens()), 0, kMaxContext));
  out.max_tokens = finish.max_tokens();
  out.min_tokens = finish.min_tokens();
  return absl::OkStatus();
}

void WriteFinish(const FinishRules& finish, pb::Finish& out) {
  WriteTokenIds(finish.stop_tokens, *out.mutable_stop_tokens());
  out.set_max_tokens(finish.max_tokens);
  out.set_min_tokens(finish.min_tokens);
}

absl::Status ReadMasks(const pb::Masks& masks, MaskRules& out) {
  RETURN_IF_ERROR(CheckSize("masks.grammar", masks.grammar().size(), kMaxGrammarBytes));
  RETURN_IF_ERROR(ReadTokenIds(masks.forced_prefix(), "masks.forced_prefix", out.forced_prefix));
  RETURN_IF_ERROR(ReadTokenIds(masks.reasoning_bans(), "masks.reasoning_bans", out.reasoning_bans));
  if (masks.has_thinking_budget()) {
    RETURN_IF_ERROR(CheckRange("masks.thinking_budget",
                               static_cast<uint64_t>(masks.thinking_budget()), 0, kMaxContext));
    out.thinking_budget = masks.thinking_budget();
  }
  out.grammar = masks.grammar();
  out.starts_in_reasoning = masks.starts_in_reasoning();
  return absl::OkStatus();
}

void WriteMasks(const MaskRules& masks, pb::Masks& out) {
  out.set_grammar(masks.grammar);
  WriteTokenIds(masks.forced_prefix, *out.mutable_forced_prefix());
  WriteTokenIds(masks.reasoning_bans, *out.mutable_reasoning_bans());
  if (masks.thinking_budget) out.set_thinking_budget(*masks.thinking_budget);
  out.set_starts_in_reasoning(masks.starts_in_reasoning);
}

absl::Status ReadTokenColumns(const pb::TokenColumns& columns, std::string_view field,
                              std::vector<TokenRecord>& out) {
  std::vector<int32_t> tokens;
  RETURN_IF_ERROR(ReadTokenIds(columns.tokens(), field, tokens));
  const bool has_logprobs = columns.logprobs_size() > 0 || columns.top_counts_size() > 0;
  if (has_logprobs && (columns.logprobs_size() != columns.tokens_size() ||
                       columns.top_counts_size() != columns.tokens_size()))
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d logprobs and %d counts for %d tokens", field,
                        columns.logprobs_size(), columns.top_counts_size(), columns.tokens_size()));
  if (columns.top_tokens_size() != columns.top_logprobs_size())
    return absl::InvalidArgumentError(absl::StrFormat("%s: %d top tokens, %d top logprobs", field,
                                                      columns.top_tokens_size(),
                                                      columns.top_logprobs_size()));
  std::vector<int32_t> top_tokens;
  RETURN_IF_ERROR(ReadTokenIds(columns.top_tokens(), field, top_tokens));
  size_t next = 0;
  for (int i = 0; i < columns.tokens_size(); ++i) {
    TokenRecord& record = out.emplace_back();
    record.token = tokens[static_cast<size_t>(i)];
    if (!has_logprobs) continue;
    record.logprob = columns.logprobs(i);
    const uint32_t count = columns.top_counts(i);
    RETURN_IF_ERROR(CheckRange(field, count, 0, kMaxTopLogprobs + 1));
    RETURN_IF_ERROR(CheckSize(field, next + count, top_tokens.size()));
    for (uint32_t j = 0; j < count; ++j, ++next)
      record.top.push_back(
          {.token = top_tokens[next], .logprob = columns.top_logprobs(static_cast<int>(next))});
  }
  if (next != top_tokens.size())
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d top tokens, counts say %d", field, top_tokens.size(), next));
  return absl::OkStatus();
}

void WriteTokenColumns(const std::vector<const TokenRecord*>& records, pb::TokenColumns& out) {
  const bool has_logprobs = std::any_of(records.begin(), records.end(),
                                        [](const TokenRecord* r) { return HasLogprobs(*r); });
  for (const TokenRecord* record : records) {
    out.add_tokens(static_cast<uint32_t>(record->token));
    if (!has_logprobs) continue;
    out.add_logprobs(record->logprob);
    out.add_top_counts(static_cast<uint32_t>(record->top.size()));
    for (const TokenLogprob& top : record->top) {
      out.add_top_tokens(static_cast<uint32_t>(top.token));
      out.add_top_logprobs(top.logprob);
    }
  }
}

void WriteTokenColumns(const std::vector<TokenRecord>& records, pb::TokenColumns& out) {
  std::vector<const TokenRecord*> pointers;
  pointers.reserve(records.size());
  for (const TokenRecord& record : records) pointers.push_back(&record);
  WriteTokenColumns(pointers, out);
}

absl::Status ReadBeat(const pb::Beat& beat, Beat& out) {
  out = {.number = beat.number(),
         .echo = beat.echo(),
         .engine_steps = beat.engine_steps(),
         .since_step_us = beat.since_step_us(),
         .is_wedged = beat.is_wedged()};
  return absl::OkStatus();
}

void WriteBeat(const Beat& beat, pb::Beat& out) {
  out.set_number(beat.number);
  out.set_echo(beat.echo);
  out.set_engine_steps(beat.engine_steps);
  out.set_since_step_us(beat.since_step_us);
  out.set_is_wedged(beat.is_wedged);
}

}  // namespace baton::wire
