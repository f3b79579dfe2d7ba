#include "common/status.h"
#include "proto/wire.h"
#include "proto/wire_values.h"

namespace baton::wire {
namespace {

absl::Status Read(const pb::WorkerHello& hello, WorkerHello& out) {
  RETURN_IF_ERROR(CheckRange("hello.worker_id", hello.worker_id().size(), 1, kMaxName));
  RETURN_IF_ERROR(CheckRange("hello.protocol_version", hello.protocol_version(), kProtocolVersion,
                             kProtocolVersion));
  RETURN_IF_ERROR(ReadId(hello.weights(), "hello.weights", out.weights));
  RETURN_IF_ERROR(ReadId(hello.layout(), "hello.layout", out.layout));
  RETURN_IF_ERROR(ReadId(hello.prompt_class(), "hello.prompt_class", out.prompt_class));
  RETURN_IF_ERROR(ReadId(hello.decode_class(), "hello.decode_class", out.decode_class));
  RETURN_IF_ERROR(CheckSize("hello.kv_address", hello.kv_address().size(), kMaxName));
  RETURN_IF_ERROR(CheckSize("hello.kv_transports", hello.kv_transports().size(), kMaxName));
  RETURN_IF_ERROR(CheckRange("hello.num_ranks", hello.num_ranks(), 1, 64));
  RETURN_IF_ERROR(CheckRange("hello.max_context", hello.max_context(), 1, kMaxContext));
  RETURN_IF_ERROR(CheckSize("hello.build_version", hello.build_version().size(), kMaxName));
  if (!hello.serves_prefill() && !hello.serves_decode())
    return absl::InvalidArgumentError(
        "hello.serves_prefill: the worker serves neither prefill nor decode");
  out.worker_id = hello.worker_id();
  out.incarnation = Incarnation{hello.incarnation()};
  out.protocol_version = hello.protocol_version();
  out.serves_prefill = hello.serves_prefill();
  out.serves_decode = hello.serves_decode();
  out.kv_address = hello.kv_address();
  out.kv_transports = hello.kv_transports();
  out.num_ranks = hello.num_ranks();
  out.pages = hello.pages();
  out.max_sequences = hello.max_sequences();
  out.max_context = hello.max_context();
  out.build_version = hello.build_version();
  return absl::OkStatus();
}

absl::Status Read(const pb::Reserved& reserved, Reserved& out) {
  RETURN_IF_ERROR(ReadId(reserved.transfer(), "reserved.transfer", out.transfer));
  RETURN_IF_ERROR(ReadLanding(reserved.landing(), out.landing));
  out.booking_us = reserved.booking_us();
  return absl::OkStatus();
}

absl::Status Read(const pb::Refused& refused, Refused& out) {
  RETURN_IF_ERROR(ReadId(refused.transfer(), "refused.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange("refused.stage", refused.stage(), 1, 4));
  RETURN_IF_ERROR(ReadCode(refused.code(), "refused.code", out.code));
  RETURN_IF_ERROR(CheckSize("refused.message", refused.message().size(), kMaxText));
  out.stage = static_cast<Stage>(refused.stage());
  out.message = refused.message();
  out.retry_after_ms = refused.retry_after_ms();
  out.lacks_grammar_room = refused.lacks_grammar_room();
  return absl::OkStatus();
}

absl::Status Read(const pb::Retargeted& retargeted, Retargeted& out) {
  RETURN_IF_ERROR(ReadId(retargeted.transfer(), "retargeted.transfer", out.transfer));
  out.attempt = retargeted.attempt();
  return ReadBitmap(retargeted.verified_pages(), "retargeted.verified_pages", out.verified_pages);
}

absl::Status Read(const pb::FirstToken& first, FirstToken& out) {
  RETURN_IF_ERROR(ReadId(first.transfer(), "first_token.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange(
      "first_token.tokens", static_cast<uint64_t>(first.tokens().tokens_size()), 1, kMaxSequences));
  out.attempt = first.attempt();
  out.cached_tokens = first.cached_tokens();
  out.queue_us = first.queue_us();
  out.prefill_us = first.prefill_us();
  return ReadTokenColumns(first.tokens(), "first_token.tokens", out.tokens);
}

absl::Status Read(const pb::PromptLogprobs& logprobs, PromptLogprobs& out) {
  RETURN_IF_ERROR(ReadId(logprobs.transfer(), "prompt_logprobs.transfer", out.transfer));
  RETURN_IF_ERROR(
      CheckRange("prompt_logprobs.first_position", logprobs.first_position(), 1, kMaxContext));
  RETURN_IF_ERROR(CheckRange("prompt_logprobs.tokens",
                             static_cast<uint64_t>(logprobs.tokens().tokens_size()), 1,
                             kMaxPromptLogprobs));
  out.first_position = logprobs.first_position();
  return ReadTokenColumns(logprobs.tokens(), "prompt_logprobs.tokens", out.tokens);
}

absl::Status Read(const pb::Progress& progress, Progress& out) {
  out.attempt = progress.attempt();
  out.computed_tokens = progress.computed_tokens();
  out.acked_blocks = progress.acked_blocks();
  return ReadId(progress.transfer(), "progress.transfer", out.transfer);
}

absl::Status Read(const pb::Prefilled& prefilled, Prefilled& out) {
  out.attempt = prefilled.attempt();
  return ReadId(prefilled.transfer(), "prefilled.transfer", out.transfer);
}

absl::Status Read(const pb::Landed& landed, Landed& out) {
  RETURN_IF_ERROR(ReadId(landed.transfer(), "landed.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange("landed.tokens", static_cast<uint64_t>(landed.tokens().tokens_size()),
                             1, kMaxSequences));
  out.attempt = landed.attempt();
  out.transfer_us = landed.transfer_us();
  return ReadTokenColumns(landed.tokens(), "landed.tokens", out.tokens);
}

absl::Status Read(const pb::Tokens& tokens, Tokens& out) {
  const int sequences = tokens.handles_size();
  const auto has_one_each = [&](int size) { return size == 0 || size == sequences; };
  if (tokens.first_positions_size() != sequences || tokens.counts_size() != sequences ||
      !has_one_each(tokens.queue_us_size()) || !has_one_each(tokens.step_us_size()))
    return absl::InvalidArgumentError(absl::StrFormat(
        "tokens: columns of %d, %d, %d, %d, %d for %d handles", tokens.first_positions_size(),
        tokens.counts_size(), tokens.queue_us_size(), tokens.step_us_size(), sequences, sequences));
  std::vector<TokenRecord> records;
  RETURN_IF_ERROR(ReadTokenColumns(tokens.tokens(), "tokens.tokens", records));
  out.step = tokens.step();
  size_t next = 0;
  for (int i = 0; i < sequences; ++i) {
    SequenceStep& step = out.sequences.emplace_back();
    const size_t count = tokens.counts(i);
    RETURN_IF_ERROR(CheckRange("tokens.counts", count, 1, records.size() - next));
    RETURN_IF_ERROR(
        CheckRange("tokens.first_positions", tokens.first_positions(i), 1, kMaxContext));
    step.handle = SequenceHandle{tokens.handles(i)};
    step.first_position = tokens.first_positions(i);
    for (const size_t end = next + count; next < end; ++next)
      step.tokens.push_back(std::move(records[next]));
    if (tokens.queue_us_size() > 0) step.queue_us = tokens.queue_us(i);
    if (tokens.step_us_size() > 0) step.step_us = tokens.step_us(i);
  }
  return next == records.size()
             ? absl::OkStatus()
             : absl::InvalidArgumentError(absl::StrFormat("tokens.tokens: %d tokens, counts say %d",
                                                          records.size(), next));
}

absl::Status Read(const pb::Finished& finished, Finished& out) {
  RETURN_IF_ERROR(CheckRange("finished.reason", finished.reason(), 1, 2));
  out.handle = SequenceHandle{finished.handle()};
  out.reason = finished.reason() == 1 ? FinishReason::kStop : FinishReason::kLength;
  if (finished.has_stop_token()) {
    RETURN_IF_ERROR(CheckRange("finished.stop_token", finished.stop_token(), 0, kMaxTokenId));
    out.stop_token = static_cast<int32_t>(finished.stop_token());
  }
  return absl::OkStatus();
}

absl::Status Read(const pb::Failed& failed, Failed& out) {
  RETURN_IF_ERROR(ReadId(failed.transfer(), "failed.transfer", out.transfer));
  RETURN_IF_ERROR(ReadCode(failed.code(), "failed.code", out.code));
  RETURN_IF_ERROR(CheckSize("failed.message", failed.message().size(), kMaxText));
  if (failed.has_handle()) out.handle = SequenceHandle{failed.handle()};
  out.message = failed.message();
  return absl::OkStatus();
}

Load ReadLoad(const pb::Load& load) {
  return {.free_pages = load.free_pages(),
          .booked_pages = load.booked_pages(),
          .leased_pages = load.leased_pages(),
          .cached_pages = load.cached_pages(),
          .quarantined_pages = load.quarantined_pages(),
          .running = load.running(),
          .waiting = load.waiting(),
          .queued_prompt_tokens = load.queued_prompt_tokens(),
          .prefill_tokens_per_s = load.prefill_tokens_per_s(),
          .last_step_us = load.last_step_us(),
          .host_pages = load.host_pages(),
          .is_draining = load.is_draining()};
}

absl::Status ReadNames(const std::string& packed, std::string_view field,
                       std::vector<PageName>& out) {
  constexpr size_t kBytes = 16;
  if (packed.size() % kBytes != 0)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes is no multiple of %d", field, packed.size(), kBytes));
  RETURN_IF_ERROR(CheckSize(field, packed.size() / kBytes, kMaxCacheNames));
  out.resize(packed.size() / kBytes);
  for (size_t i = 0; i < packed.size(); ++i)
    out[i / kBytes].bytes[i % kBytes] = static_cast<uint8_t>(packed[i]);
  return absl::OkStatus();
}

absl::Status Read(const pb::CacheEvents& events, CacheEvents& out) {
  RETURN_IF_ERROR(ReadNames(events.added(), "cache_events.added", out.added));
  RETURN_IF_ERROR(ReadNames(events.removed(), "cache_events.removed", out.removed));
  out.generation = events.generation();
  out.is_snapshot = events.is_snapshot();
  out.part = events.part();
  out.is_last = events.is_last();
  return absl::OkStatus();
}

template <typename From, typename To>
absl::Status ReadAll(const google::protobuf::RepeatedPtrField<From>& from, std::vector<To>& to) {
  to.reserve(static_cast<size_t>(from.size()));
  for (const From& item : from) RETURN_IF_ERROR(Read(item, to.emplace_back()));
  return absl::OkStatus();
}

void Write(const WorkerHello& hello, pb::WorkerHello& out) {
  out.set_worker_id(hello.worker_id);
  out.set_incarnation(hello.incarnation.value);
  out.set_protocol_version(hello.protocol_version);
  out.set_serves_prefill(hello.serves_prefill);
  out.set_serves_decode(hello.serves_decode);
  out.set_weights(WriteId(hello.weights));
  out.set_layout(WriteId(hello.layout));
  out.set_prompt_class(WriteId(hello.prompt_class));
  out.set_decode_class(WriteId(hello.decode_class));
  out.set_kv_address(hello.kv_address);
  out.set_kv_transports(hello.kv_transports);
  out.set_num_ranks(hello.num_ranks);
  out.set_pages(hello.pages);
  out.set_max_sequences(hello.max_sequences);
  out.set_max_context(hello.max_context);
  out.set_build_version(hello.build_version);
}

void Write(const Reserved& reserved, pb::Reserved& out) {
  out.set_transfer(WriteId(reserved.transfer));
  WriteLanding(reserved.landing, *out.mutable_landing());
  out.set_booking_us(reserved.booking_us);
}

void Write(const Refused& refused, pb::Refused& out) {
  out.set_transfer(WriteId(refused.transfer));
  out.set_stage(static_cast<uint32_t>(refused.stage));
  out.set_code(static_cast<uint32_t>(refused.code));
  out.set_message(refused.message);
  out.set_retry_after_ms(refused.retry_after_ms);
  out.set_lacks_grammar_room(refused.lacks_grammar_room);
}

void Write(const Retargeted& retargeted, pb::Retargeted& out) {
  out.set_transfer(WriteId(retargeted.transfer));
  out.set_attempt(retargeted.attempt);
  WriteBitmap(retargeted.verified_pages, *out.mutable_verified_pages());
}

void Write(const FirstToken& first, pb::FirstToken& out) {
  out.set_transfer(WriteId(first.transfer));
  out.set_attempt(first.attempt);
  WriteTokenColumns(first.tokens, *out.mutable_tokens());
  out.set_cached_tokens(first.cached_tokens);
  out.set_queue_us(first.queue_us);
  out.set_prefill_us(first.prefill_us);
}

void Write(const PromptLogprobs& logprobs, pb::PromptLogprobs& out) {
  out.set_transfer(WriteId(logprobs.transfer));
  out.set_first_position(logprobs.first_position);
  WriteTokenColumns(logprobs.tokens, *out.mutable_tokens());
}

void Write(const Progress& progress, pb::Progress& out) {
  out.set_transfer(WriteId(progress.transfer));
  out.set_attempt(progress.attempt);
  out.set_computed_tokens(progress.computed_tokens);
  out.set_acked_blocks(progress.acked_blocks);
}

void Write(const Prefilled& prefilled, pb::Prefilled& out) {
  out.set_transfer(WriteId(prefilled.transfer));
  out.set_attempt(prefilled.attempt);
}

void Write(const Landed& landed, pb::Landed& out) {
  out.set_transfer(WriteId(landed.transfer));
  out.set_attempt(landed.attempt);
  WriteTokenColumns(landed.tokens, *out.mutable_tokens());
  out.set_transfer_us(landed.transfer_us);
}

void Write(const Tokens& tokens, pb::Tokens& out) {
  out.set_step(tokens.step);
  std::vector<const TokenRecord*> records;
  bool has_times = false;
  for (const SequenceStep& sequence : tokens.sequences) {
    out.add_handles(sequence.handle.value);
    out.add_first_positions(sequence.first_position);
    out.add_counts(static_cast<uint32_t>(sequence.tokens.size()));
    for (const TokenRecord& record : sequence.tokens) records.push_back(&record);
    has_times = has_times || sequence.queue_us != 0 || sequence.step_us != 0;
  }
  WriteTokenColumns(records, *out.mutable_tokens());
  if (!has_times) return;
  for (const SequenceStep& sequence : tokens.sequences) {
    out.add_queue_us(sequence.queue_us);
    out.add_step_us(sequence.step_us);
  }
}

void Write(const Finished& finished, pb::Finished& out) {
  out.set_handle(finished.handle.value);
  out.set_reason(finished.reason == FinishReason::kStop ? 1 : 2);
  if (finished.stop_token >= 0) out.set_stop_token(static_cast<uint32_t>(finished.stop_token));
}

void Write(const Failed& failed, pb::Failed& out) {
  out.set_transfer(WriteId(failed.transfer));
  if (failed.handle) out.set_handle(failed.handle->value);
  out.set_code(static_cast<uint32_t>(failed.code));
  out.set_message(failed.message);
}

void Write(const Load& load, pb::Load& out) {
  out.set_free_pages(load.free_pages);
  out.set_booked_pages(load.booked_pages);
  out.set_leased_pages(load.leased_pages);
  out.set_cached_pages(load.cached_pages);
  out.set_quarantined_pages(load.quarantined_pages);
  out.set_running(load.running);
  out.set_waiting(load.waiting);
  out.set_queued_prompt_tokens(load.queued_prompt_tokens);
  out.set_prefill_tokens_per_s(load.prefill_tokens_per_s);
  out.set_last_step_us(load.last_step_us);
  out.set_host_pages(load.host_pages);
  out.set_is_draining(load.is_draining);
}

std::string PackNames(const std::vector<PageName>& names) {
  std::string packed;
  packed.reserve(16 * names.size());
  for (const PageName& name : names) packed.append(name.bytes.begin(), name.bytes.end());
  return packed;
}

void Write(const CacheEvents& events, pb::CacheEvents& out) {
  out.set_generation(events.generation);
  out.set_is_snapshot(events.is_snapshot);
  out.set_part(events.part);
  out.set_is_last(events.is_last);
  out.set_added(PackNames(events.added));
  out.set_removed(PackNames(events.removed));
}

template <typename From, typename To>
void WriteAll(const std::vector<From>& from, google::protobuf::RepeatedPtrField<To>& to) {
  for (const From& item : from) Write(item, *to.Add());
}

}  // namespace

absl::StatusOr<WorkerMessage> FromProto(const pb::WorkerMessage& message) {
  WorkerMessage out;
  if (message.has_hello()) RETURN_IF_ERROR(Read(message.hello(), out.hello.emplace()));
  if (message.has_beat()) RETURN_IF_ERROR(ReadBeat(message.beat(), out.beat.emplace()));
  RETURN_IF_ERROR(ReadAll(message.reserved(), out.reserved));
  RETURN_IF_ERROR(ReadAll(message.refused(), out.refused));
  RETURN_IF_ERROR(ReadAll(message.retargeted(), out.retargeted));
  RETURN_IF_ERROR(ReadAll(message.first_tokens(), out.first_tokens));
  RETURN_IF_ERROR(ReadAll(message.prompt_logprobs(), out.prompt_logprobs));
  RETURN_IF_ERROR(ReadAll(message.progress(), out.progress));
  RETURN_IF_ERROR(ReadAll(message.prefilled(), out.prefilled));
  RETURN_IF_ERROR(ReadAll(message.landed(), out.landed));
  if (message.has_tokens()) RETURN_IF_ERROR(Read(message.tokens(), out.tokens.emplace()));
  RETURN_IF_ERROR(ReadAll(message.finished(), out.finished));
  RETURN_IF_ERROR(ReadAll(message.failed(), out.failed));
  for (const uint32_t handle : message.parked()) out.parked.push_back(SequenceHandle{handle});
  for (const uint32_t handle : message.resumed()) out.resumed.push_back(SequenceHandle{handle});
  if (message.has_load()) out.load = ReadLoad(message.load());
  RETURN_IF_ERROR(ReadAll(message.cache_events(), out.cache_events));
  return out;
}

void ToProto(const WorkerMessage& message, pb::WorkerMessage& out) {
  if (message.hello) Write(*message.hello, *out.mutable_hello());
  if (message.beat) WriteBeat(*message.beat, *out.mutable_beat());
  WriteAll(message.reserved, *out.mutable_reserved());
  WriteAll(message.refused, *out.mutable_refused());
  WriteAll(message.retargeted, *out.mutable_retargeted());
  WriteAll(message.first_tokens, *out.mutable_first_tokens());
  WriteAll(message.prompt_logprobs, *out.mutable_prompt_logprobs());
  WriteAll(message.progress, *out.mutable_progress());
  WriteAll(message.prefilled, *out.mutable_prefilled());
  WriteAll(message.landed, *out.mutable_landed());
  if (message.tokens) Write(*message.tokens, *out.mutable_tokens());
  WriteAll(message.finished, *out.mutable_finished());
  WriteAll(message.failed, *out.mutable_failed());
  for (const SequenceHandle handle : message.parked) out.add_parked(handle.value);
  for (const SequenceHandle handle : message.resumed) out.add_resumed(handle.value);
  if (message.load) Write(*message.load, *out.mutable_load());
  WriteAll(message.cache_events, *out.mutable_cache_events());
}

}  // namespace baton::wire
