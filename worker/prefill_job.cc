#include "worker/prefill_job.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/page_name.h"
#include "common/status.h"
#include "kernels/tail_header.h"
#include "worker/landing_table.h"

namespace baton::worker {
namespace {

uint32_t Micros(absl::Duration duration) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Microseconds(duration), 0, UINT32_MAX));
}

// The engine packs zeros into section 2 where its drafter's window is not complete.
bool HasDrafterState(const kernels::TailLayout& layout, std::span<const std::byte> tail) {
  if (layout.mtp_window.empty() || layout.mtp_rows == 0) return true;
  uint64_t end = layout.streams;
  if (!layout.hca_state.empty()) end = layout.hca_state.front();
  if (!layout.csa_open.empty()) end = layout.csa_open.front();
  if (!layout.csa_state.empty()) end = layout.csa_state.front();
  const auto section = tail.subspan(layout.mtp_window.front(), end - layout.mtp_window.front());
  return std::ranges::any_of(section, [](std::byte b) { return b != std::byte{0}; });
}

}  // namespace

absl::Status CheckChoices(const WorkerSetup& setup, uint64_t prompt_tokens, size_t choices) {
  if (choices == 0) return absl::InvalidArgumentError("sequences is empty");
  const uint64_t bytes =
      kernels::MakeTailLayout(setup.layout, prompt_tokens, static_cast<uint32_t>(choices))
          .total_bytes;
  if (bytes <= setup.tail_stride) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "sequences: %d make a tail of %d bytes, a buffer has %d", choices, bytes, setup.tail_stride));
}

absl::Status CheckRun(const WorkerSetup& setup, const wire::Run& run, int pool_pages) {
  if (!setup.serves_prefill)
    return absl::FailedPreconditionError("this worker does not serve prefill");
  RETURN_IF_ERROR(CheckMasks(setup, run.masks));
  const int64_t prompt = run.prompt_tokens;
  if (prompt < 1 || prompt >= setup.limits.max_context) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "prompt_tokens is %d, the context allows 1 to %d", prompt, setup.limits.max_context - 1));
  }
  RETURN_IF_ERROR(CheckChoices(setup, run.prompt_tokens, run.sequences.size()));
  for (const wire::SequenceSpec& sequence : run.sequences)
    RETURN_IF_ERROR(CheckTokens(setup, "received", sequence.received));
  if (!run.prompt_class.IsZero() && run.prompt_class != setup.prompt_class) {
    return absl::FailedPreconditionError(absl::StrFormat("prompt_class %s is not this worker's %s",
                                                         run.prompt_class.Hex(),
                                                         setup.prompt_class.Hex()));
  }
  if (!run.verified_pages.empty() &&
      static_cast<int>(run.verified_pages.size()) != PagesFor(prompt)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("verified_pages has %d bits, %d tokens have %d pages",
                        run.verified_pages.size(), prompt, PagesFor(prompt)));
  }
  if (PagesFor(prompt) > pool_pages) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "a prompt of %d pages exceeds the pool of %d", PagesFor(prompt), pool_pages));
  }
  return absl::OkStatus();
}

void WriteTailHeader(const WorkerSetup& setup, uint64_t num_tokens, uint32_t num_sequences,
                     const PageName& last_full_page, std::span<std::byte> tail) {
  const kernels::TailLayout layout =
      kernels::MakeTailLayout(setup.layout, num_tokens, num_sequences);
  kernels::EncodeTailHeader(
      {.is_boundary = num_sequences == 0,
       .has_no_drafter_state = !setup.has_drafter || !HasDrafterState(layout, tail),
       .num_tokens = num_tokens,
       .layout = setup.layout_id,
       .weights = setup.weights,
       .prompt_class = setup.prompt_class,
       .num_sequences = num_sequences,
       .total_bytes = static_cast<uint32_t>(tail.size()),
       .last_full_page = last_full_page},
      tail);
}

PrefillJob::PrefillJob(const WorkerSetup& setup, SessionId session, const wire::Run& run,
                       bool is_local, absl::Time now)
    : setup_(setup),
      session_(session),
      run_(run),
      is_local_(is_local),
      deadline_(run.remaining_ms ? now + absl::Milliseconds(*run.remaining_ms)
                                 : absl::InfiniteFuture()),
      prompt_(run.prompt_tokens) {
  tail_bytes_ = kernels::MakeTailLayout(setup.layout, run.prompt_tokens,
                                        static_cast<uint32_t>(run.sequences.size()))
                    .total_bytes;
}

