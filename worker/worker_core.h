#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "engine/loop.h"
#include "kvtransfer/agent.h"
#include "worker/effects.h"
#include "worker/engine_watch.h"
#include "worker/landing_table.h"
#include "worker/move_source.h"
#include "worker/prefill_job.h"
#include "worker/prefix_cache.h"
#include "worker/session.h"
#include "worker/setup.h"
#include "worker/starting_prompt.h"
#include "worker/tail_buffers.h"

namespace baton::worker {

// The transfer thread as the engine thread sees it; in the simulator the agent itself.
class AgentLink {
 public:
  virtual ~AgentLink() = default;
  // kResourceExhausted: full; the core keeps the command and tries again next round.
  virtual absl::Status Execute(kvtransfer::AgentCommand command) = 0;
  virtual std::vector<kvtransfer::AgentEvent> TakeEvents() = 0;
};

struct CoreParts {
  const WorkerSetup& setup;
  engine::EngineLoop& loop;
  SessionSender& sender;
  AgentLink& agent;
  EngineWatch& watch;
  const Clock& clock;
  Rng& rng;
};

struct CoreCounters {
  uint64_t reserves = 0, runs = 0, refused = 0, cancels = 0;
  uint64_t landed = 0, prefilled = 0, finished = 0, failed = 0;
  uint64_t replay_mismatches = 0, parked = 0;
  uint64_t mask_failures = 0;  // before a step: as LoopCounters
  uint64_t moved = 0;          // sequences sent off to another decode worker
  uint64_t local_fills = 0;    // prompts prefilled by their own decode worker
};
struct CoreGauges {
  engine::PoolCounts pool;
  int sessions = 0, landings_waiting = 0, running = 0, queued_prompts = 0, computing_prompts = 0,
      sending_prompts = 0;
  int64_t queued_tokens = 0;
  int tail_buffers_free = 0;
  size_t cached_pages = 0, cached_tails = 0;
  uint64_t cached_tail_bytes = 0, cache_hits = 0, cache_misses = 0, pages_rotten = 0;
  size_t commands_waiting = 0;
};

// What a worker does between its sessions, its transfers and its engine. One thread calls
// everything: the engine thread, or the simulator's. Cancels take effect between two steps.
class WorkerCore final : private engine::LoopObserver {
 public:
  explicit WorkerCore(const CoreParts& parts);
  ~WorkerCore() override;

  void Apply(SessionEvent event);
  // Transfer events, admissions, at most one engine step, answers. False: nothing happened. An
  // error is the engine's and final.
  absl::StatusOr<bool> RunOnce();
  // Refuses new work from now on.
  void Drain();
  // Nothing is open: a drained worker may end.
  bool IsIdle() const;
  bool is_draining() const { return is_draining_; }

  const CoreCounters& counters() const { return counters_; }
  CoreGauges Gauges() const;

 private:
  struct Session {
    absl::Time next_load;
    std::unordered_map<TransferId, absl::Time> tombstones;  // each until
  };
  struct Tombstone {
    SessionId session;
    TransferId transfer;
    absl::Time until;
  };

  // LoopObserver
  void OnChunk(SequenceId sequence, int computed) override;
  void OnPromptLogprobs(SequenceId sequence, int first_position,
                        std::vector<TokenRecord> tokens) override;
  void OnFirstTokens(SequenceId sequence, std::vector<TokenRecord> tokens) override;
  void OnTokens(SequenceId sequence, int first_position, std::vector<TokenRecord> tokens) override;
  void OnFinished(SequenceId sequence, FinishReason reason, int32_t stop_token) override;
  void OnFailed(SequenceId sequence, const absl::Status& status) override;
  void OnParked(SequenceId sequence) override;
  void OnResumed(SequenceId sequence) override;
  void OnReplayMismatch(SequenceId sequence) override;

