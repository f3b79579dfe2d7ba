#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "common/rng.h"
#include "router/plan/admission.h"
#include "router/plan/choose.h"
#include "router/plan/events.h"
#include "router/plan/plan_config.h"
#include "router/plan/request_state.h"
#include "router/plan/router_metrics.h"
#include "router/plan/worker_table.h"

namespace baton::router {

// All placement decisions of one router process and each request's state machine (contracts.md 4.2,
// 6). Events in, actions out; no I/O, no clock, no thread: the caller executes the actions in order
// and hands events in with times that never go back. Every request ends exactly once, and every
// worker that was told anything of a transfer gets one Cancel for it unless its session ended
// first. Planner thread (or the simulator's).
class RouterCore {
 public:
  RouterCore(const PlanConfig& config, Rng& rng);  // rng: transfer ids; outlives the core
  RouterCore(const RouterCore&) = delete;
  RouterCore& operator=(const RouterCore&) = delete;

  // Appends to `out`. No allocation per token beyond the emitted records.
  void On(CoreEvent event, absl::Time now, std::vector<CoreAction>& out);

  RouterFacts Facts(absl::Time now) const;  // counters and gauges
  ClusterView View(absl::Time now) const;
  // Raised whenever a worker comes, goes or changes state: publish the view at once.
  uint64_t view_version() const { return view_version_; }

  // For tests and the simulator's invariants; absent: unknown or ended.
  std::optional<RequestState> StateOf(RequestKey key) const;
  size_t num_live() const { return requests_.size(); }
  size_t num_open_transfers() const { return transfers_.size() + moves_.size(); }
  const WorkerRecord* FindWorker(WorkerId worker) const { return workers_.Find(worker); }

 private:
  using Workers = std::vector<const WorkerRecord*>;
  enum class Placed { kYes, kNoPrefillSlot, kNoDecodeRoom, kNoGrammarRoom, kNoWorker };
  struct PairChoice {
    WorkerId prefill, decode;
    uint32_t uncached_tokens = 0;
    bool is_fallback = false;  // prefill on D, for want of a prefill worker
  };
  // What a placement must agree with: the request's identity, from its first token on.
  struct Wanted {
    const Identity* pinned = nullptr;
    bool any_prompt_class = true, any_decode_class = true, needs_grammar_room = false;
  };

  // core.cc: requests' events, timers, ends.
  void OnEvent(RequestArrived& event);
  void OnEvent(ClientGone& event);
  void OnEvent(CancelChoice& event);
  void OnEvent(TimerFired& event);
  void OnCoreTimer();
  void EndUncovered();
  void MoveFromWedged();
  void CheckTimers(Request& request);
  void CheckParked(Request& request);
  void End(Request& request, const absl::Status& status);
  void CountEnd(const Request& request, const absl::Status& status);
  void FinishChoice(Request& request, int choice, FinishReason reason, int32_t stop_token);
  void Arm(Request& request);
  void ArmCore(absl::Time at);
  void Emit(const Request& request, RequestEvent event);
  void EnterStep(Request& request, Step step);
  double PoolPrefillRate() const;
  Request* FindRequest(RequestKey key);

  // core_workers.cc: workers' events.
  void OnEvent(WorkerAdded& event);
  void OnEvent(WorkerUp& event);
  void OnEvent(WorkerDown& event);
  void OnEvent(WorkerSaid& event);
  void LoseWorker(WorkerRecord& worker, const absl::Status& status);
  void LoseWorkerOf(Request& request, WorkerId worker, const absl::Status& status);
  void LosePrefillOf(Request& request, bool is_fault, const absl::Status& why);
  void LoseDecodeOf(Request& request, const absl::Status& why);
  void UpdateCoverage();
  void OnBeat(WorkerRecord& worker, const wire::Beat& beat);
  void OnLoad(WorkerRecord& worker, const wire::Load& load);
  void OnItem(WorkerRecord& worker, wire::Reserved& item);
  void OnItem(WorkerRecord& worker, wire::Refused& item);
  void OnItem(WorkerRecord& worker, wire::Retargeted& item);
  void OnItem(WorkerRecord& worker, wire::Progress& item);
  void OnItem(WorkerRecord& worker, wire::Prefilled& item);
  void OnItem(WorkerRecord& worker, wire::Failed& item);
  void OnParked(WorkerRecord& worker, SequenceHandle handle, bool is_parked);
  Request* FindTransfer(const TransferId& transfer);
  WorkerRecord::Sequence* FindSequence(WorkerRecord& worker, SequenceHandle handle);
  void NoteProgress(Request& request, const WorkerRecord& prefill);

