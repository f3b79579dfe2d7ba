// RouterCore: where a request runs, and how a placement begins, moves on and is given up.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/plan/core.h"

namespace baton::router {
namespace {

// Queued requests looked at behind one that no worker can serve.
constexpr int kMaxSkipped = 64;

std::vector<wire::SequenceSpec> SequencesOf(const Request& request, const Placement& placement) {
  std::vector<wire::SequenceSpec> sequences;
  for (size_t i = 0; i < placement.choices.size(); ++i) {
    const int choice = placement.choices[i];
    sequences.push_back({.handle = placement.handles[i],
                         .choice = static_cast<uint32_t>(choice),
                         .received = request.choices[static_cast<size_t>(choice)].received});
  }
  return sequences;
}

wire::Run MakeRun(const Request& request, absl::Time now) {
  wire::Run run;
  run.transfer = request.placement->transfer;
  run.attempt = request.placement->attempt;
  run.request_id = request.spec.request_id;
  run.landing = request.placement->landing;
  run.landing.attempt = run.attempt;
  run.prompt_tokens = request.prompt_tokens();
  run.sequences = SequencesOf(request, *request.placement);
  run.sampling = request.spec.sampling;
  run.finish = request.spec.finish;
  run.masks = request.spec.masks;
  if (request.LacksPromptLogprobs()) run.prompt_logprobs = request.spec.prompt_logprobs;
  run.verified_pages = request.placement->verified_pages;
  run.prompt_class = request.identity->prompt_class;
  run.priority = request.spec.priority;
  run.remaining_ms = request.RemainingMs(now);
  run.salt = request.spec.salt;
  return run;
}

}  // namespace

void RouterCore::Schedule() {
  should_schedule_ = false;
  std::vector<Request*> waiting;
  for (const auto& [key, request] : waiting_landings_) waiting.push_back(request);
  for (Request* request : waiting) RunWaiting(*request);

  bool is_decode_blocked = false;
  bool are_grammars_held_back = false;
  int skipped = 0;
  for (auto it = admission_.queue().begin(); it != admission_.queue().end();) {
    Request& request = **(it++);  // leaves the queue when placed
    if (are_grammars_held_back && request.HasGrammar()) continue;
    const Placed placed = TryPlace(request);
    if (placed == Placed::kYes) continue;
    if (placed == Placed::kNoGrammarRoom) {
      // Its grammar is all that keeps it from a worker; those without one do not wait for its room.
      are_grammars_held_back = true;
      continue;
    }
    is_decode_blocked = placed == Placed::kNoDecodeRoom;
    // Strictly by deadline: smaller requests behind a waiting one do not overtake it for ever.
    if (placed != Placed::kNoWorker || ++skipped > kMaxSkipped) break;
  }
  decode_blocked_since_ =
      is_decode_blocked ? std::min(decode_blocked_since_, now_) : absl::InfiniteFuture();
  MoveFromDraining();
}

RouterCore::Placed RouterCore::TryPlace(Request& request) {
  Placed why = Placed::kNoWorker;
  const std::optional<PairChoice> pair = ChoosePair(request, why);
  if (pair) {
    Book(request, *pair);
    return Placed::kYes;
  }
  if (why != Placed::kNoDecodeRoom || CanEverFit(request)) return why;
  const std::string message = absl::StrFormat(
      "n=%d sequences of %d prompt tokens need %d pages: more than any decode worker takes",
      request.OpenChoices(), request.prompt_tokens(), PagesFor(request));
  End(request,
      request.has_token ? absl::UnavailableError(message) : absl::InvalidArgumentError(message));
  return Placed::kYes;
}

void RouterCore::Book(Request& request, const PairChoice& pair) {
  admission_.Remove(request);
  WorkerRecord& decode = *workers_.Find(pair.decode);
  WorkerRecord& prefill = *workers_.Find(pair.prefill);
  const Identity identity{.weights = decode.hello.weights,
                          .layout = decode.hello.layout,
                          .prompt_class = prefill.hello.prompt_class,
                          .decode_class = decode.hello.decode_class};
  const bool is_exact =
      !request.has_token || (identity.prompt_class == request.identity->prompt_class &&
                             identity.decode_class == request.identity->decode_class);
  if (!is_exact && !request.is_inexact) {
    request.is_inexact = true;
    ++facts_.inexact_continuations;
    Emit(request, ContinuationInexact{});
  }
  request.identity = identity;
  if (pair.is_fallback) ++facts_.prefill_on_decode;

  Placement& placement = request.placement.emplace();
  placement.transfer = rng_.DrawBytes<TransferId>();
  placement.decode = pair.decode;
  placement.num_pages = PagesFor(request);
  for (int i = 0; i < request.spec.num_choices; ++i)
    if (!request.choices[static_cast<size_t>(i)].IsOver()) AddSequence(request, placement, i);
  transfers_.emplace(placement.transfer, &request);
  OpenLanding(placement, decode);
  OpenPrefill(placement, prefill, pair.uncached_tokens);
  SendReserve(request, placement);
  SendPrompt(request, placement, pair.decode);
  request.clock.Enter(StageClock::Stage::kBooking, now_);
  EnterStep(request, Step::kBooking);
}

void RouterCore::RunAt(Request& request, WorkerRecord& prefill, uint32_t uncached_tokens) {
  Placement& placement = *request.placement;
  if (!placement.is_prefill_open) OpenPrefill(placement, prefill, uncached_tokens);
  waiting_landings_.erase(request.key);
  Tell(placement, prefill.id, MakeRun(request, now_));
  SendPrompt(request, placement, prefill.id);
  request.clock.Enter(StageClock::Stage::kPrefill, now_);
  NoteProgress(request, prefill);
  // Its queue comes before its first chunk.
  const double ahead = static_cast<double>(prefill.QueuedTokens()) / prefill.PrefillRate(config_);
  placement.progress_due += absl::Seconds(config_.progress_factor * ahead);
  EnterStep(request, Step::kPrefilling);
}

void RouterCore::WaitForPrefill(Request& request) {
  request.placement->prefill.reset();
  request.placement->has_retarget_answer = true;
  waiting_landings_.emplace(request.key, &request);
  EnterStep(request, Step::kRetarget);
  if (uncovered_since_ != absl::InfiniteFuture()) ArmCore(now_ + config_.no_worker_grace);
  should_schedule_ = true;
}

// A landing that waits for a prefill worker of its class; the decode worker itself if there is
// none.
void RouterCore::RunWaiting(Request& request) {
  Placement& placement = *request.placement;
  WorkerRecord& decode = *workers_.Find(placement.decode);
  const Identity& identity = *request.identity;
  std::vector<const WorkerRecord*> open;
  bool has_candidate = false;  // busy ones too
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.IsReady() || !worker.IsPrefillOnly()) continue;
    if (worker.hello.weights != identity.weights || worker.hello.layout != identity.layout)
      continue;
    if (worker.hello.prompt_class != identity.prompt_class) continue;
    const auto& used = placement.used_prefills;
    if (std::find(used.begin(), used.end(), id) != used.end()) continue;
    has_candidate = true;
    if (request.HasGrammar() && !worker.HasGrammarRoom(now_)) continue;
    if (worker.HasPrefillSlot(now_, config_)) open.push_back(&worker);
  }
  if (!open.empty()) {
    KeepPreferred(request, open);
    const PrefillChoice choice = PickPrefill(request, open);
    return RunAt(request, *workers_.Find(open[choice.index]->id), choice.uncached_tokens);
  }
  if (has_candidate) return;
  if (decode.IsReady() && decode.hello.serves_prefill &&
      decode.hello.prompt_class == identity.prompt_class) {
    ++facts_.prefill_on_decode;
    return RunAt(request, decode, std::max(1u, request.prompt_tokens()));
  }
  // A new transfer may go where this one may not: to a prefill worker it has used, another pair, a
  // mixed worker.
  Placed why = Placed::kNoWorker;
  if (ChoosePair(request, why) || why != Placed::kNoWorker)
    LosePlacement(request, false,
                  absl::UnavailableError("no other prefill worker for this landing"));
}