  // Session events; worker_core_sessions.cc
  void On(const SessionOpened& event);
  void On(SessionMessage& event);
  void On(const SessionClosed& event);
  void CancelSession(SessionId session);
  void Cancel(SessionId session, const wire::Cancel& cancel);
  void Reserve(SessionId session, const wire::Reserve& reserve);
  void Run(SessionId session, const wire::Run& run);
  absl::Status CheckRun(const wire::Run& run) const;
  absl::Status AddPrompt(SessionId session, const wire::PromptChunk& chunk);
  bool IsTombstoned(SessionId session, const TransferId& transfer) const;
  void ExpireTombstones(absl::Time now);
  void SendLoads();
  wire::Load MakeLoad() const;
  void SendCacheEvents();

  // Moves; worker_core_moves.cc
  void Move(SessionId session, const wire::Move& move);
  absl::Status BeginStop(const SequenceRef& ref);
  absl::Status BeginMove(const SequenceRef& ref, const wire::Move& move);
  static absl::Status ParkedError(const SequenceRef& ref);
  bool HoldStopping();
  bool StartMoves();
  void StartMove(MoveSource& move, int buffer);
  void OnMoveAcked(MoveSource& move);
  // The router hears why; the sequence is over here.
  void FailSequence(const SequenceRef& ref, const absl::Status& status);
  // Out of the engine or off its way to another worker, whatever it holds.
  void EndSequence(SequenceId sequence);

  // Transfer events, landings into the engine; worker_core.cc
  void On(const kvtransfer::AgentEvent& event);
  void OnSendFailed(const kvtransfer::SendFailed& event);
  void ReplaceOwed();
  bool StartLandings();

  // Jobs; worker_core_jobs.cc
  bool StartJobs();
  PrefillJob* NextJob();
  bool FailMaskless();
  bool PrepareJob();
  bool CheckStarting(int& budget);
  void FailHolders(PageId page);  // the jobs that compute upon a rotten page or send it
  void DropStarting();
  void StartJob();
  void StopJob(PrefillJob& job, const absl::Status* failure);
  void FillLanding(PrefillJob& job, engine::PageLease pages);
  void EraseReleasedJobs();
  void KeepBoundaryTail(const PrefillJob& job, SequenceId sequence, int computed);
  PrefillJob* JobOf(SequenceId sequence);
  // Out of the engine, its tail slot back; its pages, if it was there.
  engine::PageLease ReleaseFromLoop(SequenceId sequence);
  SequenceId NewSequence() { return SequenceId{next_sequence_++}; }
  int NumJobs(JobState state) const;
  void LoadChanged();
  void DropCache(SessionId session);
  void SetError(const absl::Status& status);
  bool HasEffects() const;
  void Flush(absl::Time round_start);

  const WorkerSetup& setup_;
  engine::EngineLoop& loop_;
  SessionSender& sender_;
  AgentLink& agent_;
  EngineWatch& watch_;
  const Clock& clock_;
  TailBuffers tails_;
  PrefixCache cache_;
  LandingTable landings_;
  std::map<SessionId, Session> sessions_;
  std::unordered_map<TransferId, std::unique_ptr<PrefillJob>> jobs_;
  std::optional<StartingPrompt> starting_;
  std::unordered_map<TransferId, std::unique_ptr<MoveSource>> moves_;
  std::vector<std::pair<SessionId, SequenceHandle>> stopping_;  // at a step boundary to come
  std::deque<TransferId> job_order_;                            // accepted, in order of arrival
  std::unordered_map<SequenceId, TransferId> computing_;
  std::deque<Tombstone> tombstones_;  // of all sessions, by `until`
  Effects effects_;
  std::deque<kvtransfer::AgentCommand> commands_;  // the link had no room for
  std::vector<wire::CacheEvents> deltas_;
  CoreCounters counters_;
  absl::Status error_;
  uint64_t next_sequence_ = 1;
  absl::Time next_delta_, next_progress_;
  bool is_draining_ = false;
};

}  // namespace baton::worker
