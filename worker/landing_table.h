#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/rng.h"
#include "engine/grammar/mask_maker.h"
#include "engine/pages/page_pool.h"
#include "proto/wire.h"
#include "worker/effects.h"
#include "worker/prompt_buffer.h"
#include "worker/setup.h"
#include "worker/tail_buffers.h"

namespace baton::worker {

enum class LandingState { kReserved, kFilling, kReady, kRunning, kClosing };
// kMoving: stopped, to go on at another worker. kMoved: that one has all of it, and the router has
// yet to let it go here.
enum class SequenceState { kWaiting, kRunning, kParked, kMoving, kMoved, kDone };

// One sequence of a landing.
struct LandingSequence {
  wire::SequenceSpec spec;
  SequenceState state = SequenceState::kWaiting;
  engine::Booking booking;                      // headroom, and the copy of a partial page
  engine::PageLease pages;                      // from Ready until it runs
  std::shared_ptr<engine::PendingMasks> masks;  // until it runs; null: none
  SequenceId id;                                // the engine's, from when it runs
  bool lands_received = false;  // the landing holds the received tokens too (a move's target)
  TokenRecord first;
  absl::Time landed_at;
  bool has_reported_step = false;
};

// Tokens that pages and tail of such a landing cover: the prompt, and for a move's target what its
// one sequence has received.
uint32_t LandedTokens(const wire::Reserve& request);

// A transfer's place at a decode worker.
struct Landing {
  Landing(SessionId owner, wire::Reserve reserve);
  SessionId session;
  wire::Reserve request;
  uint32_t num_tokens;  // that pages and tail cover
  LandingState state = LandingState::kReserved;
  Attempt attempt = 1;
  Secret secret;
  PromptBuffer prompt;
  engine::Booking booking;  // the prompt's pages that no credit was taken from yet
  std::unordered_map<PageId, engine::PageLease> credit;  // pages the transfer thread may bind
  // Pages it may still receive into although their attempt or the landing is over.
  std::unordered_set<PageId> quarantined;
  int num_owed = 0;                         // quarantined pages that nothing was booked for yet
  std::vector<engine::PageLease> verified;  // by block; empty lease: missing
  uint32_t num_verified = 0;
  std::optional<int> agent_tail;       // tail buffer the transfer thread holds
  std::vector<int> quarantined_tails;  // likewise
  std::optional<int> tail;             // tail buffer with the verified tail
  uint64_t tail_bytes = 0;
  bool is_local = false;         // filled by a job of this worker
  bool is_agent_open = false;    // OpenLanding sent, CloseLanding not
  bool is_agent_closed = false;  // LandingClosed came
  absl::Time first_block_at = absl::InfiniteFuture();
  absl::Time closing_since = absl::InfiniteFuture();
  std::vector<LandingSequence> sequences;
};

struct SequenceRef {
  TransferId transfer;
  Landing* landing = nullptr;
  LandingSequence* sequence = nullptr;
};

// All landings of a decode worker: the state machine of contracts.md 4.3, without I/O and clock.
// Engine thread.
class LandingTable {
 public:
  // Frees cached pages until so many are free, if it can.
  using MakeRoom = std::function<void(int pages)>;

  LandingTable(const WorkerSetup& setup, engine::PagePool& pool, TailBuffers& tails, Rng& rng,
               MakeRoom make_room);

  // Answers Reserved or Refused. Everything is booked or nothing; room is made when all but pages
  // is there.
  void Reserve(SessionId session, const wire::Reserve& request, Effects& out);
  // Answers Retargeted once the transfer thread has; a landing that is complete or closing needs no
  // answer.
  void Retarget(SessionId session, const wire::Retarget& request, Effects& out);
  // A chunk of a landing that is unknown or complete changes nothing. kInvalidArgument: a protocol
  // violation.
  absl::Status AddPrompt(SessionId session, const wire::PromptChunk& chunk, absl::Time now,
                         Effects& out);

  // Ends a transfer or one of its sequences; idempotent. The caller releases the returned sequences
  // from the engine.
  std::vector<SequenceId> Cancel(SessionId session, const wire::Cancel& cancel, absl::Time now,
                                 Effects& out);
  std::vector<SequenceId> CloseSession(SessionId session, absl::Time now, Effects& out);

  void On(const kvtransfer::BlockLanded& event, absl::Time now, Effects& out);
  void On(const kvtransfer::LandingRetargeted& event, Effects& out);
  void On(const kvtransfer::LandingFailed& event, Effects& out);
  void On(const kvtransfer::MemoryReturned& event, Effects& out);
  void On(const kvtransfer::LandingClosed& event);

