#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "proto/wire.h"
#include "router/plan/plan_config.h"
#include "router/plan/request.h"

// One request's life as plain state (contracts.md 4.2). RouterCore moves it. Planner thread.
namespace baton::router {

enum class RequestState {
  kQueued,
  kBooking,
  kPrefilling,
  kRetarget,
  kDecoding,
  kMoving,
  kRecovering,
  kDone,
  kFailed
};
std::string RequestStateName(RequestState state);

// Where the current placement stands; a recovering request walks through the same steps again.
enum class Step { kQueued, kBooking, kPrefilling, kRetarget, kDecoding, kMoving, kEnded };

// Who may compute this request's positions; fixed once a token is out (contracts.md 1.6).
struct Identity {
  WeightsId weights;
  LayoutId layout;
  ClassId prompt_class, decode_class;
};

struct Choice {
  std::vector<int32_t> received;  // with the client or on the way to it, from the prompt's end on
  bool is_finished = false;
  bool is_cancelled = false;
  absl::Time parked_since = absl::InfiniteFuture();
  bool IsOver() const { return is_finished || is_cancelled; }
};

// One transfer: a landing at a decode worker and the attempts to fill it.
struct Placement {
  TransferId transfer;
  Attempt attempt = 1;
  WorkerId decode;
  std::optional<WorkerId> prefill;      // absent: to be chosen when the landing waits for one
  std::vector<WorkerId> told;           // each gets Cancel once when the placement is given up
  std::vector<WorkerId> used_prefills;  // their jobs of this transfer are cancelled: not again
  std::vector<int> choices;             // by sequence index
  std::vector<SequenceHandle> handles;  // at `decode`, likewise
  wire::Landing landing;
  std::vector<bool> verified_pages;
  uint32_t num_pages = 0;
  uint32_t uncached_tokens = 0;   // expected work at `prefill`
  bool is_prefill_open = false;   // counted at the prefill worker
  bool is_landing_asked = false;  // counted at the decode worker, unanswered
  bool is_landing_answered = false;
  bool has_retarget_answer = false;
  bool has_first_token = false;  // from this placement's prefill
  bool is_prefilled = false;     // every block acked: the prefill worker is no longer needed
  bool had_link_fault = false;   // data loss, abort or stall on the way into this landing
  absl::Time progress_due = absl::InfiniteFuture();
  bool IsSameWorker() const { return prefill == decode; }
};

// A decoding sequence on its way from a draining decode worker to another (contracts.md 4.2,
// Moving). Until the new landing is ready, the request's own placement is the old one.
struct Moving {
  enum class Stage { kStopping, kBooking, kSending };
  Stage stage = Stage::kStopping;
  Placement target;  // chosen, with its room promised, before the sequence stops
  absl::Time due;    // then it is given up
};

// Splits the time to the first token so that the parts add up exactly.
struct StageClock {
  enum class Stage { kQueue, kBooking, kPrefill, kOver };
  Stage stage = Stage::kQueue;
  absl::Time since;        // the current stage began
  absl::Time first_token;  // emitted
  bool has_second = false;
  bool is_prefill_owed = false;  // the landing spoke first and cannot know
  StageTimes times;

  void Start(absl::Time arrival, absl::Duration parse_time, absl::Time now);
  // Ends the current stage, which gets everything since it began; no effect after the first token.
  void Enter(Stage next, absl::Time now);
  // prefill_queue becomes everything since Run that the worker did not call prefill: its queue, the
  // network and lost attempts. emit: from the wire to the emission.
  void FirstToken(uint32_t prefill_us, absl::Time received_at, absl::Time now);
  // The prefill worker's word, after the landing's: prefill is taken out of prefill_queue.
  void LatePrefill(uint32_t prefill_us);
  // transfer becomes what the worker calls neither queue nor step: transfer, network, lost
  // attempts.
  void SecondToken(uint32_t queue_us, uint32_t step_us, absl::Time now);
};

struct Request {
  RequestKey key;
  GenerateRequest spec;
  Step step = Step::kQueued;
  bool is_recovering = false;  // tokens are out, a worker was lost, no new token yet
  absl::Time lost_at = absl::InfiniteFuture();
  absl::Time step_since;
  absl::Time queued_since;
  uint64_t queue_order = 0;                      // of arrival, breaks ties
  absl::Time armed_at = absl::InfiniteFuture();  // the timer that is set
  Attempt attempts = 1;                          // started since the last new token
  int lost_bookings = 0;  // decode workers lost under it before its first token
  absl::Status last_fault = absl::OkStatus();
  std::vector<WorkerId> avoid;  // workers that failed this request: others first
  std::vector<Choice> choices;
  std::optional<Identity> identity;
  std::optional<Placement> placement;
  std::optional<Moving> moving;
  bool is_inexact = false;
  bool has_token = false;  // any choice
  int64_t next_prompt_logprob = 1;
  absl::Time report_due = absl::InfiniteFuture();    // all else is over: then it is lost
  absl::Time no_move_before = absl::InfinitePast();  // its worker refused to stop it
  uint64_t booked_bytes = 0;                         // in Admission
  int cached_tokens = 0;
  bool has_cached_tokens = false;  // said by the first prefill that finished
  StageClock clock;
  std::vector<PageName> page_names;  // of the prompt under `named_as`
  std::optional<Identity> named_as;

  uint32_t prompt_tokens() const { return static_cast<uint32_t>(spec.prompt->size()); }
  RequestState State() const;
  bool HasGrammar() const { return !spec.masks.grammar.empty(); }
  bool AllChoicesOver() const;
  bool LacksPromptLogprobs() const {
    return spec.prompt_logprobs && next_prompt_logprob < int64_t{prompt_tokens()};
  }
  uint32_t OpenChoices() const;
  // What a decode worker will book for it: an estimate of the worker's own rule (contracts.md 6).
  uint32_t PagesToBook(uint32_t headroom_tokens) const;
  // Milliseconds to the deadline, for the wire; absent: none.
  std::optional<int64_t> RemainingMs(absl::Time now) const;
  // The deadline that holds now: the first token's until it is out, and the total one.
  absl::Time Deadline() const;
  // When something is to be looked at even if nothing happens.
  absl::Time Due(const PlanConfig& config) const;
};

// What a batch of tokens of one choice was.
struct TokenVerdict {
  int64_t first_new = 0;  // position of the first token kept
  int num_new = 0;        // left in `tokens`
  int num_repeats = 0;
  int num_mismatches = 0;
  bool has_gap = false;  // starts beyond the next position; nothing was taken
};
// The position check: drops repeats from `tokens`, records the rest as received.
TokenVerdict TakeTokens(Choice& choice, uint32_t prompt_tokens, int64_t first_position,
                        std::vector<TokenRecord>& tokens);

}  // namespace baton::router
