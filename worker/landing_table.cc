#include "worker/landing_table.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/tail_header.h"
#include "worker/prefill_job.h"

namespace baton::worker {
namespace {

using kvtransfer::BlockMemory;

constexpr int kDraftRoom =
    8;  // a running sequence owns room for 2 (k + 1) tokens more, k <= 3 (contracts.md 6)

}  // namespace

std::vector<int32_t> KnownTokens(const LandingSequence& sequence) {
  std::vector<int32_t> known = sequence.spec.received;
  if (known.empty() || sequence.lands_received) known.push_back(sequence.first.token);
  return known;
}

uint32_t LandedTokens(const wire::Reserve& request) {
  if (!request.lands_received || request.sequences.empty()) return request.prompt_tokens;
  return request.prompt_tokens + static_cast<uint32_t>(request.sequences[0].received.size());
}

std::optional<wire::Finished> FinishOf(SequenceHandle handle, const std::vector<int32_t>& generated,
                                       const FinishRules& rules) {
  const bool stops =
      std::ranges::find(rules.stop_tokens, generated.back()) != rules.stop_tokens.end();
  if (stops)
    return wire::Finished{
        .handle = handle, .reason = FinishReason::kStop, .stop_token = generated.back()};
  if (static_cast<int64_t>(generated.size()) < rules.max_tokens) return std::nullopt;
  return wire::Finished{.handle = handle, .reason = FinishReason::kLength};
}

Landing::Landing(SessionId owner, wire::Reserve reserve)
    : session(owner),
      request(std::move(reserve)),
      num_tokens(LandedTokens(request)),
      prompt(request.prompt_tokens),
      sequences(request.sequences.size()) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].spec = request.sequences[i];
    sequences[i].lands_received = request.lands_received;
  }
}

LandingTable::LandingTable(const WorkerSetup& setup, engine::PagePool& pool, TailBuffers& tails,
                           Rng& rng, MakeRoom make_room)
    : setup_(setup), pool_(pool), tails_(tails), rng_(rng), make_room_(std::move(make_room)) {}

absl::Status LandingTable::CheckReserve(const wire::Reserve& request) const {
  if (!setup_.serves_decode)
    return absl::FailedPreconditionError("this worker does not serve decode");
  RETURN_IF_ERROR(CheckMasks(setup_, request.masks));
  const int64_t prompt = request.prompt_tokens;
  if (prompt < 1 || prompt >= setup_.limits.max_context) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "prompt_tokens is %d, the context allows 1 to %d", prompt, setup_.limits.max_context - 1));
  }
  const uint32_t landed = LandedTokens(request);
  if (request.lands_received && request.sequences.size() != 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "lands_received with %d sequences, only one can move", request.sequences.size()));
  }
  if (static_cast<int>(request.num_pages) != PagesFor(landed)) {
    return absl::InvalidArgumentError(absl::StrFormat("num_pages is %d, %d tokens have %d",
                                                      request.num_pages, landed, PagesFor(landed)));
  }
  if (!request.decode_class.IsZero() && request.decode_class != setup_.decode_class) {
    return absl::FailedPreconditionError(absl::StrFormat("decode_class %s is not this worker's %s",
                                                         request.decode_class.Hex(),
                                                         setup_.decode_class.Hex()));
  }
  RETURN_IF_ERROR(CheckChoices(setup_, landed, request.sequences.size()));
  for (const wire::SequenceSpec& sequence : request.sequences) {
    RETURN_IF_ERROR(CheckTokens(setup_, "received", sequence.received));
    if (prompt + static_cast<int64_t>(sequence.received.size()) < setup_.limits.max_context)
      continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("received has %d tokens after a prompt of %d, the context is %d",
                        sequence.received.size(), prompt, setup_.limits.max_context));
  }
  if (landings_.contains(request.transfer)) {
    return absl::UnavailableError(
        absl::StrFormat("transfer %s is still open here", request.transfer.Hex()));
  }
  const int wanted = num_open_sequences() + static_cast<int>(request.sequences.size());
  if (wanted > setup_.limits.max_sequences) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%d sequences would be open, the limit is %d", wanted, setup_.limits.max_sequences));
  }
  return absl::OkStatus();
}