absl::Status PrefillJob::AddPrompt(const wire::PromptChunk& chunk, absl::Time now) {
  if (state_ != JobState::kAccepted) return absl::OkStatus();
  const bool was_complete = prompt_.IsComplete();
  RETURN_IF_ERROR(prompt_.Append(chunk));
  if (!was_complete && prompt_.IsComplete()) CompletePrompt(now);
  return absl::OkStatus();
}

void PrefillJob::AssignPrompt(const std::vector<int32_t>& tokens, absl::Time now) {
  prompt_.Assign(tokens);
  if (prompt_.IsComplete()) CompletePrompt(now);
}

void PrefillJob::CompletePrompt(absl::Time now) {
  completed_at_ = now;
  names_ = PromptPageNames(RootName(setup_.weights, setup_.layout_id, run_.salt),
                           setup_.prompt_class, prompt_.tokens());
}

bool PrefillJob::IsVerified(uint32_t block) const {
  return block < run_.verified_pages.size() && run_.verified_pages[block];
}

void PrefillJob::Start(SequenceId sequence, std::span<const PageId> cached, int tail_buffer,
                       absl::Time now, Effects& out) {
  CHECK(IsRunnable());
  state_ = JobState::kComputing;
  sequence_ = sequence;
  tail_buffer_ = tail_buffer;
  started_at_ = now;
  cached_tokens_ = computed_ = static_cast<int>(cached.size()) * kPageTokens;
  if (is_local_) return;
  const auto num_pages = static_cast<uint32_t>(PagesFor(run_.prompt_tokens));
  num_expected_ = num_pages + 1;
  for (uint32_t i = 0; i < num_pages; ++i) num_expected_ -= IsVerified(i) ? 1 : 0;
  is_send_open_ = true;
  out.commands.push_back(kvtransfer::OpenSend{
      .transfer = run_.transfer,
      .attempt = run_.attempt,
      .secret = run_.landing.secret,
      .address = run_.landing.kv_address,
      .incarnation = run_.landing.incarnation,
      .num_pages = num_pages,
      .layout = setup_.layout_id,
      .window = static_cast<uint16_t>(std::clamp(run_.landing.window, 1u, 65535u))});
  OfferPages(cached, static_cast<int>(cached.size()), out);
}

void PrefillJob::OfferPages(std::span<const PageId> pages, int end, Effects& out) {
  for (; next_offer_ < static_cast<uint32_t>(end); ++next_offer_) {
    if (IsVerified(next_offer_)) continue;
    const PageName name = next_offer_ < names_.size() ? names_[next_offer_] : PageName{};
    out.commands.push_back(
        kvtransfer::OfferBlock{.transfer = run_.transfer,
                               .memory = PageMemory(setup_, next_offer_, pages[next_offer_]),
                               .name = name});
  }
}

void PrefillJob::OnChunk(std::span<const PageId> pages, int computed, Effects& out) {
  if (state_ != JobState::kComputing) return;
  computed_ = computed;
  if (is_send_open_) OfferPages(pages, computed / kPageTokens, out);
  has_news_ = true;
  ReportProgress(out);
}

void PrefillJob::OnPromptLogprobs(int first_position, std::vector<TokenRecord> tokens,
                                  Effects& out) {
  if (state_ != JobState::kComputing) return;
  for (size_t done = 0; done < tokens.size();) {
    const size_t end = std::min(tokens.size(), done + wire::kMaxPromptLogprobs);
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(done);
    out.prompt_logprobs.emplace_back(
        session_,
        wire::PromptLogprobs{
            .transfer = run_.transfer,
            .first_position = static_cast<uint32_t>(first_position) + static_cast<uint32_t>(done),
            .tokens = {std::make_move_iterator(begin),
                       std::make_move_iterator(begin + static_cast<std::ptrdiff_t>(end - done))}});
    done = end;
  }
}

