#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "engine/grammar/mask_maker.h"
#include "engine/pages/page_pool.h"
#include "engine/pages/sequence.h"
#include "proto/wire.h"
#include "worker/effects.h"
#include "worker/prompt_buffer.h"
#include "worker/setup.h"

namespace baton::worker {

enum class JobState { kAccepted, kComputing, kSending, kDraining, kReleased };

// One attempt of one prompt at its source: the state machine of contracts.md 4.4, without I/O and
// clock. A local job fills a landing of this worker: it computes, and sends nothing. Engine thread.
class PrefillJob {
 public:
  PrefillJob(const WorkerSetup& setup, SessionId session, const wire::Run& run, bool is_local,
             absl::Time now);
  // For the first token of every choice; null: none. It does not run before they are made.
  void SetMasks(std::shared_ptr<engine::PendingMasks> masks) { masks_ = std::move(masks); }

  // kInvalidArgument: a protocol violation.
  absl::Status AddPrompt(const wire::PromptChunk& chunk, absl::Time now);
  void AssignPrompt(const std::vector<int32_t>& tokens, absl::Time now);
  bool IsRunnable() const {
    return state_ == JobState::kAccepted && prompt_.IsComplete() &&
           (masks_ == nullptr || masks_->IsReady());
  }

  // Accepted -> Computing: its sequence is in the engine, with these cached pages from the start,
  // which are offered at once.
  void Start(SequenceId sequence, std::span<const PageId> cached, int tail_buffer, absl::Time now,
             Effects& out);
  // The sequence has these pages and rows below `computed`: its sealed pages are offered.
  void OnChunk(std::span<const PageId> pages, int computed, Effects& out);
  // The prompt's tokens from `first_position` on with their logprobs, ascending from 1 over the
  // chunks (contracts.md 5); before the OnChunk of the same rows.
  void OnPromptLogprobs(int first_position, std::vector<TokenRecord> tokens, Effects& out);
  // Computing -> Sending. `tail` holds sections 1 to 6; the header and the first tokens are added,
  // then it is offered last.
  void OnFirstTokens(engine::PageLease pages, std::span<std::byte> tail,
                     const std::vector<TokenRecord>& tokens, absl::Time now, Effects& out);
  void OnAcked(uint32_t block, Effects& out);
  void OnSendReleased();
  // Tells the router what was computed and acked since the last time, if anything, or that the
  // masks are being made.
  void ReportProgress(Effects& out);

  // One choice is not wanted any more; true when none is.
  bool DropChoice(std::optional<uint32_t> index);
  // -> Draining. `pages` are the sequence's, if it was computing: they stay until the transport
  // reads nothing any more.
  void Stop(engine::PageLease pages, Effects& out);
  // The same, and the router hears why.
  void Fail(const absl::Status& status, engine::PageLease pages, Effects& out);
  // Local: the landing has the pages and the tail buffer.
  void HandOver();

  JobState state() const { return state_; }
  SessionId session() const { return session_; }
  const wire::Run& run() const { return run_; }
  engine::PendingMasks* masks() const { return masks_.get(); }
  const std::vector<int32_t>& prompt() const { return prompt_.tokens(); }
  const std::vector<PageName>& names() const { return names_; }
  SequenceId sequence() const { return sequence_; }
  std::optional<int> tail_buffer() const { return tail_buffer_; }
  bool is_local() const { return is_local_; }
  absl::Time deadline() const { return deadline_; }
  absl::Time completed_at() const { return completed_at_; }
  int num_tokens() const { return static_cast<int>(run_.prompt_tokens); }
  // Prompt tokens that are still to be computed.
  int num_left() const;
  int computed() const { return computed_; }
  // Among the pages it keeps for sending.
  bool Keeps(PageId page) const;
  uint64_t tail_bytes() const { return tail_bytes_; }

 private:
  void CompletePrompt(absl::Time now);
  void OfferPages(std::span<const PageId> pages, int end, Effects& out);
  bool IsVerified(uint32_t block) const;
  void CompleteIfAcked(Effects& out);

  const WorkerSetup& setup_;
  const SessionId session_;
  const wire::Run run_;
  const bool is_local_;
  std::shared_ptr<engine::PendingMasks> masks_;
  const absl::Time deadline_;
  JobState state_ = JobState::kAccepted;
  PromptBuffer prompt_;
  std::vector<PageName> names_;  // of the prompt's full pages
  SequenceId sequence_;
  std::optional<int> tail_buffer_;
  uint64_t tail_bytes_ = 0;
  engine::PageLease pages_;  // while sending and draining
  std::set<uint32_t> dropped_;
  bool is_send_open_ = false;
  bool has_news_ = false;      // for the next Progress
  uint32_t next_offer_ = 0;    // pages below it are offered or were verified before
  uint32_t num_expected_ = 0;  // blocks to be acked
  uint32_t num_acked_ = 0;
  int cached_tokens_ = 0;
  int computed_ = 0;
  absl::Time completed_at_, started_at_;
};

// kInvalidArgument when no tail buffer has room for that many first tokens.
absl::Status CheckChoices(const WorkerSetup& setup, uint64_t prompt_tokens, size_t choices);

// Why this worker cannot run a prompt, by field, value and limit.
absl::Status CheckRun(const WorkerSetup& setup, const wire::Run& run, int pool_pages);

// Writes the header of a tail whose sections 1 to 6 are packed; `num_sequences` 0: a boundary tail.
void WriteTailHeader(const WorkerSetup& setup, uint64_t num_tokens, uint32_t num_sequences,
                     const PageName& last_full_page, std::span<std::byte> tail);

}  // namespace baton::worker