int LandingTable::HeadroomPages(const wire::Reserve& request, size_t index) const {
  const int64_t prompt = request.prompt_tokens;
  const int64_t received = static_cast<int64_t>(request.sequences[index].received.size());
  const int64_t room = setup_.limits.max_context - prompt;
  const int prompt_pages = static_cast<int>(request.num_pages);
  const int at_end = PagesFor(prompt + std::min(request.finish.max_tokens, room) + kDraftRoom);
  const int at_start = PagesFor(prompt + received + kDraftRoom);
  const int headroom = std::min(at_end - prompt_pages, setup_.limits.headroom_pages);
  const bool copies_partial = index > 0 && prompt % kPageTokens != 0;
  return std::max(headroom, at_start - prompt_pages) + (copies_partial ? 1 : 0);
}

absl::Status LandingTable::CheckHandles(SessionId session, const wire::Reserve& request) {
  std::unordered_set<uint32_t> handles;
  for (const wire::SequenceSpec& sequence : request.sequences) {
    const bool is_new = handles.insert(sequence.handle.value).second;
    if (is_new && !Find(session, sequence.handle)) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "sequences: handle %d is in use in this session already", sequence.handle.value));
  }
  return absl::OkStatus();
}

absl::Status LandingTable::Book(Landing& landing) {
  const wire::Reserve& request = landing.request;
  const int prompt_pages = static_cast<int>(request.num_pages);
  std::vector<int> headroom;
  for (size_t i = 0; i < landing.sequences.size(); ++i)
    headroom.push_back(HeadroomPages(request, i));
  if (tails_.num_free() == 0) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("all %d tail buffers are in use", tails_.total()));
  }
  make_room_(std::accumulate(headroom.begin(), headroom.end(), prompt_pages));
  ASSIGN_OR_RETURN(landing.booking, pool_.Book(prompt_pages));
  for (size_t i = 0; i < landing.sequences.size(); ++i) {
    ASSIGN_OR_RETURN(landing.sequences[i].booking, pool_.Book(headroom[i]));
  }
  landing.agent_tail = tails_.Take();
  return absl::OkStatus();
}

// What a move's target has received is taken at once, so that no step of the engine has to.
absl::Status LandingTable::StartMasks(Landing& landing) {
  const wire::Reserve& request = landing.request;
  if (request.masks.IsEmpty()) return absl::OkStatus();
  std::vector<std::vector<int32_t>> taken(request.sequences.size());
  if (request.lands_received) taken[0] = request.sequences[0].received;
  ASSIGN_OR_RETURN(auto masks, setup_.masks->Start(request.masks, std::move(taken)));
  for (size_t i = 0; i < masks.size(); ++i) landing.sequences[i].masks = std::move(masks[i]);
  return absl::OkStatus();
}

