#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/ids.h"
#include "common/sampling_spec.h"

// The session's messages as plain values, and the only conversions to and from protobuf
// (contracts.md 5). FromProto validates: inside the programs a value is valid by type. Messages are
// batches; the fields are applied in the order below.
namespace baton::pb {
class RouterMessage;
class WorkerMessage;
}  // namespace baton::pb

namespace baton::wire {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kMaxMessageBytes = 1'000'000;
inline constexpr int kMaxPromptChunk = 65'536;    // token ids
inline constexpr int kMaxCacheNames = 60'000;     // names in one part
inline constexpr int kMaxPromptLogprobs = 4'096;  // positions in one message

// Where a transfer lands (contracts.md 4.3).
struct Landing {
  Attempt attempt = 1;
  Secret secret;
  Incarnation incarnation;
  std::string kv_address;
  uint32_t num_ranks = 1;
  uint32_t window = 64;
  bool operator==(const Landing&) const = default;
};

struct RouterHello {
  std::string router_id;
  Incarnation incarnation;
  uint32_t protocol_version = kProtocolVersion;
  bool operator==(const RouterHello&) const = default;
};
struct Beat {  // a worker's also carries the engine's step counter and the microseconds since it
               // moved
  uint64_t number = 0;
  uint64_t echo = 0;
  uint64_t engine_steps = 0;
  uint64_t since_step_us = 0;
  bool is_wedged = false;
  bool operator==(const Beat&) const = default;
};
struct Cancel {
  TransferId transfer;
  std::optional<uint32_t> sequence;  // index; absent: all
  std::string reason;
  bool operator==(const Cancel&) const = default;
};
struct SequenceSpec {
  SequenceHandle handle;
  uint32_t choice = 0;
  std::vector<int32_t> received;  // tokens already with the client, from position prompt_tokens on
  bool operator==(const SequenceSpec&) const = default;
};
struct Reserve {
  TransferId transfer;
  std::string request_id;
  uint32_t prompt_tokens = 0;
  uint32_t num_pages = 0;
  std::vector<SequenceSpec> sequences;
  SamplingSpec sampling;
  FinishRules finish;
  MaskRules masks;
  ClassId prompt_class, decode_class;
  int32_t priority = 0;
  std::optional<int64_t> remaining_ms;
  std::string salt;
  // The target of a Move: pages and tail cover `received` of the one sequence too, num_pages counts
  // them, and the tail's first token is the one after it (contracts.md 4.2, Moving). Otherwise
  // received tokens are replayed.
  bool lands_received = false;
  bool operator==(const Reserve&) const = default;
};
struct Retarget {
  TransferId transfer;
  Attempt attempt = 0;
  bool operator==(const Retarget&) const = default;
};
struct Run {
  TransferId transfer;
  Attempt attempt = 1;
  std::string request_id;
  Landing landing;
  uint32_t prompt_tokens = 0;
  std::vector<SequenceSpec> sequences;  // handles unused at P
  SamplingSpec sampling;
  FinishRules finish;
  MaskRules masks;
  std::optional<uint32_t> prompt_logprobs;  // count of best entries
  std::vector<bool> verified_pages;         // empty: none
  ClassId prompt_class;
  int32_t priority = 0;
  std::optional<int64_t> remaining_ms;
  std::string salt;
  bool operator==(const Run&) const = default;
};
struct PromptChunk {
  TransferId transfer;
  uint32_t offset = 0;
  std::vector<int32_t> tokens;
  bool is_last = false;
  bool operator==(const PromptChunk&) const = default;
};
struct Move {
  SequenceHandle handle;
  TransferId transfer;             // at D'; zero without a landing
  std::optional<Landing> landing;  // at D'; none: stop at the next step boundary, keep everything
  bool operator==(const Move&) const = default;
};
struct Drain {
  int64_t remaining_ms = 0;
  bool operator==(const Drain&) const = default;
};

struct RouterMessage {
  std::optional<RouterHello> hello;  // first message only
  std::optional<Beat> beat;
  std::vector<Cancel> cancels;
  std::vector<Reserve> reserves;
  std::vector<Retarget> retargets;
  std::vector<Run> runs;
  std::vector<PromptChunk> prompt_chunks;
  std::vector<Move> moves;
  std::optional<Drain> drain;
  bool drops_cache = false;  // forget every cached page and boundary tail
  bool operator==(const RouterMessage&) const = default;
};

struct WorkerHello {
  std::string worker_id;
  Incarnation incarnation;
  uint32_t protocol_version = kProtocolVersion;
  bool serves_prefill = false;
  bool serves_decode = false;
  WeightsId weights;
  LayoutId layout;
  ClassId prompt_class, decode_class;
  std::string kv_address;
  std::string kv_transports;
  uint32_t num_ranks = 1;
  uint32_t pages = 0;
  uint32_t max_sequences = 0;
  uint32_t max_context = 0;
  std::string build_version;
  bool operator==(const WorkerHello&) const = default;
};
struct Reserved {
  TransferId transfer;
  Landing landing;
  uint32_t booking_us = 0;  // D's time from Reserve to the answer
  bool operator==(const Reserved&) const = default;
};
enum class Stage : uint8_t { kReserve = 1, kRun = 2, kRetarget = 3, kMove = 4 };
struct Refused {
  TransferId transfer;
  Stage stage = Stage::kReserve;
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  std::string message;
  uint32_t retry_after_ms = 0;
  bool lacks_grammar_room = false;  // only that: requests without a grammar may come
  bool operator==(const Refused&) const = default;
};
struct Retargeted {
  TransferId transfer;
  Attempt attempt = 0;
  std::vector<bool> verified_pages;
  bool operator==(const Retargeted&) const = default;
};
struct FirstToken {
  TransferId transfer;
  Attempt attempt = 0;
  std::vector<TokenRecord> tokens;  // per sequence
  uint32_t cached_tokens = 0;
  uint32_t queue_us = 0;    // P: from Run complete to the first chunk
  uint32_t prefill_us = 0;  // P: from the first chunk to this token
  bool operator==(const FirstToken&) const = default;
};
struct PromptLogprobs {
  TransferId transfer;
  uint32_t first_position = 1;
  std::vector<TokenRecord>
      tokens;  // the prompt token at each position, its logprob, the best entries
  bool operator==(const PromptLogprobs&) const = default;
};
struct Progress {
  TransferId transfer;
  Attempt attempt = 0;
  uint32_t computed_tokens = 0;
  uint32_t acked_blocks = 0;
  bool operator==(const Progress&) const = default;
};
struct Prefilled {
  TransferId transfer;
  Attempt attempt = 0;
  bool operator==(const Prefilled&) const = default;
};
struct Landed {
  TransferId transfer;
  Attempt attempt = 0;
  std::vector<TokenRecord> tokens;  // first tokens, as in FirstToken
  uint32_t transfer_us = 0;         // D: from the first announce to the last verified block
  bool operator==(const Landed&) const = default;
};
// One sequence's new tokens of one step.
struct SequenceStep {
  SequenceHandle handle;
  uint32_t first_position = 0;
  std::vector<TokenRecord> tokens;
  uint32_t queue_us = 0;  // with the first tokens only: Landed to the first step's start
  uint32_t step_us = 0;   // likewise: the first step
  bool operator==(const SequenceStep&) const = default;
};
struct Tokens {
  uint64_t step = 0;
  std::vector<SequenceStep> sequences;  // columns on the wire
  bool operator==(const Tokens&) const = default;
};
struct Finished {
  SequenceHandle handle;
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token = -1;  // -1: none
  bool operator==(const Finished&) const = default;
};
struct Failed {  // a transfer's, or one sequence's
  TransferId transfer;
  std::optional<SequenceHandle> handle;
  absl::StatusCode code = absl::StatusCode::kInternal;
  std::string message;
  bool operator==(const Failed&) const = default;
};
struct Load {
  uint32_t free_pages = 0, booked_pages = 0, leased_pages = 0, cached_pages = 0,
           quarantined_pages = 0;
  uint32_t running = 0, waiting = 0;
  uint64_t queued_prompt_tokens = 0;
  uint32_t prefill_tokens_per_s = 0;
  uint32_t last_step_us = 0;
  uint32_t host_pages = 0;
  bool is_draining = false;
  bool operator==(const Load&) const = default;
};
struct CacheEvents {
  uint64_t generation = 0;
  bool is_snapshot = false;
  uint32_t part = 0;
  bool is_last = false;
  std::vector<PageName> added, removed;
  bool operator==(const CacheEvents&) const = default;
};

struct WorkerMessage {
  std::optional<WorkerHello> hello;  // first message only
  std::optional<Beat> beat;
  std::vector<Reserved> reserved;
  std::vector<Refused> refused;
  std::vector<Retargeted> retargeted;
  std::vector<FirstToken> first_tokens;
  std::vector<PromptLogprobs> prompt_logprobs;
  std::vector<Progress> progress;
  std::vector<Prefilled> prefilled;
  std::vector<Landed> landed;
  std::optional<Tokens> tokens;
  std::vector<Finished> finished;
  std::vector<Failed> failed;
  std::vector<SequenceHandle> parked, resumed;
  std::optional<Load> load;
  std::vector<CacheEvents> cache_events;
  bool operator==(const WorkerMessage&) const = default;
};

// Conversions. FromProto errors are kInvalidArgument naming the field, the value and the limit;
// ToProto cannot fail.
absl::StatusOr<RouterMessage> FromProto(const pb::RouterMessage& message);
absl::StatusOr<WorkerMessage> FromProto(const pb::WorkerMessage& message);
void ToProto(const RouterMessage& message, pb::RouterMessage& out);
void ToProto(const WorkerMessage& message, pb::WorkerMessage& out);

}  // namespace baton::wire