  // Pages that retargeted landings still lack for those an earlier attempt may write into. For them
  // the caller makes room; ReplaceOwed then takes what is free, missing tail buffers too. Once per
  // round.
  int num_owed() const;
  bool IsOwed() const { return !starved_.empty(); }
  void ReplaceOwed(Effects& out);

  // A job of this worker fills the landing itself: the transfer thread forgets it. What the landing
  // has booked, and what comes back from the transfer thread, is kept for the job.
  bool BeginLocalFill(const wire::Run& run, Effects& out);
  int NumLocalBooked(const TransferId& transfer) const;
  engine::Booking TakeLocalBooking(const TransferId& transfer);
  // The job's pages and its packed tail buffer; false when the landing is gone (the caller then
  // keeps nothing either).
  bool FinishLocalFill(const TransferId& transfer, engine::PageLease pages, int tail_buffer,
                       absl::Time now, Effects& out);

  // The oldest sequence that may start: its landing is verified, its masks are made (or cannot be:
  // then it has failed). Call MarkRunning after admitting it.
  std::optional<SequenceRef> NextToStart();
  void MarkRunning(const SequenceRef& ref, SequenceId id);
  std::optional<SequenceRef> Find(SequenceId id);
  // None once it is over.
  std::optional<SequenceRef> Find(SessionId session, SequenceHandle handle);
  // It runs no more and keeps its landing open until the router's Cancel.
  void MarkMoved(const SequenceRef& ref);
  // A sequence is over: finished or failed.
  void Finish(const SequenceRef& ref, absl::Time now, Effects& out);

  const Landing* Find(const TransferId& transfer) const;
  bool IsEmpty() const { return landings_.empty(); }
  int num_waiting() const;         // verified sequences without a place in the batch
  int num_open_sequences() const;  // booked here and not over
  bool IsWedged(absl::Time now) const;

 private:
  absl::Status CheckReserve(const wire::Reserve& request) const;
  absl::Status CheckHandles(SessionId session, const wire::Reserve& request);
  absl::Status Book(Landing& landing);
  absl::Status StartMasks(Landing& landing);
  int HeadroomPages(const wire::Reserve& request, size_t index) const;
  Landing* FindOpen(const TransferId& transfer);
  void AddCredit(const TransferId& transfer, Landing& landing, Effects& out);
  void ReadyIfComplete(const TransferId& transfer, Landing& landing, absl::Time now, Effects& out);
  absl::StatusOr<std::vector<TokenRecord>> ReadTail(const Landing& landing) const;
  void PreparePages(Landing& landing);
  void ReplaceQuarantined(const TransferId& transfer, Landing& landing,
                          std::span<const kvtransfer::BlockMemory> memory, Effects& out);
  // True when nothing is lacking any more.
  bool GiveOwed(const TransferId& transfer, Landing& landing, Effects& out);
  void BookOwed(Landing& landing);
  void AddTailCredit(const TransferId& transfer, Landing& landing, Effects& out);
  void ReturnTail(const TransferId& transfer, Landing& landing, int buffer, Effects& out);
  void ReturnPage(const TransferId& transfer, Landing& landing, PageId page, Effects& out);
  void ReturnQuarantined(Landing& landing, PageId page);
  void StartSequences(Landing& landing, const std::vector<TokenRecord>& first, absl::Time now,
                      Effects& out);
  void CloseAgent(const TransferId& transfer, Landing& landing, Effects& out);
  void CloseIfDone(const TransferId& transfer, Landing& landing, absl::Time now, Effects& out);
  void Close(const TransferId& transfer, Landing& landing, absl::Time now, Effects& out);
  void ReturnTailIfUnused(Landing& landing);
  void EraseIfQuiet(const TransferId& transfer);

  const WorkerSetup& setup_;
  engine::PagePool& pool_;
  TailBuffers& tails_;
  Rng& rng_;
  const MakeRoom make_room_;
  std::unordered_map<TransferId, Landing> landings_;
  std::deque<TransferId> ready_;  // with a sequence that waits, oldest first
  std::unordered_map<SequenceId, TransferId> running_;
  std::unordered_set<TransferId> starved_;  // retargeted, and pages or the tail buffer are lacking
};

// The tokens a sequence starts with after its prompt: those the client has, else the first one from
// the tail.
std::vector<int32_t> KnownTokens(const LandingSequence& sequence);
// Whether the last of `generated` ends the sequence, by the rules of its request.
std::optional<wire::Finished> FinishOf(SequenceHandle handle, const std::vector<int32_t>& generated,
                                       const FinishRules& rules);

}  // namespace baton::worker