void RouterCore::BeginRetarget(Request& request, bool is_fault, const absl::Status& why) {
  Placement& placement = *request.placement;
  if (!placement.prefill || placement.IsSameWorker()) return LosePlacement(request, is_fault, why);
  if (is_fault && !CountFault(request, why)) return;
  ++facts_.retargets;
  const WorkerId old = *placement.prefill;
  ClosePrefill(placement);
  placement.prefill.reset();
  placement.has_retarget_answer = false;
  placement.has_first_token = false;
  placement.progress_due = absl::InfiniteFuture();
  ++placement.attempt;
  Tell(placement, placement.decode,
       wire::Retarget{.transfer = placement.transfer, .attempt = placement.attempt});
  if (std::find(placement.told.begin(), placement.told.end(), old) != placement.told.end()) {
    placement.used_prefills.push_back(old);
    CancelAt(placement, old, std::string(why.message()));
  }
  if (request.has_token) MarkLost(request);
  EnterStep(request, Step::kRetarget);
}

// Nothing gets from the prefill worker into the landing: another prefill worker first; if that does
// not help, the landing is at fault (its memory may be held by a receive that does not end).
void RouterCore::BlameLink(Request& request, const absl::Status& why) {
  Placement& placement = *request.placement;
  if (placement.prefill) request.avoid.push_back(*placement.prefill);
  if (!std::exchange(placement.had_link_fault, true)) return BeginRetarget(request, true, why);
  request.avoid.push_back(placement.decode);
  LosePlacement(request, true, why);
}