void LandingTable::Reserve(SessionId session, const wire::Reserve& request, Effects& out) {
  absl::Status status = CheckReserve(request);
  Landing landing(session, request);
  if (status.ok()) status = CheckHandles(session, request);
  bool lacks_grammar_room = false;
  if (status.ok()) {
    status = StartMasks(landing);
    lacks_grammar_room = absl::IsResourceExhausted(status);
  }
  if (status.ok()) status = Book(landing);
  if (!status.ok()) {
    const bool is_full = status.code() == absl::StatusCode::kResourceExhausted;
    const auto retry = is_full ? absl::ToInt64Milliseconds(setup_.limits.retry_after) : 0;
    out.Refuse(session, {.transfer = request.transfer,
                         .stage = wire::Stage::kReserve,
                         .code = status.code(),
                         .message = std::string(status.message()),
                         .retry_after_ms = static_cast<uint32_t>(retry),
                         .lacks_grammar_room = lacks_grammar_room});
    return;
  }
  const int64_t room = setup_.limits.max_context - int64_t{request.prompt_tokens};
  landing.request.finish.max_tokens = std::min(landing.request.finish.max_tokens, room);
  landing.secret = rng_.DrawBytes<Secret>();
  landing.verified.resize(request.num_pages);
  const auto num_sequences = static_cast<uint32_t>(request.sequences.size());
  landing.tail_bytes =
      kernels::MakeTailLayout(setup_.layout, landing.num_tokens, num_sequences).total_bytes;
  landing.is_agent_open = true;
  const auto window = static_cast<uint16_t>(setup_.limits.window);
  out.commands.push_back(kvtransfer::OpenLanding{.transfer = request.transfer,
                                                 .attempt = landing.attempt,
                                                 .secret = landing.secret,
                                                 .num_pages = request.num_pages,
                                                 .page_bytes = setup_.layout.payload_bytes(),
                                                 .tail_bytes = landing.tail_bytes,
                                                 .layout = setup_.layout_id,
                                                 .window = window});
  out.To(session).reserved.push_back({.transfer = request.transfer,
                                      .landing = {.attempt = landing.attempt,
                                                  .secret = landing.secret,
                                                  .incarnation = setup_.incarnation,
                                                  .kv_address = setup_.kv_address,
                                                  .num_ranks = 1,
                                                  .window = window}});
  auto [it, is_new] = landings_.emplace(request.transfer, std::move(landing));
  CHECK(is_new);
  Landing& stored = it->second;
  AddTailCredit(request.transfer, stored, out);
  AddCredit(request.transfer, stored, out);
}

void LandingTable::AddTailCredit(const TransferId& transfer, Landing& landing, Effects& out) {
  const BlockMemory tail = TailMemory(setup_, *landing.agent_tail, setup_.tail_stride);
  out.commands.push_back(kvtransfer::AddCredit{.transfer = transfer, .memory = {tail}});
}

void LandingTable::AddCredit(const TransferId& transfer, Landing& landing, Effects& out) {
  const auto missing = static_cast<int>(landing.request.num_pages - landing.num_verified);
  const int held = static_cast<int>(landing.credit.size());
  const int wanted = std::min({setup_.limits.window, missing}) - held;
  const int given = std::min(wanted, landing.booking.remaining());
  if (given <= 0) return;
  kvtransfer::AddCredit credit{.transfer = transfer, .memory = {}};
  engine::PageLease lease = pool_.Take(landing.booking, given);
  while (lease.size() > 0) {
    engine::PageLease rest = lease.Split(1);
    const PageId page = lease.ids()[0];
    credit.memory.push_back(PageMemory(setup_, 0, page));
    landing.credit.emplace(page, std::move(lease));
    lease = std::move(rest);
  }
  out.commands.push_back(std::move(credit));
}

Landing* LandingTable::FindOpen(const TransferId& transfer) {
  auto it = landings_.find(transfer);
  if (it == landings_.end()) return nullptr;
  const LandingState state = it->second.state;
  const bool is_open = state == LandingState::kReserved || state == LandingState::kFilling;
  return is_open ? &it->second : nullptr;
}

const Landing* LandingTable::Find(const TransferId& transfer) const {
  auto it = landings_.find(transfer);
  return it == landings_.end() ? nullptr : &it->second;
}

void LandingTable::Retarget(SessionId session, const wire::Retarget& request, Effects& out) {
  auto it = landings_.find(request.transfer);
  const bool is_known = it != landings_.end() && it->second.session == session &&
                        it->second.state != LandingState::kClosing;
  if (!is_known) {
    out.Refuse(session, {.transfer = request.transfer,
                         .stage = wire::Stage::kRetarget,
                         .code = absl::StatusCode::kUnavailable,
                         .message = absl::StrFormat("no landing of transfer %s is open here",
                                                    request.transfer.Hex())});
    return;
  }
  Landing* landing = FindOpen(request.transfer);
  if (landing == nullptr) return;  // verified already: Landed says so
  if (request.attempt > landing->attempt) landing->attempt = request.attempt;
  if (landing->is_agent_open) {
    out.commands.push_back(
        kvtransfer::RetargetLanding{.transfer = request.transfer, .attempt = landing->attempt});
    return;
  }
  // Filled here until now: nothing was verified, and the transfer thread forgot it.
  out.Refuse(session, {.transfer = request.transfer,
                       .stage = wire::Stage::kRetarget,
                       .code = absl::StatusCode::kUnavailable,
                       .message = absl::StrFormat("transfer %s was being filled by this worker",
                                                  request.transfer.Hex())});
}

