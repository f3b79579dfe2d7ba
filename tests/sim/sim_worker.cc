#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::sim {
namespace {

using kvtransfer::AgentCommand;
using kvtransfer::AgentEvent;
using kvtransfer::BlockMemory;

constexpr absl::Duration kIdleRound = absl::Milliseconds(100);  // loads are due then
constexpr absl::Duration kShortRound = absl::Microseconds(20);  // a round without a step
constexpr absl::Duration kStepBase = absl::Milliseconds(4);
constexpr absl::Duration kStepPerRow = absl::Microseconds(25);
constexpr int kMaxAgentRounds = 1000;
constexpr int kExtraTailBuffers = 8;

kernels::PageLayout HashLayout() { return kernels::PageLayout(HashLayoutShape()); }

worker::WorkerSetup MakeSetup(const SimWorkerOptions& options, const WorkersSpec& spec) {
  worker::WorkerSetup setup{.worker_id = options.name,
                            .incarnation = options.incarnation,
                            .serves_prefill = options.serves_prefill,
                            .serves_decode = options.serves_decode,
                            .weights = {},
                            .layout_id = HashLayout().Id(),
                            .prompt_class = {},
                            .decode_class = {},
                            .kv_address = options.name,
                            .layout = HashLayout(),
                            .pages_region = {},
                            .tails_region = {},
                            .tail_memory = {},
                            .limits = {}};
  setup.weights.bytes[0] = 1;
  setup.prompt_class.bytes[0] = setup.decode_class.bytes[0] = 1;
  setup.tail_stride = (kernels::MaxTailBytes(setup.layout, 8) + 63) / 64 * 64;
  setup.limits.max_sequences = spec.max_sequences;
  setup.limits.max_computing_prompts = spec.max_computing_prompts;
  setup.limits.max_context = spec.max_context;
  return setup;
}

engine::MixedConfig PlannerConfig(const WorkersSpec& spec) {
  const int batch = std::max(1, spec.max_sequences);
  return {.batch = {.max_sequences = batch, .max_rows = 8 * batch, .num_drafts = 1},
          .chunk = {.chunk_tokens = spec.chunk_tokens},
          .max_rows = 8 * batch + spec.chunk_tokens};
}

}  // namespace

SimWorker::SimWorker(const SimWorkerOptions& options, const WorkersSpec& spec,
                     kvtransfer::InprocNetwork& network, const Clock& clock,
                     worker::SessionSender& sender)
    : cluster_clock_(clock),
      clock_(clock),
      rng_(options.seed),
      setup_(MakeSetup(options, spec)),
      memory_(static_cast<size_t>(options.pages) * setup_.layout.stride_bytes()),
      pool_(memory_.data(), options.pages, setup_.layout.stride_bytes(),
            setup_.layout.payload_bytes()),
      planner_(PlannerConfig(spec)),
      runner_(pool_, setup_.layout, spec.max_sequences + spec.max_computing_prompts,
              [this](int rows) { clock_.Spend(kStepBase + rows * kStepPerRow); }),
      loop_(pool_, planner_, runner_, clock_, setup_.layout),
      transport_(network.Create(options.name, options.incarnation)),
      watch_(clock_, absl::Seconds(2)),
      next_round_(clock.Now()) {
  const int buffers = 2 * spec.max_sequences + spec.max_computing_prompts + kExtraTailBuffers;
  tail_memory_.resize(static_cast<size_t>(buffers) * setup_.tail_stride);
  setup_.tail_memory = tail_memory_;
  setup_.pages_region = *transport_->Register(memory_, kvtransfer::MemoryKind::kHost);
  setup_.tails_region = *transport_->Register(tail_memory_, kvtransfer::MemoryKind::kHost);
  digester_.AddRegion(setup_.pages_region, memory_);
  digester_.AddRegion(setup_.tails_region, tail_memory_);
  agent_ = std::make_unique<kvtransfer::TransferAgent>(
      kvtransfer::AgentConfig{.incarnation = setup_.incarnation, .limits = {}}, *transport_,
      digester_, clock);
  core_ = std::make_unique<worker::WorkerCore>(worker::CoreParts{.setup = setup_,
                                                                 .loop = loop_,
                                                                 .sender = sender,
                                                                 .agent = *this,
                                                                 .watch = watch_,
                                                                 .clock = clock_,
                                                                 .rng = rng_});
}

SimWorker::~SimWorker() = default;

void SimWorker::Wake() { next_round_ = std::min(next_round_, clock_.Now()); }

void SimWorker::Apply(worker::SessionEvent event) {
  core_->Apply(std::move(event));
  Wake();
}

void SimWorker::Drain() {
  core_->Drain();
  Wake();
}

bool SimWorker::SpoilPage(Rng& rng) {
  std::vector<PageId> leased;
  for (PageId page = 0; page < pool_.Counts().total; ++page)
    if (pool_.leases(page) > 0 && !bound_.contains(page)) leased.push_back(page);
  if (leased.empty()) return false;
  pool_.Data(leased[rng.Below(leased.size())])[rng.Below(sizeof(uint64_t))] ^= std::byte{4};
  return true;
}

absl::Time SimWorker::NextAgentTimer() const {
  return agent_->MustPoll() ? cluster_clock_.Now() + kShortRound : agent_->NextTimer();
}

