// RouterCore: the tokens of prefill and decode workers (contracts.md 4.2: every position once).
#include <utility>

#include "absl/strings/str_format.h"

#include "router/plan/core.h"

namespace baton::router {
namespace {

// One that moves still speaks through its old worker.
bool IsDecodingAt(const Request& request, WorkerId worker) {
  const bool is_decoding = request.step == Step::kDecoding || request.step == Step::kMoving;
  return is_decoding && request.placement->decode == worker;
}

int64_t NextPosition(const Request& request, int choice) {
  const auto& received = request.choices[static_cast<size_t>(choice)].received;
  return int64_t{request.prompt_tokens()} + static_cast<int64_t>(received.size());
}

}  // namespace

// False if the request lost its placement or ended over it.
bool RouterCore::AcceptTokens(Request& request, int choice, int64_t position,
                              std::vector<TokenRecord>& tokens) {
  Choice& state = request.choices[static_cast<size_t>(choice)];
  if (state.IsOver() || tokens.empty()) return true;
  const TokenVerdict verdict = TakeTokens(state, request.prompt_tokens(), position, tokens);
  facts_.repeats_dropped += static_cast<uint64_t>(verdict.num_repeats);
  facts_.repeat_mismatches += static_cast<uint64_t>(verdict.num_mismatches);
  if (verdict.has_gap) {
    ++facts_.position_gaps;
    LosePlacement(request, true,
                  absl::InternalError(absl::StrFormat("choice %d goes on at position %d, not %d",
                                                      choice, position, verdict.first_new)));
    return false;
  }
  if (verdict.num_new == 0) return true;
  request.has_token = true;
  if (request.step == Step::kDecoding || request.step == Step::kMoving) {
    request.is_recovering = false;
    request.lost_at = absl::InfiniteFuture();
    request.attempts = 1;
  }
  facts_.tokens_emitted += static_cast<uint64_t>(verdict.num_new);
  Emit(request,
       TokensEmitted{
           .choice = choice, .first_position = verdict.first_new, .tokens = std::move(tokens)});
  return true;
}

// One token per sequence of the placement, at the prompt's end. False as above, or on a wrong
// count.
bool RouterCore::AcceptFirstTokens(Request& request, std::vector<TokenRecord>& tokens) {
  const std::vector<int> choices = request.placement->choices;
  if (tokens.size() != choices.size()) return false;
  std::vector<TokenRecord> one;
  for (size_t i = 0; i < choices.size(); ++i) {
    one.clear();
    one.push_back(std::move(tokens[i]));
    if (!AcceptTokens(request, choices[i], request.prompt_tokens(), one)) return false;
  }
  return true;
}

void RouterCore::OnItem(WorkerRecord& worker, wire::FirstToken& item) {
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr) return;
  Placement& placement = *request->placement;
  if (placement.prefill != worker.id || placement.attempt != item.attempt) return;
  if (request->step != Step::kPrefilling && request->step != Step::kDecoding &&
      request->step != Step::kMoving)
    return;
  if (item.tokens.size() != placement.choices.size()) {
    if (request->step != Step::kPrefilling) return;
    request->avoid.push_back(worker.id);
    return BeginRetarget(
        *request, true,
        absl::InternalError(absl::StrFormat("worker %s sent %d first tokens for %d sequences",
                                            worker.hello.worker_id, item.tokens.size(),
                                            placement.choices.size())));
  }
  if (!request->has_token) request->clock.FirstToken(item.prefill_us, received_at_, now_);
  request->clock.LatePrefill(item.prefill_us);
  if (!request->has_cached_tokens) {  // the landing's word may have come first
    request->has_cached_tokens = true;
    request->cached_tokens = static_cast<int>(item.cached_tokens);
    facts_.cached_tokens += item.cached_tokens;
  }
  placement.has_first_token = true;
  ClosePrefill(placement);
  should_schedule_ = true;
  if (request->step == Step::kPrefilling && !placement.is_prefilled) NoteProgress(*request, worker);
  if (!AcceptFirstTokens(*request, item.tokens)) return;
  if (request->LacksPromptLogprobs()) return LoseReport(*request, worker, request->prompt_tokens());
  EndIfComplete(*request);
  if (request->step != Step::kEnded) Arm(*request);
}

// It has a hole before `position`.
void RouterCore::LoseReport(Request& request, const WorkerRecord& worker, int64_t position) {
  request.avoid.push_back(worker.id);
  LosePlacement(request, true,
                absl::UnavailableError(absl::StrFormat(
                    "worker %s went on at position %d in its report on the prompt, not %d",
                    worker.hello.worker_id, position, request.next_prompt_logprob)));
}