absl::Status LandingTable::AddPrompt(SessionId session, const wire::PromptChunk& chunk,
                                     absl::Time now, Effects& out) {
  auto it = landings_.find(chunk.transfer);
  if (it == landings_.end() || it->second.session != session) return absl::OkStatus();
  Landing& landing = it->second;
  if (landing.state == LandingState::kClosing) return absl::OkStatus();
  RETURN_IF_ERROR(landing.prompt.Append(chunk));
  if (FindOpen(chunk.transfer) != nullptr) ReadyIfComplete(chunk.transfer, landing, now, out);
  return absl::OkStatus();
}

void LandingTable::On(const kvtransfer::BlockLanded& event, absl::Time now, Effects& out) {
  Landing* landing = FindOpen(event.transfer);
  if (landing == nullptr || landing->is_local)
    return;  // the close is on its way to the transfer thread
  landing->state = LandingState::kFilling;
  landing->first_block_at = std::min(landing->first_block_at, now);
  const uint32_t block = event.memory.block;
  if (block == kTailBlock) {
    CHECK(landing->agent_tail == event.memory.memory);
    landing->tail = std::exchange(landing->agent_tail, std::nullopt);
  } else {
    auto it = landing->credit.find(event.memory.memory);
    CHECK(it != landing->credit.end() && block < landing->request.num_pages);
    CHECK(landing->verified[block].size() == 0);
    landing->verified[block] = std::move(it->second);
    landing->credit.erase(it);
    ++landing->num_verified;
    AddCredit(event.transfer, *landing, out);
  }
  ReadyIfComplete(event.transfer, *landing, now, out);
}

void LandingTable::On(const kvtransfer::LandingRetargeted& event, Effects& out) {
  Landing* landing = FindOpen(event.transfer);
  if (landing == nullptr) return;
  if (landing->is_agent_open) ReplaceQuarantined(event.transfer, *landing, event.quarantined, out);
  if (event.attempt != landing->attempt) return;
  out.To(landing->session)
      .retargeted.push_back(
          {.transfer = event.transfer, .attempt = event.attempt, .verified_pages = event.verified});
}

// What an earlier attempt may still write into is out of the landing's hands: the new attempt gets
// other memory at once where there is some, else what comes back first.
void LandingTable::ReplaceQuarantined(const TransferId& transfer, Landing& landing,
                                      std::span<const BlockMemory> memory, Effects& out) {
  for (const BlockMemory& piece : memory) {
    if (piece.block == kTailBlock) {
      if (landing.agent_tail != piece.memory) continue;  // by an answer before this one
      landing.quarantined_tails.push_back(*std::exchange(landing.agent_tail, std::nullopt));
      continue;
    }
    auto it = landing.credit.find(piece.memory);
    if (it == landing.credit.end()) continue;
    landing.quarantined.insert(piece.memory);
    pool_.Quarantine(std::move(it->second));
    landing.credit.erase(it);
    ++landing.num_owed;
  }
  if (!GiveOwed(transfer, landing, out)) starved_.insert(transfer);
}

bool LandingTable::GiveOwed(const TransferId& transfer, Landing& landing, Effects& out) {
  BookOwed(landing);
  AddCredit(transfer, landing, out);
  if (!landing.agent_tail && !landing.tail) {
    landing.agent_tail = tails_.Take();
    if (landing.agent_tail) AddTailCredit(transfer, landing, out);
  }
  return landing.num_owed == 0 && (landing.agent_tail || landing.tail);
}

