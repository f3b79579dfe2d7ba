// RouterCore: decoding sequences that leave a draining worker (contracts.md 4.2, Moving; 5, Drain).
// The source stops first and the place is booked after, so that the new worker knows the tokens.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

#include "router/plan/core.h"

namespace baton::router {
namespace {

// Sequences of one request share pages and cannot leave one by one; a parked one waits for its
// pages or for max_parked.
bool MayMove(const Request& request) {
  if (request.step != Step::kDecoding || request.is_recovering) return false;
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
      if (MayMove(*sequence.request)) waiting.emplace_back(handle, sequence.request);
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
    if (hello.max_context <= TokensToMove(request) || now_ < worker.no_landing_before) continue;
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
  Placement& source = *request.placement;
  Moving& moving = request.moving.emplace();
  moving.target.transfer = rng_.DrawBytes<TransferId>();
  moving.target.decode = target.id;
  moving.target.num_pages = PagesFor(request);
  moving.target.has_first_token = moving.target.is_prefilled = true;
  AddSequence(request, moving.target, source.choices[0]);
  OpenLanding(moving.target, *workers_.Find(target.id));
  Tell(source, source.decode,
       MoveSequence{.transfer = source.transfer,
                    .move = {.handle = source.handles[0], .transfer = {}, .landing = {}}});
  EnterMove(request, Moving::Stage::kStopping);
}

// What is to be moved and a step at each side are as much work as a chunk of a prompt.
void RouterCore::EnterMove(Request& request, Moving::Stage stage) {
  const double chunk = std::min(config_.chunk_tokens, TokensToMove(request));
  const absl::Duration predicted = absl::Seconds(chunk / PoolPrefillRate());
  request.moving->stage = stage;
  request.moving->due =
      now_ + std::max(config_.progress_floor, config_.progress_factor * predicted);
  EnterStep(request, Step::kMoving);
}

// Every token of the source is here.
void RouterCore::BookMove(Request& request) {
  Moving& moving = *request.moving;
  if (!workers_.Find(moving.target.decode)->IsReady())
    return LosePlacement(request, false,
                         absl::UnavailableError("the worker to move to is no longer ready"));
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

// By the source, of a Move; by the target, of its Reserve.
void RouterCore::OnMoveRefused(Request& request, WorkerRecord& worker, const wire::Refused& item) {
  ++facts_.refusals;
  const WorkerId target = request.moving->target.decode;
  if (worker.id == target && item.stage == wire::Stage::kReserve) {
    const absl::Duration pause =
        std::max(config_.min_backoff, absl::Milliseconds(item.retry_after_ms));
    worker.no_landing_before = now_ + pause;
    ArmCore(worker.no_landing_before);
    request.avoid.push_back(target);
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

void RouterCore::DropMove(Request& request, const std::string& reason) {
  if (!request.moving) return;
  Placement& target = request.moving->target;
  moves_.erase(target.transfer);
  Forget(target, reason);
  request.moving.reset();
  should_schedule_ = true;
}

}  // namespace baton::router