  // core_tokens.cc: what workers computed.
  void OnItem(WorkerRecord& worker, wire::FirstToken& item);
  void OnItem(WorkerRecord& worker, wire::PromptLogprobs& item);
  void LoseReport(Request& request, const WorkerRecord& worker, int64_t position);
  void EndIfComplete(Request& request);
  void OnItem(WorkerRecord& worker, wire::Landed& item);
  void OnItem(WorkerRecord& worker, wire::SequenceStep& item);
  void OnItem(WorkerRecord& worker, wire::Finished& item);
  bool AcceptTokens(Request& request, int choice, int64_t position,
                    std::vector<TokenRecord>& tokens);
  bool AcceptFirstTokens(Request& request, std::vector<TokenRecord>& tokens);

  // core_choice.cc: which workers.
  std::optional<PairChoice> ChoosePair(Request& request, Placed& why);
  std::optional<PairChoice> ChoosePairAs(Request& request, const Wanted& wanted, Placed& why);
  std::optional<PairChoice> PairFrom(Request& request, const Wanted& wanted, Workers prefills,
                                     Placed& why);
  std::optional<PairChoice> ChooseFallback(Request& request, const Wanted& wanted, Placed& why);
  Workers DecodesFor(const Request& request, const Wanted& wanted,
                     const WorkerRecord* prefill) const;
  std::optional<WorkerId> PickDecode(Request& request, Workers decodes, Placed& why);
  PrefillChoice PickPrefill(Request& request, const Workers& prefills);
  // Drops those that are suspect or failed this request, unless that leaves nobody.
  void KeepPreferred(const Request& request, Workers& workers) const;
  Wanted WantedOf(const Request& request) const;
  bool HasServing(const Identity& identity, bool is_decode) const;
  bool CanEverFit(const Request& request) const;
  uint32_t PagesFor(const Request& request) const;
  uint32_t CachedPages(Request& request, const WorkerRecord& worker);

  // core_move.cc: sequences that leave draining decode workers.
  void MoveFromDraining();
  void BeginMove(Request& request, const WorkerRecord& target);
  void AimMove(Request& request, const WorkerRecord& target);
  void BookMove(Request& request);
  void OnMoveReserved(Request& request, wire::Reserved& item);
  void OnMoveRefused(Request& request, WorkerRecord& worker, const wire::Refused& item);
  void OnMoveLanded(Request& request, const wire::Landed& item);
  void EnterMove(Request& request, Moving::Stage stage);
  void StayPut(Request& request, const std::string& reason);
  void DropMove(Request& request, const std::string& reason);
  Request* FindMove(const TransferId& transfer);
  const WorkerRecord* PickMoveTarget(Request& request) const;

  // core_placement.cc: where requests run, and how that ends.
  void Schedule();
  Placed TryPlace(Request& request);
  void Book(Request& request, const PairChoice& pair);
  void RunAt(Request& request, WorkerRecord& prefill, uint32_t uncached_tokens);
  void WaitForPrefill(Request& request);
  void RunWaiting(Request& request);
  void BeginRetarget(Request& request, bool is_fault, const absl::Status& why);
  void LosePlacement(Request& request, bool is_fault, const absl::Status& why);
  bool CountFault(Request& request, const absl::Status& why);
  void DropPlacement(Request& request, const std::string& reason);
  void OpenPrefill(Placement& placement, WorkerRecord& prefill, uint32_t uncached_tokens);
  void ClosePrefill(Placement& placement);
  void CloseLanding(Placement& placement, bool is_answered);
  void BlameLink(Request& request, const absl::Status& why);
  void MarkLost(Request& request);
  void OpenLanding(Placement& placement, WorkerRecord& decode);
  void AddSequence(Request& request, Placement& placement, int choice);
  void Forget(Placement& placement, const std::string& reason);
  void SendReserve(const Request& request, Placement& placement);
  void SendPrompt(const Request& request, Placement& placement, WorkerId worker);
  void Tell(Placement& placement, WorkerId worker, RouterPiece piece);
  void CancelAt(Placement& placement, WorkerId worker, const std::string& reason);

  const PlanConfig config_;
  Rng& rng_;
  WorkerTable workers_;
  Admission admission_;
  RouterFacts facts_;
  std::map<RequestKey, std::unique_ptr<Request>> requests_;
  std::unordered_map<TransferId, Request*> transfers_;
  std::unordered_map<TransferId, Request*> moves_;   // by the new transfer, once it is booked
  std::map<RequestKey, Request*> waiting_landings_;  // booked, want a prefill worker
  uint64_t next_order_ = 0, view_version_ = 0;
  bool should_schedule_ = false;
  std::set<absl::Time> core_timers_;                   // set and not yet fired
  absl::Time uncovered_since_ = absl::InfinitePast();  // no serving pair; future: covered
  absl::Time decode_blocked_since_ = absl::InfiniteFuture();

  std::vector<std::unique_ptr<Request>> ended_;  // freed when On returns

  // Valid inside On.
  absl::Time now_ = absl::InfinitePast();
  absl::Time received_at_ = absl::InfinitePast();
  std::vector<CoreAction>* out_ = nullptr;
};

}  // namespace baton::router