int LandingTable::num_owed() const {
  int owed = 0;
  for (const TransferId& transfer : starved_)
    if (const Landing* landing = Find(transfer); landing != nullptr && landing->is_agent_open)
      owed += landing->num_owed;
  return owed;
}

void LandingTable::ReplaceOwed(Effects& out) {
  std::erase_if(starved_, [&](const TransferId& transfer) {
    Landing* landing = FindOpen(transfer);
    return landing == nullptr || !landing->is_agent_open || GiveOwed(transfer, *landing, out);
  });
}

void LandingTable::BookOwed(Landing& landing) {
  while (landing.num_owed > 0) {
    absl::StatusOr<engine::Booking> page = pool_.Book(1);
    if (!page.ok()) return;
    landing.booking.Add(*std::move(page));
    --landing.num_owed;
  }
}

void LandingTable::On(const kvtransfer::LandingFailed& event, Effects& out) {
  Landing* landing = FindOpen(event.transfer);
  if (landing == nullptr || event.attempt != landing->attempt || landing->is_local) return;
  out.Fail(landing->session, event.transfer, event.status);  // the router retargets or cancels
}

void LandingTable::On(const kvtransfer::MemoryReturned& event, Effects& out) {
  auto it = landings_.find(event.transfer);
  if (it == landings_.end()) return;
  if (event.memory.block == kTailBlock) {
    ReturnTail(event.transfer, it->second, event.memory.memory, out);
  } else {
    ReturnPage(event.transfer, it->second, event.memory.memory, out);
  }
}

void LandingTable::ReturnTail(const TransferId& transfer, Landing& landing, int buffer,
                              Effects& out) {
  const bool can_use = landing.is_agent_open && FindOpen(transfer) != nullptr;
  if (std::erase(landing.quarantined_tails, buffer) > 0) {
    if (!can_use || landing.agent_tail || landing.tail) return tails_.Return(buffer);
    landing.agent_tail = buffer;
    return AddTailCredit(transfer, landing, out);
  }
  if (landing.agent_tail != buffer) return;  // verified: ours already
  if (can_use) return AddTailCredit(transfer, landing, out);
  tails_.Return(*std::exchange(landing.agent_tail, std::nullopt));
}

void LandingTable::ReturnPage(const TransferId& transfer, Landing& landing, PageId page,
                              Effects& out) {
  const bool can_use = landing.is_agent_open && FindOpen(transfer) != nullptr;
  if (landing.quarantined.erase(page) > 0) {
    ReturnQuarantined(landing, page);
    if (can_use) AddCredit(transfer, landing, out);
    return;
  }
  // A failed block's page: the next block overwrites every byte a page may hold.
  if (!can_use || !landing.credit.contains(page)) return;
  const BlockMemory memory = PageMemory(setup_, 0, page);
  out.commands.push_back(kvtransfer::AddCredit{.transfer = transfer, .memory = {memory}});
}

void LandingTable::ReturnQuarantined(Landing& landing, PageId page) {
  pool_.ReturnQuarantined(page);
  const bool is_filling =
      landing.state == LandingState::kReserved || landing.state == LandingState::kFilling;
  if (!is_filling || landing.num_owed == 0) return;
  landing.booking.Add(*pool_.Book(1));  // the page just returned is free
  --landing.num_owed;
}

void LandingTable::On(const kvtransfer::LandingClosed& event) {
  auto it = landings_.find(event.transfer);
  if (it == landings_.end()) return;
  Landing& landing = it->second;
  landing.is_agent_closed = true;
  for (const PageId page : landing.quarantined) ReturnQuarantined(landing, page);
  landing.quarantined.clear();
  for (const int buffer : landing.quarantined_tails) tails_.Return(buffer);
  landing.quarantined_tails.clear();
  if (landing.agent_tail) tails_.Return(*std::exchange(landing.agent_tail, std::nullopt));
  EraseIfQuiet(event.transfer);
}

}  // namespace baton::worker