// False if the request had its last attempt and has ended.
bool RouterCore::CountFault(Request& request, const absl::Status& why) {
  if (++request.attempts <= config_.max_attempts) return true;
  const std::string text =
      absl::StrFormat("gave up after %d attempts: %s", config_.max_attempts, why.message());
  End(request, absl::Status(why.code(), text));
  return false;
}

void RouterCore::LosePlacement(Request& request, bool is_fault, const absl::Status& why) {
  const bool has_landed = request.step == Step::kDecoding || request.step == Step::kMoving;
  ++(has_landed ? facts_.recoveries : facts_.rebookings);
  if (request.moving) ++facts_.moves.recovered;
  DropPlacement(request, std::string(why.message()));
  request.clock.is_prefill_owed = false;
  if (is_fault && !CountFault(request, why)) return;
  if (request.has_token) {
    MarkLost(request);
  } else {
    request.identity.reset();
  }
  // What was sent may be all there is: only its Finished was lost.
  const FinishRules& finish = request.spec.finish;
  for (int i = 0; i < request.spec.num_choices; ++i) {
    const Choice& choice = request.choices[static_cast<size_t>(i)];
    if (choice.IsOver() || choice.received.empty()) continue;
    const int32_t last = choice.received.back();
    const auto& stops = finish.stop_tokens;
    if (std::find(stops.begin(), stops.end(), last) != stops.end())
      FinishChoice(request, i, FinishReason::kStop, last);
    else if (static_cast<int64_t>(choice.received.size()) >= finish.max_tokens)
      FinishChoice(request, i, FinishReason::kLength, -1);
  }
  if (request.AllChoicesOver()) return EndIfComplete(request);
  request.clock.Enter(StageClock::Stage::kQueue, now_);
  request.queued_since = now_;
  admission_.Push(request);
  if (uncovered_since_ != absl::InfiniteFuture()) ArmCore(now_ + config_.no_worker_grace);
  EnterStep(request, Step::kQueued);
  should_schedule_ = true;
}

void RouterCore::MarkLost(Request& request) {
  if (request.is_recovering) return;
  request.is_recovering = true;
  request.lost_at = now_;
  ArmCore(now_ + config_.no_worker_grace);  // then its class may be given up
}

void RouterCore::DropPlacement(Request& request, const std::string& reason) {
  if (!request.placement) return;
  DropMove(request, reason);
  for (const int i : request.placement->choices)
    request.choices[static_cast<size_t>(i)].parked_since = absl::InfiniteFuture();
  Forget(*request.placement, reason);
  waiting_landings_.erase(request.key);
  request.placement.reset();
}

// Nothing of it is counted, known or owed afterwards.
void RouterCore::Forget(Placement& placement, const std::string& reason) {
  ClosePrefill(placement);
  CloseLanding(placement, false);
  WorkerRecord& decode = *workers_.Find(placement.decode);
  for (const SequenceHandle handle : placement.handles) decode.sequences.erase(handle);
  while (!placement.told.empty()) CancelAt(placement, placement.told.front(), reason);
  transfers_.erase(placement.transfer);
}

void RouterCore::AddSequence(Request& request, Placement& placement, int choice) {
  WorkerRecord& decode = *workers_.Find(placement.decode);
  const SequenceHandle handle{decode.next_handle++};
  decode.sequences.emplace(handle, WorkerRecord::Sequence{.request = &request, .choice = choice});
  placement.handles.push_back(handle);
  placement.choices.push_back(choice);
}

