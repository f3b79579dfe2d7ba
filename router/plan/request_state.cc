#include "router/plan/request_state.h"

#include <algorithm>
#include <utility>

namespace baton::router {

namespace {

constexpr int64_t kDraftRoom = 8;  // 2 (k + 1) at k = 3 (contracts.md 6)

}  // namespace

std::string RequestStateName(RequestState state) {
  switch (state) {
    case RequestState::kQueued:
      return "queued";
    case RequestState::kBooking:
      return "booking";
    case RequestState::kPrefilling:
      return "prefilling";
    case RequestState::kRetarget:
      return "retarget";
    case RequestState::kDecoding:
      return "decoding";
    case RequestState::kMoving:
      return "moving";
    case RequestState::kRecovering:
      return "recovering";
    case RequestState::kDone:
      return "done";
    case RequestState::kFailed:
      return "failed";
  }
  return "unknown";
}

void StageClock::Start(absl::Time arrival, absl::Duration parse_time, absl::Time now) {
  const absl::Time start = std::min(arrival, now);
  times.parse = std::clamp(parse_time, absl::ZeroDuration(), now - start);
  since = start + times.parse;
  stage = Stage::kQueue;
}

void StageClock::Enter(Stage next, absl::Time now) {
  const absl::Duration spent = now - since;
  switch (stage) {
    case Stage::kQueue:
      times.queue += spent;
      break;
    case Stage::kBooking:
      times.booking += spent;
      break;
    case Stage::kPrefill:
      times.prefill_queue += spent;
      break;
    case Stage::kOver:
      return;
  }
  stage = next;
  since = now;
}

void StageClock::FirstToken(uint32_t prefill_us, absl::Time received_at, absl::Time now) {
  if (stage == Stage::kOver) return;
  const absl::Time seen = std::clamp(received_at, std::min(since, now), now);
  Enter(Stage::kPrefill, seen);
  times.prefill = std::min(absl::Microseconds(prefill_us), times.prefill_queue);
  times.prefill_queue -= times.prefill;
  times.emit = now - seen;
  stage = Stage::kOver;
  first_token = now;
}

void StageClock::LatePrefill(uint32_t prefill_us) {
  if (!std::exchange(is_prefill_owed, false)) return;
  times.prefill = std::min(absl::Microseconds(prefill_us), times.prefill_queue);
  times.prefill_queue -= times.prefill;
}

void StageClock::SecondToken(uint32_t queue_us, uint32_t step_us, absl::Time now) {
  if (has_second || stage != Stage::kOver) return;
  has_second = true;
  const absl::Duration wait = now - first_token;
  times.first_step = std::min(absl::Microseconds(step_us), wait);
  times.decode_queue = std::min(absl::Microseconds(queue_us), wait - times.first_step);
  times.transfer = wait - times.first_step - times.decode_queue;
}

RequestState Request::State() const {
  switch (step) {
    case Step::kQueued:
      return is_recovering ? RequestState::kRecovering : RequestState::kQueued;
    case Step::kBooking:
      return is_recovering ? RequestState::kRecovering : RequestState::kBooking;
    case Step::kPrefilling:
      return is_recovering ? RequestState::kRecovering : RequestState::kPrefilling;
    case Step::kRetarget:
      return RequestState::kRetarget;
    case Step::kDecoding:
      return is_recovering ? RequestState::kRecovering : RequestState::kDecoding;
    case Step::kMoving:
      return RequestState::kMoving;
    case Step::kEnded:
      return AllChoicesOver() ? RequestState::kDone : RequestState::kFailed;
  }
  return RequestState::kFailed;
}

bool Request::AllChoicesOver() const {
  return std::all_of(choices.begin(), choices.end(), [](const Choice& c) { return c.IsOver(); });
}

uint32_t Request::OpenChoices() const {
  return static_cast<uint32_t>(
      std::count_if(choices.begin(), choices.end(), [](const Choice& c) { return !c.IsOver(); }));
}

uint32_t Request::PagesToBook(uint32_t headroom_tokens) const {
  const int64_t prompt = prompt_tokens();
  const int64_t shared = prompt / kPageTokens;  // full pages, one lease for all choices
  int64_t pages = shared;
  for (const Choice& choice : choices) {
    if (choice.IsOver()) continue;
    const int64_t done = static_cast<int64_t>(choice.received.size());
    const int64_t ahead = std::min<int64_t>(spec.finish.max_tokens + kDraftRoom, headroom_tokens);
    const int64_t tokens = prompt + std::max(ahead, done + kDraftRoom);
    pages += (tokens + kPageTokens - 1) / kPageTokens - shared;
  }
  return static_cast<uint32_t>(pages);
}

absl::Time Request::Deadline() const {
  return has_token ? spec.total_deadline : std::min(spec.total_deadline, spec.first_token_deadline);
}

// What the wire takes (proto/wire): 34 years.
constexpr int64_t kMaxRemainingMs = int64_t{1} << 40;

std::optional<int64_t> Request::RemainingMs(absl::Time now) const {
  const absl::Time deadline = Deadline();
  if (deadline == absl::InfiniteFuture()) return std::nullopt;
  return std::clamp<int64_t>(absl::ToInt64Milliseconds(deadline - now), 0, kMaxRemainingMs);
}

absl::Time Request::Due(const PlanConfig& config) const {
  absl::Time due = Deadline();
  if (is_recovering) due = std::min(due, lost_at + config.recovery_wait);
  const bool waits_for_answer = step == Step::kBooking || (step == Step::kRetarget && placement &&
                                                           !placement->has_retarget_answer);
  if (waits_for_answer) due = std::min(due, step_since + config.answer_timeout);
  if (step == Step::kPrefilling && placement) due = std::min(due, placement->progress_due);
  if (step == Step::kMoving && moving) due = std::min(due, moving->due);
  if (step != Step::kDecoding) return due;
  due = std::min(due, report_due);
  for (const Choice& choice : choices)
    if (!choice.IsOver()) due = std::min(due, choice.parked_since + config.max_parked);
  return due;
}

TokenVerdict TakeTokens(Choice& choice, uint32_t prompt_tokens, int64_t first_position,
                        std::vector<TokenRecord>& tokens) {
  const int64_t next = int64_t{prompt_tokens} + static_cast<int64_t>(choice.received.size());
  TokenVerdict verdict{.first_new = next};
  if (first_position > next || first_position < int64_t{prompt_tokens}) {
    verdict.has_gap = true;
    return verdict;
  }
  const int64_t count = static_cast<int64_t>(tokens.size());
  verdict.num_repeats = static_cast<int>(std::min(next - first_position, count));
  for (int i = 0; i < verdict.num_repeats; ++i) {
    const size_t index = static_cast<size_t>(first_position - prompt_tokens + i);
    if (choice.received[index] != tokens[static_cast<size_t>(i)].token) ++verdict.num_mismatches;
  }
  if (verdict.num_repeats > 0) tokens.erase(tokens.begin(), tokens.begin() + verdict.num_repeats);
  verdict.num_new = static_cast<int>(tokens.size());
  for (const TokenRecord& record : tokens) choice.received.push_back(record.token);
  return verdict;
}

}  // namespace baton::router