void PrefillJob::ReportProgress(Effects& out) {
  const bool is_open = state_ == JobState::kComputing || state_ == JobState::kSending;
  const bool has_news = std::exchange(has_news_, false) && is_open;
  // A grammar that takes long is no reason to try another worker.
  const bool waits_for_masks =
      state_ == JobState::kAccepted && masks_ != nullptr && !masks_->IsReady();
  if (!has_news && !waits_for_masks) return;
  out.To(session_).progress.push_back({.transfer = run_.transfer,
                                       .attempt = run_.attempt,
                                       .computed_tokens = static_cast<uint32_t>(computed_),
                                       .acked_blocks = num_acked_});
}

void PrefillJob::OnFirstTokens(engine::PageLease pages, std::span<std::byte> tail,
                               const std::vector<TokenRecord>& tokens, absl::Time now,
                               Effects& out) {
  CHECK(state_ == JobState::kComputing && tail.size() == tail_bytes_ &&
        tokens.size() == run_.sequences.size());
  state_ = JobState::kSending;
  computed_ = num_tokens();
  out.To(session_).first_tokens.push_back({.transfer = run_.transfer,
                                           .attempt = run_.attempt,
                                           .tokens = tokens,
                                           .cached_tokens = static_cast<uint32_t>(cached_tokens_),
                                           .queue_us = Micros(started_at_ - completed_at_),
                                           .prefill_us = Micros(now - started_at_)});
  const uint64_t entries = tail_bytes_ - tokens.size() * kernels::kFirstTokenBytes;
  for (size_t i = 0; i < tokens.size(); ++i) {
    kernels::EncodeFirstToken(tokens[i], tail.subspan(entries + i * kernels::kFirstTokenBytes,
                                                      kernels::kFirstTokenBytes));
  }
  WriteTailHeader(setup_, run_.prompt_tokens, static_cast<uint32_t>(tokens.size()),
                  names_.empty() ? PageName{} : names_.back(), tail);
  pages_ = std::move(pages);
  if (!is_send_open_) return;
  OfferPages(pages_.ids(), PagesFor(num_tokens()), out);
  out.commands.push_back(
      kvtransfer::OfferBlock{.transfer = run_.transfer,
                             .memory = TailMemory(setup_, *tail_buffer_, tail_bytes_),
                             .name = {}});
  CompleteIfAcked(out);
}

void PrefillJob::OnAcked(uint32_t block, Effects& out) {
  (void)block;  // the sender says each once
  ++num_acked_;
  has_news_ = true;
  CompleteIfAcked(out);
}

void PrefillJob::CompleteIfAcked(Effects& out) {
  if (state_ != JobState::kSending || num_acked_ < num_expected_) return;
  out.To(session_).prefilled.push_back({.transfer = run_.transfer, .attempt = run_.attempt});
  Stop(std::move(pages_), out);
}

void PrefillJob::HandOver() {
  CHECK(is_local_ && state_ == JobState::kSending);
  tail_buffer_.reset();
  state_ = JobState::kReleased;
}

void PrefillJob::OnSendReleased() {
  is_send_open_ = false;
  pages_ = engine::PageLease();
  if (state_ == JobState::kDraining) state_ = JobState::kReleased;
}

bool PrefillJob::DropChoice(std::optional<uint32_t> index) {
  if (!index) return true;
  if (*index < run_.sequences.size()) dropped_.insert(*index);
  return dropped_.size() == run_.sequences.size();
}

void PrefillJob::Stop(engine::PageLease pages, Effects& out) {
  if (state_ == JobState::kDraining || state_ == JobState::kReleased) return;
  if (pages.size() > 0) pages_ = std::move(pages);
  if (is_send_open_) {
    state_ = JobState::kDraining;
    out.commands.push_back(kvtransfer::CloseSend{run_.transfer});
    return;
  }
  pages_ = engine::PageLease();
  state_ = JobState::kReleased;
}

void PrefillJob::Fail(const absl::Status& status, engine::PageLease pages, Effects& out) {
  if (state_ == JobState::kDraining || state_ == JobState::kReleased) return;
  out.Fail(session_, run_.transfer, status);
  Stop(std::move(pages), out);
}

bool PrefillJob::Keeps(PageId page) const {
  return std::ranges::find(pages_.ids(), page) != pages_.ids().end();
}

int PrefillJob::num_left() const {
  const bool is_before = state_ == JobState::kAccepted || state_ == JobState::kComputing;
  return is_before ? num_tokens() - computed_ : 0;
}

}  // namespace baton::worker