void RouterCore::OpenPrefill(Placement& placement, WorkerRecord& prefill,
                             uint32_t uncached_tokens) {
  placement.prefill = prefill.id;
  placement.uncached_tokens = uncached_tokens;
  placement.is_prefill_open = true;
  ++prefill.open_prefills;
  prefill.open_tokens += uncached_tokens;
}

void RouterCore::ClosePrefill(Placement& placement) {
  if (!placement.is_prefill_open) return;
  placement.is_prefill_open = false;
  WorkerRecord& prefill = *workers_.Find(*placement.prefill);
  --prefill.open_prefills;
  prefill.open_tokens -= placement.uncached_tokens;
  should_schedule_ = true;
}

void RouterCore::OpenLanding(Placement& placement, WorkerRecord& decode) {
  placement.is_landing_asked = true;
  decode.asked_pages += placement.num_pages;
  decode.asked_sequences += static_cast<uint32_t>(placement.choices.size());
}

void RouterCore::CloseLanding(Placement& placement, bool is_answered) {
  if (!placement.is_landing_asked) return;
  placement.is_landing_asked = false;
  placement.is_landing_answered = is_answered;
  WorkerRecord& decode = *workers_.Find(placement.decode);
  const auto sequences = static_cast<uint32_t>(placement.choices.size());
  decode.asked_pages -= placement.num_pages;
  decode.asked_sequences -= sequences;
  if (!is_answered) return;
  decode.fresh_pages += placement.num_pages;  // until its next Load counts them
  decode.fresh_sequences += sequences;
}

void RouterCore::SendReserve(const Request& request, Placement& placement) {
  wire::Reserve reserve;
  reserve.transfer = placement.transfer;
  reserve.request_id = request.spec.request_id;
  reserve.prompt_tokens = request.prompt_tokens();
  // The landing's; what is booked beyond them is the worker's rule (contracts.md 6), our count an
  // estimate.
  reserve.num_pages = (request.prompt_tokens() + kPageTokens - 1) / kPageTokens;
  reserve.sequences = SequencesOf(request, placement);
  reserve.sampling = request.spec.sampling;
  reserve.finish = request.spec.finish;
  reserve.masks = request.spec.masks;
  reserve.prompt_class = request.identity->prompt_class;
  reserve.decode_class = request.identity->decode_class;
  reserve.priority = request.spec.priority;
  reserve.remaining_ms = request.RemainingMs(now_);
  reserve.salt = request.spec.salt;
  if (request.moving) {  // the last token comes with the tail, as any landing's first one does
    std::vector<int32_t>& received = reserve.sequences[0].received;
    received.pop_back();
    reserve.lands_received = true;
    const auto tokens = request.prompt_tokens() + static_cast<uint32_t>(received.size());
    reserve.num_pages = (tokens + kPageTokens - 1) / kPageTokens;
  }
  Tell(placement, placement.decode, std::move(reserve));
}

void RouterCore::SendPrompt(const Request& request, Placement& placement, WorkerId worker) {
  const std::vector<int32_t>& prompt = *request.spec.prompt;
  for (size_t at = 0; at < prompt.size(); at += wire::kMaxPromptChunk) {
    const size_t end = std::min(prompt.size(), at + wire::kMaxPromptChunk);
    const auto from = prompt.begin() + static_cast<std::ptrdiff_t>(at);
    const auto to = prompt.begin() + static_cast<std::ptrdiff_t>(end);
    Tell(placement, worker,
         wire::PromptChunk{.transfer = placement.transfer,
                           .offset = static_cast<uint32_t>(at),
                           .tokens = std::vector<int32_t>(from, to),
                           .is_last = end == prompt.size()});
  }
}

void RouterCore::Tell(Placement& placement, WorkerId worker, RouterPiece piece) {
  std::vector<WorkerId>& told = placement.told;
  const bool introduces = std::find(told.begin(), told.end(), worker) == told.end();
  if (introduces) told.push_back(worker);
  out_->push_back(
      SendToWorker{.worker = worker, .piece = std::move(piece), .introduces = introduces});
}

void RouterCore::CancelAt(Placement& placement, WorkerId worker, const std::string& reason) {
  std::erase(placement.told, worker);
  ++facts_.cancels_sent;
  wire::Cancel cancel;
  cancel.transfer = placement.transfer;
  cancel.reason = reason;
  out_->push_back(SendToWorker{.worker = worker, .piece = std::move(cancel)});
}

}  // namespace baton::router