void SimWorker::RunAgent() {
  for (int i = 0; i < kMaxAgentRounds; ++i) {
    if (agent_->RunOnce() == 0) return;
    Wake();
  }
  violation_ = "the transfer agent never comes to rest";
}

void SimWorker::RunRound() {
  // Seldom, since a step follows another only with as many drafts.
  if (rng_.Below(4) == 0)
    planner_.SetNumDrafts(static_cast<int>(rng_.Below(engine::kMaxDrafts + 1)));
  const absl::StatusOr<bool> ran = core_->RunOnce();
  if (!ran.ok()) error_ = ran.status();
  const absl::Duration pause = ran.ok() && *ran ? kShortRound : kIdleRound;
  next_round_ = std::max(clock_.Now(), cluster_clock_.Now() + pause);
  RunAgent();
}

absl::Status SimWorker::Execute(AgentCommand command) {
  if (const auto* credit = std::get_if<kvtransfer::AddCredit>(&command)) NoteCredit(*credit);
  const auto* offer = std::get_if<kvtransfer::OfferBlock>(&command);
  if (offer != nullptr && offer->memory.block != kTailBlock)
    sending_[offer->transfer].insert(offer->memory.memory);
  agent_->Execute(std::move(command));
  return absl::OkStatus();
}

void SimWorker::NoteCredit(const kvtransfer::AddCredit& credit) {
  for (const BlockMemory& memory : credit.memory) {
    if (memory.block == kTailBlock) continue;
    const bool is_new = bound_.insert(memory.memory).second;
    // Quarantined: the landing was closed in the same round, and its CloseLanding follows.
    const bool is_held = pool_.leases(memory.memory) == 1 || pool_.IsQuarantined(memory.memory);
    if (is_new && is_held) continue;
    violation_ = absl::StrFormat("transfer %s gets page %d as credit: %d leases%s",
                                 credit.transfer.Hex(), memory.memory, pool_.leases(memory.memory),
                                 is_new ? "" : ", and it is bound already");
  }
}

std::vector<AgentEvent> SimWorker::TakeEvents() {
  std::vector<AgentEvent> events = agent_->TakeEvents();
  for (const AgentEvent& event : events) {
    if (const auto* landed = std::get_if<kvtransfer::BlockLanded>(&event))
      if (landed->memory.block != kTailBlock) bound_.erase(landed->memory.memory);
    if (const auto* back = std::get_if<kvtransfer::MemoryReturned>(&event))
      if (back->memory.block != kTailBlock) bound_.erase(back->memory.memory);
    if (const auto* released = std::get_if<kvtransfer::SendReleased>(&event))
      sending_.erase(released->transfer);
  }
  return events;
}

std::string SimWorker::FindViolation() const {
  if (!violation_.empty()) return violation_;
  if (!error_.ok()) return absl::StrFormat("engine error: %s", error_.message());
  if (const absl::Status counts = pool_.CheckCounts(); !counts.ok())
    return std::string(counts.message());
  for (const PageId page : bound_) {
    if (pool_.leases(page) != 1 && !pool_.IsQuarantined(page))
      return absl::StrFormat("page %d is bound to a landing and has %d leases", page,
                             pool_.leases(page));
  }
  for (const auto& [transfer, pages] : sending_) {
    for (const PageId page : pages)
      if (pool_.leases(page) == 0)
        return absl::StrFormat("page %d is sent by transfer %s without a lease", page,
                               transfer.Hex());
  }
  const worker::CoreCounters& counters = core_->counters();
  if (counters.replay_mismatches > 0)
    return absl::StrFormat("%d replay mismatches", counters.replay_mismatches);
  return "";
}

bool SimWorker::IsQuiet() const {
  const engine::PoolCounts counts = pool_.Counts();
  return core_->IsIdle() && loop_.num_sequences() == 0 && counts.booked == 0 &&
         counts.leased == 0 && counts.quarantined == 0 && agent_->NumOpenReceives() == 0 &&
         bound_.empty() && sending_.empty();
}

std::string SimWorker::DescribeHeld() const {
  const engine::PoolCounts counts = pool_.Counts();
  return absl::StrFormat(
      "%s: idle %d, sequences %d, booked %d, leased %d, quarantined %d, open receives %d, bound "
      "%d, "
      "sending %d",
      setup_.worker_id, core_->IsIdle(), loop_.num_sequences(), counts.booked, counts.leased,
      counts.quarantined, agent_->NumOpenReceives(), bound_.size(), sending_.size());
}

wire::WorkerHello SimWorker::Hello() const {
  wire::WorkerHello hello;
  hello.worker_id = setup_.worker_id;
  hello.incarnation = setup_.incarnation;
  hello.serves_prefill = setup_.serves_prefill;
  hello.serves_decode = setup_.serves_decode;
  hello.weights = setup_.weights;
  hello.layout = setup_.layout_id;
  hello.prompt_class = setup_.prompt_class;
  hello.decode_class = setup_.decode_class;
  hello.kv_address = setup_.kv_address;
  hello.kv_transports = "inproc";
  hello.pages = static_cast<uint32_t>(pool_.Counts().total);
  hello.max_sequences = static_cast<uint32_t>(setup_.limits.max_sequences);
  hello.max_context = static_cast<uint32_t>(setup_.limits.max_context);
  return hello;
}

}  // namespace baton::sim
