#include "common/status.h"
#include "proto/wire.h"
#include "proto/wire_values.h"

namespace baton::wire {
namespace {

absl::Status ReadSequences(const google::protobuf::RepeatedPtrField<pb::SequenceSpec>& sequences,
                           std::string_view field, std::vector<SequenceSpec>& out) {
  RETURN_IF_ERROR(CheckRange(field, static_cast<uint64_t>(sequences.size()), 1, kMaxSequences));
  for (const pb::SequenceSpec& sequence : sequences) {
    SequenceSpec& spec = out.emplace_back();
    RETURN_IF_ERROR(CheckRange("sequences.choice", sequence.choice(), 0, kMaxSequences - 1));
    RETURN_IF_ERROR(ReadTokenIds(sequence.received(), "sequences.received", spec.received));
    spec.handle = SequenceHandle{sequence.handle()};
    spec.choice = sequence.choice();
  }
  return absl::OkStatus();
}

void WriteSequences(const std::vector<SequenceSpec>& sequences,
                    google::protobuf::RepeatedPtrField<pb::SequenceSpec>& out) {
  for (const SequenceSpec& sequence : sequences) {
    pb::SequenceSpec& spec = *out.Add();
    spec.set_handle(sequence.handle.value);
    spec.set_choice(sequence.choice);
    WriteTokenIds(sequence.received, *spec.mutable_received());
  }
}

absl::Status ReadRemaining(int64_t ms, std::optional<int64_t>& out) {
  RETURN_IF_ERROR(CheckRange("remaining_ms", static_cast<uint64_t>(ms), 0, uint64_t{1} << 40));
  out = ms;
  return absl::OkStatus();
}

absl::Status Read(const pb::RouterHello& hello, RouterHello& out) {
  RETURN_IF_ERROR(CheckSize("hello.router_id", hello.router_id().size(), kMaxName));
  RETURN_IF_ERROR(CheckRange("hello.protocol_version", hello.protocol_version(), kProtocolVersion,
                             kProtocolVersion));
  out = {.router_id = hello.router_id(),
         .incarnation = Incarnation{hello.incarnation()},
         .protocol_version = hello.protocol_version()};
  return absl::OkStatus();
}

absl::Status Read(const pb::Cancel& cancel, Cancel& out) {
  RETURN_IF_ERROR(ReadId(cancel.transfer(), "cancel.transfer", out.transfer));
  RETURN_IF_ERROR(CheckSize("cancel.reason", cancel.reason().size(), kMaxText));
  if (cancel.has_sequence()) {
    RETURN_IF_ERROR(CheckRange("cancel.sequence", cancel.sequence(), 0, kMaxSequences - 1));
    out.sequence = cancel.sequence();
  }
  out.reason = cancel.reason();
  return absl::OkStatus();
}

absl::Status Read(const pb::Reserve& reserve, Reserve& out) {
  RETURN_IF_ERROR(ReadId(reserve.transfer(), "reserve.transfer", out.transfer));
  RETURN_IF_ERROR(CheckSize("reserve.request_id", reserve.request_id().size(), kMaxName));
  RETURN_IF_ERROR(CheckRange("reserve.prompt_tokens", reserve.prompt_tokens(), 1, kMaxContext));
  RETURN_IF_ERROR(CheckRange("reserve.num_pages", reserve.num_pages(),
                             (reserve.prompt_tokens() + kPageTokens - 1) / kPageTokens,
                             kMaxContext / kPageTokens + 1));
  RETURN_IF_ERROR(ReadSequences(reserve.sequences(), "reserve.sequences", out.sequences));
  RETURN_IF_ERROR(ReadSampling(reserve.sampling(), out.sampling));
  RETURN_IF_ERROR(ReadFinish(reserve.finish(), out.finish));
  RETURN_IF_ERROR(ReadMasks(reserve.masks(), out.masks));
  RETURN_IF_ERROR(ReadId(reserve.prompt_class(), "reserve.prompt_class", out.prompt_class));
  RETURN_IF_ERROR(ReadId(reserve.decode_class(), "reserve.decode_class", out.decode_class));
  RETURN_IF_ERROR(CheckSize("reserve.salt", reserve.salt().size(), kMaxName));
  if (reserve.has_remaining_ms())
    RETURN_IF_ERROR(ReadRemaining(reserve.remaining_ms(), out.remaining_ms));
  out.request_id = reserve.request_id();
  out.prompt_tokens = reserve.prompt_tokens();
  out.num_pages = reserve.num_pages();
  out.priority = reserve.priority();
  out.salt = reserve.salt();
  out.lands_received = reserve.lands_received();
  if (!out.lands_received || out.sequences.size() == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "reserve.lands_received: %d sequences, only one can move", out.sequences.size()));
}

absl::Status Read(const pb::Retarget& retarget, Retarget& out) {
  RETURN_IF_ERROR(ReadId(retarget.transfer(), "retarget.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange("retarget.attempt", retarget.attempt(), 2, 1000));
  out.attempt = retarget.attempt();
  return absl::OkStatus();
}

absl::Status Read(const pb::Run& run, Run& out) {
  RETURN_IF_ERROR(ReadId(run.transfer(), "run.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange("run.attempt", run.attempt(), 1, 1000));
  RETURN_IF_ERROR(CheckSize("run.request_id", run.request_id().size(), kMaxName));
  RETURN_IF_ERROR(ReadLanding(run.landing(), out.landing));
  RETURN_IF_ERROR(CheckRange("run.prompt_tokens", run.prompt_tokens(), 1, kMaxContext));
  RETURN_IF_ERROR(ReadSequences(run.sequences(), "run.sequences", out.sequences));
  RETURN_IF_ERROR(ReadSampling(run.sampling(), out.sampling));
  RETURN_IF_ERROR(ReadFinish(run.finish(), out.finish));
  RETURN_IF_ERROR(ReadMasks(run.masks(), out.masks));
  if (run.has_prompt_logprobs()) {
    RETURN_IF_ERROR(CheckRange("run.prompt_logprobs", run.prompt_logprobs(), 0, kMaxTopLogprobs));
    out.prompt_logprobs = run.prompt_logprobs();
  }
  RETURN_IF_ERROR(ReadBitmap(run.verified_pages(), "run.verified_pages", out.verified_pages));
  RETURN_IF_ERROR(ReadId(run.prompt_class(), "run.prompt_class", out.prompt_class));
  RETURN_IF_ERROR(CheckSize("run.salt", run.salt().size(), kMaxName));
  if (run.has_remaining_ms()) RETURN_IF_ERROR(ReadRemaining(run.remaining_ms(), out.remaining_ms));
  out.attempt = run.attempt();
  out.request_id = run.request_id();
  out.prompt_tokens = run.prompt_tokens();
  out.priority = run.priority();
  out.salt = run.salt();
  return absl::OkStatus();
}

absl::Status Read(const pb::PromptChunk& chunk, PromptChunk& out) {
  RETURN_IF_ERROR(ReadId(chunk.transfer(), "prompt_chunk.transfer", out.transfer));
  RETURN_IF_ERROR(CheckRange("prompt_chunk.offset", chunk.offset(), 0, kMaxContext));
  RETURN_IF_ERROR(CheckRange("prompt_chunk.tokens", static_cast<uint64_t>(chunk.tokens_size()), 1,
                             kMaxPromptChunk));
  RETURN_IF_ERROR(ReadTokenIds(chunk.tokens(), "prompt_chunk.tokens", out.tokens));
  out.offset = chunk.offset();
  out.is_last = chunk.is_last();
  return absl::OkStatus();
}

absl::Status Read(const pb::Move& move, Move& out) {
  out.handle = SequenceHandle{move.handle()};
  if (!move.has_landing()) return absl::OkStatus();
  RETURN_IF_ERROR(ReadId(move.transfer(), "move.transfer", out.transfer));
  RETURN_IF_ERROR(ReadLanding(move.landing(), out.landing.emplace()));
  return absl::OkStatus();
}

template <typename From, typename To>
absl::Status ReadAll(const google::protobuf::RepeatedPtrField<From>& from, std::vector<To>& to) {
  to.reserve(static_cast<size_t>(from.size()));
  for (const From& item : from) RETURN_IF_ERROR(Read(item, to.emplace_back()));
  return absl::OkStatus();
}

void Write(const Reserve& reserve, pb::Reserve& out) {
  out.set_transfer(WriteId(reserve.transfer));
  out.set_request_id(reserve.request_id);
  out.set_prompt_tokens(reserve.prompt_tokens);
  out.set_num_pages(reserve.num_pages);
  WriteSequences(reserve.sequences, *out.mutable_sequences());
  WriteSampling(reserve.sampling, *out.mutable_sampling());
  WriteFinish(reserve.finish, *out.mutable_finish());
  WriteMasks(reserve.masks, *out.mutable_masks());
  out.set_prompt_class(WriteId(reserve.prompt_class));
  out.set_decode_class(WriteId(reserve.decode_class));
  out.set_priority(reserve.priority);
  if (reserve.remaining_ms) out.set_remaining_ms(*reserve.remaining_ms);
  out.set_salt(reserve.salt);
  out.set_lands_received(reserve.lands_received);
}

void Write(const Run& run, pb::Run& out) {
  out.set_transfer(WriteId(run.transfer));
  out.set_attempt(run.attempt);
  out.set_request_id(run.request_id);
  WriteLanding(run.landing, *out.mutable_landing());
  out.set_prompt_tokens(run.prompt_tokens);
  WriteSequences(run.sequences, *out.mutable_sequences());
  WriteSampling(run.sampling, *out.mutable_sampling());
  WriteFinish(run.finish, *out.mutable_finish());
  WriteMasks(run.masks, *out.mutable_masks());
  if (run.prompt_logprobs) out.set_prompt_logprobs(*run.prompt_logprobs);
  WriteBitmap(run.verified_pages, *out.mutable_verified_pages());
  out.set_prompt_class(WriteId(run.prompt_class));
  out.set_priority(run.priority);
  if (run.remaining_ms) out.set_remaining_ms(*run.remaining_ms);
  out.set_salt(run.salt);
}

void Write(const Cancel& cancel, pb::Cancel& out) {
  out.set_transfer(WriteId(cancel.transfer));
  if (cancel.sequence) out.set_sequence(*cancel.sequence);
  out.set_reason(cancel.reason);
}

void Write(const PromptChunk& chunk, pb::PromptChunk& out) {
  out.set_transfer(WriteId(chunk.transfer));
  out.set_offset(chunk.offset);
  WriteTokenIds(chunk.tokens, *out.mutable_tokens());
  out.set_is_last(chunk.is_last);
}

}  // namespace

absl::StatusOr<RouterMessage> FromProto(const pb::RouterMessage& message) {
  RouterMessage out;
  if (message.has_hello()) RETURN_IF_ERROR(Read(message.hello(), out.hello.emplace()));
  if (message.has_beat()) RETURN_IF_ERROR(ReadBeat(message.beat(), out.beat.emplace()));
  RETURN_IF_ERROR(ReadAll(message.cancels(), out.cancels));
  RETURN_IF_ERROR(ReadAll(message.reserves(), out.reserves));
  RETURN_IF_ERROR(ReadAll(message.retargets(), out.retargets));
  RETURN_IF_ERROR(ReadAll(message.runs(), out.runs));
  RETURN_IF_ERROR(ReadAll(message.prompt_chunks(), out.prompt_chunks));
  RETURN_IF_ERROR(ReadAll(message.moves(), out.moves));
  if (message.has_drain()) {
    RETURN_IF_ERROR(CheckRange("drain.remaining_ms",
                               static_cast<uint64_t>(message.drain().remaining_ms()), 0,
                               uint64_t{1} << 40));
    out.drain = Drain{message.drain().remaining_ms()};
  }
  out.drops_cache = message.drops_cache();
  return out;
}

void ToProto(const RouterMessage& message, pb::RouterMessage& out) {
  if (message.hello) {
    out.mutable_hello()->set_router_id(message.hello->router_id);
    out.mutable_hello()->set_incarnation(message.hello->incarnation.value);
    out.mutable_hello()->set_protocol_version(message.hello->protocol_version);
  }
  if (message.beat) WriteBeat(*message.beat, *out.mutable_beat());
  for (const Cancel& cancel : message.cancels) Write(cancel, *out.add_cancels());
  for (const Reserve& reserve : message.reserves) Write(reserve, *out.add_reserves());
  for (const Retarget& retarget : message.retargets) {
    pb::Retarget& item = *out.add_retargets();
    item.set_transfer(WriteId(retarget.transfer));
    item.set_attempt(retarget.attempt);
  }
  for (const Run& run : message.runs) Write(run, *out.add_runs());
  for (const PromptChunk& chunk : message.prompt_chunks) Write(chunk, *out.add_prompt_chunks());
  for (const Move& move : message.moves) {
    pb::Move& item = *out.add_moves();
    item.set_handle(move.handle.value);
    if (!move.landing) continue;
    item.set_transfer(WriteId(move.transfer));
    WriteLanding(*move.landing, *item.mutable_landing());
  }
  if (message.drain) out.mutable_drain()->set_remaining_ms(message.drain->remaining_ms);
  out.set_drops_cache(message.drops_cache);
}

}  // namespace baton::wire
