// RouterCore: decoding sequences that leave a draining worker (contracts.md 4.2, Moving; 5, Drain).
// The source stops first and the place is booked after, so that the new worker knows the tokens.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

#include "router/plan/core.h"

namespace baton::router {
namespace {

// Of a page, which the router does not know, and of a link at its worst.
constexpr double kAssumedPageBytes = 1e6;
constexpr double kAssumedBytesPerSecond = 1e8;

// Sequences of one request share pages and cannot leave one by one; a parked one waits for its
// pages or for max_parked. The report on a prompt ends with the transfer that a move ends.
bool MayMove(const Request& request, absl::Time now) {
  if (request.step != Step::kDecoding || request.is_recovering) return false;
  if (request.LacksPromptLogprobs() || now < request.no_move_before) return false;
  if (request.placement->choices.size() != 1) return false;
  const Choice& choice = request.choices[static_cast<size_t>(request.placement->choices[0])];
  return !choice.received.empty() && choice.parked_since == absl::InfiniteFuture();
}

uint32_t TokensToMove(const Request& request) {
  const Choice& choice = request.choices[static_cast<size_t>(request.placement->choices[0])];
  return request.prompt_tokens() + static_cast<uint32_t>(choice.received.size());
}

}  // namespace

Request* RouterCore::FindMove(const TransferId& transfer) {
  const auto it = moves_.find(transfer);
  return it == moves_.end() ? nullptr : it->second;
}

// In the order of their handles, the oldest first.
void RouterCore::MoveFromDraining() {
  for (auto& [id, worker] : workers_.all()) {
    if (!worker.is_up || !worker.IsDraining() || worker.sequences.empty()) continue;
    uint32_t moving = 0;
    std::vector<std::pair<SequenceHandle, Request*>> waiting;
    for (const auto& [handle, sequence] : worker.sequences) {
      if (sequence.request->step == Step::kMoving) ++moving;
      if (MayMove(*sequence.request, now_)) waiting.emplace_back(handle, sequence.request);
    }
    std::sort(waiting.begin(), waiting.end(),
              [](const auto& a, const auto& b) { return a.first.value < b.first.value; });
    for (const auto& [handle, request] : waiting) {
      if (moving >= config_.max_moves_per_worker) break;
      const WorkerRecord* target = PickMoveTarget(*request);
      if (target == nullptr) continue;  // it finishes in place, or room appears
      BeginMove(*request, *target);
      ++moving;
    }
  }
}

// A ready worker of the same classes with room by its Load, which has not failed this request.
const WorkerRecord* RouterCore::PickMoveTarget(Request& request) const {
  const Identity& identity = *request.identity;
  const std::vector<WorkerId>& avoid = request.avoid;
  std::vector<DecodeCandidate> candidates;
  for (const auto& [id, worker] : workers_.all()) {
    const wire::WorkerHello& hello = worker.hello;
    if (!worker.IsReady() || !hello.serves_decode || !worker.load) continue;
    if (id == request.placement->decode || worker.IsSuspect(now_, config_)) continue;
    if (hello.weights != identity.weights || hello.layout != identity.layout) continue;
    if (hello.decode_class != identity.decode_class) continue;
    if (hello.max_context <= TokensToMove(request)) continue;
    if (request.HasGrammar() && !worker.HasGrammarRoom(now_)) continue;
    if (!worker.TakesLanding(now_)) continue;
    if (std::find(avoid.begin(), avoid.end(), id) == avoid.end())
      candidates.push_back(worker.AsDecodeCandidate());
  }
  const RequestFacts facts{
      .prompt_tokens = request.prompt_tokens(), .num_pages = PagesFor(request), .num_sequences = 1};
  const ChooseWeights weights{.nominal_step_us = config_.nominal_step_us};
  const auto best = ChooseDecode(candidates, facts, weights);
  return best ? workers_.Find(candidates[*best].worker) : nullptr;
}

// Without a landing: the source stops at its next step boundary and says Parked.
void RouterCore::BeginMove(Request& request, const WorkerRecord& target) {
  AimMove(request, target);
  Placement& source = *request.placement;
  Tell(source, source.decode,
       MoveSequence{.transfer = source.transfer,
                    .move = {.handle = source.handles[0], .transfer = {}, .landing = {}}});
  EnterMove(request, Moving::Stage::kStopping);
}

// Promises the move room at `target`, which hears of it when the sequence has stopped.
void RouterCore::AimMove(Request& request, const WorkerRecord& target) {
  Moving& moving = request.moving.emplace();
  moving.target.transfer = rng_.DrawBytes<TransferId>();
  moving.target.decode = target.id;
  moving.target.num_pages = PagesFor(request);
  moving.target.has_first_token = moving.target.is_prefilled = true;
  AddSequence(request, moving.target, request.placement->choices[0]);
  OpenLanding(moving.target, *workers_.Find(target.id));
}

// A step or an answer is as much work as a chunk of a prompt; sending takes as long as the bytes
// need. Nobody reports how far a move is.
void RouterCore::EnterMove(Request& request, Moving::Stage stage) {
  const double chunk = std::min(config_.chunk_tokens, TokensToMove(request));
  const absl::Duration predicted = absl::Seconds(chunk / PoolPrefillRate());
  absl::Duration bound = std::max(config_.progress_floor, config_.progress_factor * predicted);
  if (stage == Moving::Stage::kSending) {
    const uint32_t pages = (TokensToMove(request) + kPageTokens - 1) / kPageTokens;
    bound = std::max(bound, absl::Seconds(pages * kAssumedPageBytes / kAssumedBytesPerSecond));
  }
  request.moving->stage = stage;
  request.moving->due = now_ + bound;
  EnterStep(request, Step::kMoving);
}

// Every token of the source is here.
void RouterCore::BookMove(Request& request) {
  if (!workers_.Find(request.moving->target.decode)->IsReady()) {
    const WorkerRecord* other = PickMoveTarget(request);
    if (other == nullptr)
      return LosePlacement(request, false,
                           absl::UnavailableError("no worker to move to is ready any more"));
    Forget(request.moving->target, "another one takes it");
    AimMove(request, *other);
  }
  Moving& moving = *request.moving;
  moves_.emplace(moving.target.transfer, &request);
  SendReserve(request, moving.target);
  SendPrompt(request, moving.target, moving.target.decode);
  EnterMove(request, Moving::Stage::kBooking);
}

void RouterCore::OnMoveReserved(Request& request, wire::Reserved& item) {
  Moving& moving = *request.moving;
  if (moving.stage != Moving::Stage::kBooking) return;
  CloseLanding(moving.target, true);
  moving.target.landing = std::move(item.landing);
  Placement& source = *request.placement;
  Tell(source, source.decode,
       MoveSequence{.transfer = source.transfer,
                    .move = {.handle = source.handles[0],
                             .transfer = moving.target.transfer,
                             .landing = moving.target.landing}});
  EnterMove(request, Moving::Stage::kSending);
}

// By the source, of a Move; by the target, of its Reserve. A stop that is refused (it names the
// source's transfer) leaves the sequence where it runs.
void RouterCore::OnMoveRefused(Request& request, WorkerRecord& worker, const wire::Refused& item) {
  const bool is_target = worker.id == request.moving->target.decode;
  const bool is_source = worker.id == request.placement->decode;
  if (item.stage == wire::Stage::kReserve ? !is_target : !is_source) return;
  ++facts_.refusals;
  const absl::Time again =
      now_ + std::max(config_.min_backoff, absl::Milliseconds(item.retry_after_ms));
  ArmCore(again);
  if (is_source && item.transfer == request.placement->transfer) {
    request.no_move_before = again;
    ++facts_.moves.refused;
    return StayPut(request, item.message);
  }
  if (is_target) {
    worker.HoldBack(item, again);
    request.avoid.push_back(worker.id);
  }
  const bool is_capacity = item.code == absl::StatusCode::kResourceExhausted ||
                           item.code == absl::StatusCode::kUnavailable;
  LosePlacement(request, !is_capacity,
                absl::UnavailableError(absl::StrFormat("worker %s refused a move: %s",
                                                       worker.hello.worker_id, item.message)));
}

// The last token comes again; the sequence goes on where it landed.
void RouterCore::OnMoveLanded(Request& request, const wire::Landed& item) {
  if (request.moving->stage != Moving::Stage::kSending) return;
  if (item.tokens.size() != 1) {
    request.avoid.push_back(request.moving->target.decode);
    return LosePlacement(
        request, true,
        absl::InternalError(absl::StrFormat("a moved sequence landed with %d first tokens, not 1",
                                            item.tokens.size())));
  }
  const int64_t last = int64_t{TokensToMove(request)} - 1;
  Placement source = std::move(*request.placement);
  request.placement = std::move(request.moving->target);
  request.moving.reset();
  moves_.erase(request.placement->transfer);
  Forget(source, "moved");
  transfers_.emplace(request.placement->transfer, &request);
  ++facts_.moves.moved;
  EnterStep(request, Step::kDecoding);
  std::vector<TokenRecord> tokens = item.tokens;
  AcceptTokens(request, request.placement->choices[0], last, tokens);
  should_schedule_ = true;
}

// The sequence runs on at its old worker.
void RouterCore::StayPut(Request& request, const std::string& reason) {
  DropMove(request, reason);
  EnterStep(request, Step::kDecoding);
}

void RouterCore::DropMove(Request& request, const std::string& reason) {
  if (!request.moving) return;
  Placement& target = request.moving->target;
  moves_.erase(target.transfer);
  Forget(target, reason);
  request.moving.reset();
  should_schedule_ = true;
}

}  // namespace baton::router
