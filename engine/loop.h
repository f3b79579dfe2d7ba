#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"

#include "common/clock.h"
#include "common/ids.h"
#include "engine/grammar/mask_source.h"
#include "engine/pages/page_pool.h"
#include "engine/pages/sequence.h"
#include "engine/planning/step_planner.h"
#include "engine/step.h"
#include "kernels/device.h"
#include "kernels/page_layout.h"

namespace baton::engine {

// What the loop tells its owner, on the engine thread, between two steps. The owner may call any
// method of the loop from inside.
class LoopObserver {
 public:
  virtual ~LoopObserver() = default;
  // A prompt chunk is done: positions below `computed` are in pages; full pages below it are
  // sealed. A tail may be packed now.
  virtual void OnChunk(SequenceId sequence, int computed) = 0;
  // Before the OnChunk of the same rows, if the sequence asks for it: the prompt's own tokens from
  // `first_position` on with their logprobs.
  virtual void OnPromptLogprobs(SequenceId sequence, int first_position,
                                std::vector<TokenRecord> tokens) = 0;
  // The prompt is done and its first token chosen, one record per choice. The sequence runs no
  // further step until Continue or Release.
  virtual void OnFirstTokens(SequenceId sequence, std::vector<TokenRecord> tokens) = 0;
  // New tokens (never replayed ones), ascending from `first_position`.
  virtual void OnTokens(SequenceId sequence, int first_position,
                        std::vector<TokenRecord> tokens) = 0;
  // By stop token or length, after its last OnTokens. The sequence holds its pages until Release.
  virtual void OnFinished(SequenceId sequence, FinishReason reason, int32_t stop_token) = 0;
  // This sequence alone failed. It holds its pages until Release.
  virtual void OnFailed(SequenceId sequence, const absl::Status& status) = 0;
  virtual void OnParked(SequenceId sequence) = 0;
  virtual void OnResumed(SequenceId sequence) = 0;
  virtual void OnReplayMismatch(SequenceId sequence) = 0;
};

struct LoopCounters {
  uint64_t steps = 0;
  uint64_t steps_ahead = 0;  // of these, queued before the one before was applied
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  uint64_t drafted = 0;
  uint64_t accepted_drafts = 0;
  uint64_t replayed_tokens = 0;
  uint64_t masks = 0;          // rows with rules about their next token
  uint64_t mask_failures = 0;  // sequences that ended wrongly: their rules left no token
  uint64_t mask_limits = 0;    // sequences whose grammar grew beyond a limit
  absl::Duration mask_time;
  absl::Duration last_step;
  double prefill_tokens_per_s = 0;  // moving average
};

// Joins planner, runner and pool: admit, launch, harvest. RunOnce applies one step; where the
// runner can, it first queues the next, so that the device never waits for the host, which is one
// step behind. Engine thread (or the simulator's). "Between steps" is everywhere outside RunOnce
// and inside the observer's calls; with a step in flight, calls that touch a slot wait for it.
class EngineLoop final : public SequenceTable {
 public:
  // `layout` tells how large a parked sequence's tail is.
  EngineLoop(PagePool& pool, StepPlanner& planner, StepRunner& runner, const Clock& clock,
             const kernels::PageLayout& layout);
  ~EngineLoop() override;

  void SetObserver(LoopObserver* observer) { observer_ = observer; }
  // Called when a grant finds too few free pages: uncaches at least `pages` pages if it can.
  // Without it cached pages are not touched.
  void SetReclaimer(std::function<void(int pages)> reclaimer) { reclaimer_ = std::move(reclaimer); }

  // For the masks of a step's sequences; without it they are made one after the other.
  void SetParallelFor(kernels::ParallelFor parallel) { parallel_ = std::move(parallel); }

  // A device slot for a tail, reset; none when all are taken or kept for parked sequences, which
  // come back before anything new lands.
  std::optional<int> TakeTailSlot();
  void ReturnTailSlot(int slot);

