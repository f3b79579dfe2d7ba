// Prompts into the engine: what the prefix cache has of them, what it keeps of them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/log.h"
#include "kernels/tail_header.h"
#include "worker/worker_core.h"

namespace baton::worker {

int WorkerCore::NumJobs(JobState state) const {
  return static_cast<int>(std::ranges::count_if(
      jobs_, [&](const auto& entry) { return entry.second->state() == state; }));
}

PrefillJob* WorkerCore::NextJob() {
  PrefillJob* best = nullptr;
  for (const TransferId& transfer : job_order_) {
    auto it = jobs_.find(transfer);
    if (it == jobs_.end() || !it->second->IsRunnable()) continue;
    PrefillJob* job = it->second.get();
    const bool is_better =
        best == nullptr || job->run().priority < best->run().priority ||
        (job->run().priority == best->run().priority && job->deadline() < best->deadline());
    if (is_better) best = job;
  }
  return best;
}

// The router has compiled the grammar, so it is rare.
bool WorkerCore::FailMaskless() {
  std::vector<PrefillJob*> failed;
  for (const auto& [transfer, job] : jobs_) {
    const engine::PendingMasks* masks = job->masks();
    const bool is_waiting = job->state() == JobState::kAccepted && masks != nullptr;
    if (is_waiting && masks->IsReady() && !masks->status().ok()) failed.push_back(job.get());
  }
  for (PrefillJob* job : failed) {
    const absl::Status status = job->masks()->status();
    if (engine::IsMaskFailure(status)) ++counters_.mask_failures;
    StopJob(*job, &status);
  }
  return !failed.empty();
}

bool WorkerCore::StartJobs() {
  bool has_progress = FailMaskless();
  int budget = setup_.limits.checked_pages_per_round;
  while (starting_ || PrepareJob()) {
    has_progress = true;
    if (!CheckStarting(budget)) {
      DropStarting();  // and looks again, with what is left in the cache
      continue;
    }
    if (starting_->num_checked < starting_->match.pages.ids().size()) break;  // the next round
    StartJob();
  }
  return has_progress;
}

bool WorkerCore::PrepareJob() {
  if (static_cast<int>(computing_.size()) >= setup_.limits.max_computing_prompts) return false;
  const PrefillJob* job = NextJob();
  if (job == nullptr || tails_.num_free() == 0) return false;
  const wire::Run& run = job->run();
  StartingPrompt starting{.transfer = run.transfer, .match = {}, .booking = {}};
  if (!run.prompt_logprobs)  // every position is to be computed
    starting.match = cache_.Lookup(job->names(), (job->num_tokens() - 1) / kPageTokens);
  const int needed = PagesFor(job->num_tokens()) - starting.match.pages.size();
  const int has = job->is_local() ? landings_.NumLocalBooked(run.transfer) : 0;
  const int lacking = std::max(needed - has, 0);
  cache_.MakeRoom(lacking);
  absl::StatusOr<engine::Booking> booking = loop_.pool().Book(lacking);
  if (!booking.ok()) return false;  // pages come back as sequences end
  const std::optional<int> slot = loop_.TakeTailSlot();
  if (!slot) return false;
  starting.booking = *std::move(booking);
  starting.tail_slot = *slot;
  starting.tail_buffer = *tails_.Take();
  starting_ = std::move(starting);
  return true;
}

// False: a page is rotten. Who computes upon it or sends it hears so.
bool WorkerCore::CheckStarting(int& budget) {
  StartingPrompt& starting = *starting_;
  const size_t begin = starting.num_checked;
  const size_t end =
      std::min(starting.match.pages.ids().size(), begin + static_cast<size_t>(budget));
  budget -= static_cast<int>(end - begin);
  starting.num_checked = end;
  if (cache_.Check(jobs_.at(starting.transfer)->names(), starting.match, begin, end)) return true;
  for (const PageId page : cache_.TakeRotten()) FailHolders(page);
  return false;
}

void WorkerCore::FailHolders(PageId page) {
  const absl::Status status = absl::DataLossError(
      absl::StrFormat("cached page %d no longer holds what was put into it", page));
  LogF(LogLevel::kWarn, "page_rotten", "page=%d leases=%d", page, loop_.pool().leases(page));
  for (const auto& [transfer, job] : jobs_) {
    const std::span<const PageId> pages = job->state() == JobState::kComputing
                                              ? loop_.Get(job->sequence()).pages.ids()
                                              : std::span<const PageId>();
    const bool computes_upon = std::ranges::find(pages, page) != pages.end();
    if (computes_upon || job->Keeps(page)) StopJob(*job, &status);
  }
}

void WorkerCore::DropStarting() {
  loop_.ReturnTailSlot(starting_->tail_slot);
  tails_.Return(starting_->tail_buffer);
  starting_.reset();
}

void WorkerCore::StartJob() {
  StartingPrompt starting = *std::exchange(starting_, std::nullopt);
  PrefillJob& job = *jobs_.at(starting.transfer);
  const wire::Run& run = job.run();
  const PrefixMatch& match = starting.match;
  if (job.is_local()) starting.booking.Add(landings_.TakeLocalBooking(run.transfer));
  cache_.Count(match);
  if (match.tail != nullptr) {
    const std::span<std::byte> tail = tails_.Data(starting.tail_buffer, match.tail->size());
    std::memcpy(tail.data(), match.tail->data(), tail.size());
    const absl::StatusOr<kernels::TailHeader> header = kernels::DecodeTailHeader(tail);
    CHECK(header.ok());  // written by this worker
    SetError(loop_.UnpackTail(starting.tail_slot, header->num_tokens, !header->has_no_drafter_state,
                              tail));
  }
  engine::Sequence sequence;
  sequence.id = NewSequence();
  sequence.request_id = run.request_id;
  sequence.choices.clear();
  sequence.received.clear();
  for (const wire::SequenceSpec& spec : run.sequences) {
    sequence.choices.push_back(static_cast<int>(spec.choice));
    sequence.received.push_back(spec.received);
  }
  sequence.tokens = job.prompt();
  sequence.prompt_tokens = job.num_tokens();
  sequence.computed = match.tokens();
  sequence.tail_slot = starting.tail_slot;
  sequence.sampling = run.sampling;
  sequence.finish = run.finish;
  if (job.masks() != nullptr) sequence.masks = job.masks()->Take();
  sequence.prompt_class = setup_.prompt_class;
  sequence.decode_class = setup_.decode_class;
  sequence.deadline = job.deadline();
  sequence.priority = run.priority;
  sequence.tail_interval = setup_.limits.tail_interval;
  if (run.prompt_logprobs) sequence.prompt_logprobs = static_cast<int>(*run.prompt_logprobs);
  job.Start(sequence.id, match.pages.ids(), starting.tail_buffer, clock_.Now(), effects_);
  sequence.pages = std::move(starting.match.pages);
  computing_[sequence.id] = run.transfer;
  std::erase(job_order_, run.transfer);
  loop_.Admit(std::move(sequence), std::move(starting.booking));
}

void WorkerCore::StopJob(PrefillJob& job, const absl::Status* failure) {
  if (starting_ && starting_->transfer == job.run().transfer) DropStarting();
  engine::PageLease pages;
  if (job.state() == JobState::kComputing) {
    computing_.erase(job.sequence());
    pages = ReleaseFromLoop(job.sequence());
  }
  if (failure != nullptr) {
    LogF(LogLevel::kDebug, "prefill_failed", "request=%s transfer=%s attempt=%d error=%s",
         job.run().request_id, job.run().transfer.Hex(), job.run().attempt, failure->ToString());
    job.Fail(*failure, std::move(pages), effects_);
  } else {
    job.Stop(std::move(pages), effects_);
  }
  LoadChanged();
}

void WorkerCore::EraseReleasedJobs() {
  std::erase_if(jobs_, [this](const auto& entry) {
    if (entry.second->state() != JobState::kReleased) return false;
    if (entry.second->tail_buffer()) tails_.Return(*entry.second->tail_buffer());
    std::erase(job_order_, entry.first);
    return true;
  });
  std::erase_if(moves_, [this](const auto& entry) {
    if (entry.second->state() != MoveState::kReleased) return false;
    if (entry.second->tail_buffer()) tails_.Return(*entry.second->tail_buffer());
    return true;
  });
}

void WorkerCore::KeepBoundaryTail(const PrefillJob& job, SequenceId sequence, int computed) {
  const int page = computed / kPageTokens;
  const bool is_boundary = computed > 0 && computed % kPageTokens == 0;
  const bool is_last = page == job.num_tokens() / kPageTokens;
  const int interval = setup_.limits.tail_interval;
  const bool is_due = is_boundary && (is_last || (interval > 0 && page % interval == 0));
  if (!is_due) return;
  const PageName& name = job.names()[static_cast<size_t>(page) - 1];
  if (!cache_.HasPage(name) || cache_.HasTail(name)) return;
  const uint64_t bytes =
      kernels::MakeTailLayout(setup_.layout, static_cast<uint64_t>(computed), 0).total_bytes;
  std::vector<std::byte> tail(bytes);
  if (const absl::Status packed = loop_.PackTail(sequence, tail); !packed.ok())
    return SetError(packed);
  WriteTailHeader(setup_, static_cast<uint64_t>(computed), 0, name, tail);
  cache_.AddTail(name, std::move(tail));
}

void WorkerCore::OnChunk(SequenceId sequence, int computed) {
  PrefillJob* job = JobOf(sequence);
  if (job == nullptr) return;
  const std::span<const PageId> pages = loop_.Get(sequence).pages.ids();
  const auto closed = static_cast<size_t>(computed / kPageTokens);
  const auto closed_before = static_cast<size_t>(job->computed() / kPageTokens);
  cache_.AddPages(std::span(job->names()).first(closed), pages.first(closed), closed_before);
  KeepBoundaryTail(*job, sequence, computed);
  job->OnChunk(pages, computed, effects_);
}

}  // namespace baton::worker