void RouterCore::OnItem(WorkerRecord& worker, wire::PromptLogprobs& item) {
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->placement->prefill != worker.id) return;
  if (request->step == Step::kPrefilling && !request->placement->is_prefilled)
    NoteProgress(*request, worker);
  if (!request->LacksPromptLogprobs()) return;
  const int64_t skip = request->next_prompt_logprob - int64_t{item.first_position};
  if (skip < 0) return LoseReport(*request, worker, item.first_position);
  if (skip >= static_cast<int64_t>(item.tokens.size())) return;
  item.tokens.erase(item.tokens.begin(), item.tokens.begin() + skip);
  const int64_t left = int64_t{request->prompt_tokens()} - request->next_prompt_logprob;
  if (static_cast<int64_t>(item.tokens.size()) > left)
    item.tokens.resize(static_cast<size_t>(left));
  const int64_t first = request->next_prompt_logprob;
  request->next_prompt_logprob += static_cast<int64_t>(item.tokens.size());
  Emit(*request, PromptLogprobsEmitted{.first_position = first, .tokens = std::move(item.tokens)});
  EndIfComplete(*request);
}

// When all choices are over. The report on the prompt may still be on its way: it comes from the
// prefill worker, before its first token, and the end from the decode worker.
void RouterCore::EndIfComplete(Request& request) {
  if (!request.AllChoicesOver()) return;
  const bool is_coming =
      request.placement && request.placement->prefill && !request.placement->has_first_token;
  if (request.LacksPromptLogprobs() && is_coming) {
    request.report_due = now_ + config_.answer_timeout;
    return Arm(request);
  }
  if (!request.LacksPromptLogprobs()) return End(request, absl::OkStatus());
  End(request, absl::UnavailableError(absl::StrFormat(
                   "the prefill worker's report on the prompt was lost at position %d of %d",
                   request.next_prompt_logprob, request.prompt_tokens())));
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Landed& item) {
  if (Request* moving = FindMove(item.transfer)) {
    if (moving->moving->target.decode == worker.id) OnMoveLanded(*moving, item);
    return;
  }
  Request* request = FindTransfer(item.transfer);
  if (request == nullptr || request->placement->decode != worker.id) return;
  if (request->step != Step::kPrefilling && request->step != Step::kRetarget) return;
  Placement& placement = *request->placement;
  if (item.tokens.size() != placement.choices.size()) {
    request->avoid.push_back(worker.id);
    return LosePlacement(
        *request, true,
        absl::InternalError(absl::StrFormat("worker %s landed %d first tokens for %d sequences",
                                            worker.hello.worker_id, item.tokens.size(),
                                            placement.choices.size())));
  }
  if (request->LacksPromptLogprobs() && !placement.prefill)
    return LosePlacement(*request, false,
                         absl::UnavailableError("the report on the prompt was lost"));
  waiting_landings_.erase(request->key);
  ClosePrefill(placement);
  placement.is_prefilled = true;
  placement.progress_due = absl::InfiniteFuture();
  if (!request->has_token) {
    request->clock.FirstToken(0, received_at_, now_);
    request->clock.is_prefill_owed = true;
  }
  should_schedule_ = true;
  if (!AcceptFirstTokens(*request, item.tokens)) return;
  EnterStep(*request, Step::kDecoding);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::SequenceStep& item) {
  const WorkerRecord::Sequence* sequence = FindSequence(worker, item.handle);
  if (sequence == nullptr) return;
  Request& request = *sequence->request;
  if (!IsDecodingAt(request, worker.id)) return;
  const int64_t end = int64_t{item.first_position} + static_cast<int64_t>(item.tokens.size());
  if (end > int64_t{request.prompt_tokens()} + 1)
    request.clock.SecondToken(item.queue_us, item.step_us, now_);
  // Parked for want of pages, it was no stop.
  const bool is_running = request.step == Step::kMoving && request.placement->decode == worker.id &&
                          request.moving->stage != Moving::Stage::kStopping &&
                          end > NextPosition(request, sequence->choice);
  if (is_running) StayPut(request, "it runs on");
  AcceptTokens(request, sequence->choice, item.first_position, item.tokens);
}

void RouterCore::OnItem(WorkerRecord& worker, wire::Finished& item) {
  const WorkerRecord::Sequence* sequence = FindSequence(worker, item.handle);
  if (sequence == nullptr) return;
  Request& request = *sequence->request;
  if (!IsDecodingAt(request, worker.id)) return;
  FinishChoice(request, sequence->choice, item.reason, item.stop_token);
  worker.sequences.erase(item.handle);
  EndIfComplete(request);
}

}  // namespace baton::router