  // Takes the sequence: with a tail slot, and pages for `computed` tokens (more are granted from
  // `booking`, then from the pool). It prefills (tokens = the prompt, computed < prompt_tokens), or
  // replays and decodes (tokens = prompt, first token and what else is known; what received[0] has
  // beyond `tokens` is appended). One that is finished by its last token reports that in the next
  // RunOnce.
  void Admit(Sequence sequence, Booking booking);
  // A sequence that stopped at its first token goes on decoding in this engine (mixed mode):
  // `token` is appended. One choice only.
  void Continue(SequenceId sequence, int32_t token);
  // Out of every plan from the next step on; gives back the sequence with its pages and tail slot
  // (none while parked), of which others get what a step in flight uses only when that has ended.
  // Only between steps.
  Sequence Release(SequenceId sequence);
  bool Has(SequenceId sequence) const { return entries_.contains(sequence); }
  bool IsParked(SequenceId sequence) const;
  // It runs no further step and keeps everything until Release. Only between steps, and neither
  // while it is prefilling nor while it is parked.
  void Hold(SequenceId sequence);
  const Sequence& Get(SequenceId id) const override;
  // The tail at `computed` (contracts.md 3.4), sections 1 to 6.
  absl::Status PackTail(SequenceId sequence, std::span<std::byte> wire);
  absl::Status UnpackTail(int tail_slot, uint64_t num_tokens, bool has_drafter_state,
                          std::span<std::byte> wire);

  // Applies at most one step; false if there is nothing to run. An error is the engine's and final.
  absl::StatusOr<bool> RunOnce();

  const LoopCounters& counters() const { return counters_; }
  PagePool& pool() { return pool_; }
  int num_sequences() const { return static_cast<int>(entries_.size()); }
  int num_parked() const { return num_parked_; }
  // Whether the pool counts pages as leased that return when the step in flight ends.
  bool IsKeepingPages() const;
  // Neither parked nor held: whether there is something to do.
  bool HasWork() const { return num_sequences() > num_parked_ + num_held_; }
  int host_pages() const { return host_pages_; }  // of parked sequences

 private:
  struct Entry;
  // What a step in flight uses of a sequence that was released.
  struct Kept {
    std::unique_ptr<Entry> entry;
    PageLease pages;
    int tail_slot = -1;
    bool is_slot_returned = false;
  };
  // A step that was launched, until it is applied.
  struct Flight {
    StepPlan plan;
    absl::Time start;
    uint64_t zeroings = 0;                           // of the pool's, before it
    std::optional<absl::StatusOr<Harvest>> outcome;  // once it was waited for
    std::vector<SequenceId> dropped;  // over, held or released meanwhile: theirs is ignored
    std::vector<Kept> kept;
  };
  // What the observer hears between steps, unless its sequence was released meanwhile.
  struct Notice {
    SequenceId sequence;
    std::function<void(LoopObserver&)> tell;
  };

  Entry& Find(SequenceId id);
  void Notify(SequenceId id, std::function<void(LoopObserver&)> tell);
  void Deliver();
  void FinishOrRun(Entry& entry);
  std::optional<StepPlan> NextPlan();
  absl::StatusOr<bool> Prepare(StepPlan& plan);
  absl::Status Park(Entry& entry);
  absl::Status Resume(Entry& entry);
  bool Grant(Entry& entry, int pages);
  absl::StatusOr<Booking> BookReclaiming(int pages);
  absl::Status StartStep();
  absl::Status GoAhead();
  bool MayBeFollowed(const Flight& flight) const;
  absl::Status Launch(StepPlan plan);
  absl::Status FinishStep();
  // Waits for what is in flight; the next RunOnce applies it, or tells the same error.
  absl::Status AwaitFlights();
  void Await(Flight& flight);
  // What is in flight will not count for the sequence; null if it has no part in that.
  Flight* Drop(SequenceId id);
  void MakeMasks(StepPlan& plan);
  static absl::Status MakeMasksOf(Sequence& sequence, SequenceRun& run, MaskBuffer& buffer);
  void CountMaskFailure(const absl::Status& status);
  void Fail(SequenceId id, absl::Status status);
  void Apply(const SequenceRun& run, SequenceTokens result);
  void ApplyPrefill(Entry& entry, const SequenceRun& run, SequenceTokens& result);
  void ApplyDecode(Entry& entry, const SequenceRun& run, SequenceTokens& result);
  void Count(const StepPlan& plan, absl::Duration elapsed);

  PagePool& pool_;
  StepPlanner& planner_;
  StepRunner& runner_;
  const Clock& clock_;
  const kernels::PageLayout& layout_;
  LoopObserver* observer_ = nullptr;
  std::function<void(int)> reclaimer_;
  kernels::ParallelFor parallel_;
  std::deque<MaskBuffer> mask_buffers_;  // one for each sequence of a step
  std::unordered_map<SequenceId, std::unique_ptr<Entry>> entries_;
  std::vector<int> free_slots_;
  std::vector<Notice> notices_;
  std::deque<Flight> flights_;  // oldest first; two only inside RunOnce
  absl::Time last_finish_ = absl::InfinitePast();
  int num_parked_ = 0, num_held_ = 0, host_pages_ = 0;
  LoopCounters counters_;
  StepId next_step_{1};
};

}  // namespace baton::engine
