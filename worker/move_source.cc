#include "worker/move_source.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/page_name.h"
#include "kernels/tail_header.h"
#include "worker/prefill_job.h"

namespace baton::worker {
namespace {

// A tail of this sequence's own prompt class, which another worker may have computed.
void WriteHeader(const WorkerSetup& setup, const engine::Sequence& moved, const PageName& last_page,
                 std::span<std::byte> tail) {
  WriteTailHeader(setup, static_cast<uint64_t>(moved.computed), 1, last_page, tail);
  absl::StatusOr<kernels::TailHeader> header = kernels::DecodeTailHeader(tail);
  CHECK(header.ok());  // written above
  header->prompt_class = moved.prompt_class;
  kernels::EncodeTailHeader(*header, tail);
}

// Generated pages have a prompt's names only where both are computed alike (contracts.md 1.5).
std::vector<PageName> NamesOf(const WorkerSetup& setup, const engine::Sequence& moved,
                              const std::string& salt) {
  const bool is_one_class = moved.prompt_class == moved.decode_class;
  const int end = is_one_class ? moved.computed : moved.prompt_tokens;
  const std::vector<int32_t> tokens(moved.tokens.begin(), moved.tokens.begin() + end);
  return PromptPageNames(RootName(setup.weights, setup.layout_id, salt), moved.prompt_class,
                         tokens);
}

}  // namespace

MoveSource::MoveSource(const WorkerSetup& setup, const wire::Move& move, SequenceId sequence)
    : setup_(setup), move_(move), sequence_(sequence) {
  CHECK(move_.landing.has_value());
}

uint64_t MoveSource::TailBytes(const WorkerSetup& setup, int num_tokens) {
  return kernels::MakeTailLayout(setup.layout, static_cast<uint64_t>(num_tokens), 1).total_bytes;
}

void MoveSource::Start(engine::Sequence moved, const std::string& salt, int tail_buffer,
                       std::span<std::byte> tail, Effects& out) {
  const auto num_pages = static_cast<uint32_t>(PagesFor(moved.computed));
  CHECK(state_ == MoveState::kWaiting && moved.tokens.size() == size_t(moved.computed) + 1);
  CHECK(moved.pages.size() >= static_cast<int>(num_pages) &&
        tail.size() == TailBytes(setup_, moved.computed));
  state_ = MoveState::kSending;
  tail_buffer_ = tail_buffer;
  const std::vector<PageName> names = NamesOf(setup_, moved, salt);
  const size_t num_full = static_cast<size_t>(moved.computed / kPageTokens);
  const bool is_last_named = num_full > 0 && names.size() == num_full;
  kernels::EncodeFirstToken({.token = moved.tokens.back(), .logprob = 0, .top = {}},
                            tail.last(kernels::kFirstTokenBytes));
  WriteHeader(setup_, moved, is_last_named ? names.back() : PageName{}, tail);

  const wire::Landing& landing = *move_.landing;
  out.commands.push_back(kvtransfer::OpenSend{
      .transfer = move_.transfer,
      .attempt = landing.attempt,
      .secret = landing.secret,
      .address = landing.kv_address,
      .incarnation = landing.incarnation,
      .num_pages = num_pages,
      .layout = setup_.layout_id,
      .window = static_cast<uint16_t>(std::clamp(landing.window, 1u, 65535u))});
  pages_ = std::move(moved.pages);
  pages_.Split(static_cast<int>(num_pages));  // room for what would have come next goes back
  for (uint32_t block = 0; block < num_pages; ++block) {
    out.commands.push_back(
        kvtransfer::OfferBlock{.transfer = move_.transfer,
                               .memory = PageMemory(setup_, block, pages_.ids()[block]),
                               .name = block < names.size() ? names[block] : PageName{}});
  }
  out.commands.push_back(
      kvtransfer::OfferBlock{.transfer = move_.transfer,
                             .memory = TailMemory(setup_, tail_buffer, tail.size()),
                             .name = {}});
  num_unacked_ = num_pages + 1;
}

bool MoveSource::OnAcked() {
  if (state_ != MoveState::kSending) return false;
  return --num_unacked_ == 0;
}

void MoveSource::Stop(Effects& out) {
  if (state_ == MoveState::kWaiting) state_ = MoveState::kReleased;
  if (state_ != MoveState::kSending) return;
  state_ = MoveState::kDraining;
  out.commands.push_back(kvtransfer::CloseSend{move_.transfer});
}

void MoveSource::OnSendReleased() {
  pages_ = engine::PageLease();
  if (state_ == MoveState::kDraining) state_ = MoveState::kReleased;
}

}  // namespace baton::worker
