#include "worker/worker_process.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"
#include "worker/version.h"

namespace baton::worker {
namespace {

constexpr size_t kMaxInbox =
    16384;  // session events; the service closes a session that finds it full
constexpr size_t kEventsPerRound = 256;
constexpr int kGrammarThreads = 2;    // one slow grammar does not hold up the others
constexpr size_t kMaxGrammars = 128;  // that wait to be compiled
constexpr size_t kStagingSlots = 64;  // pages on their way to or from a GPU, half each way
constexpr size_t kAgentEventsPerRound = 4096;
constexpr absl::Duration kIdleWait =
    absl::Milliseconds(20);  // pushes and transfers wake the engine thread before
constexpr absl::Duration kMetricsEvery = absl::Milliseconds(250);

}  // namespace

WorkerProcess::WorkerProcess(const WorkerConfig& config, const Clock& clock)
    : config_(config),
      clock_(clock),
      incarnation_{rng_.Next()},
      inbox_(kMaxInbox),
      grammar_pool_(kGrammarThreads, kMaxGrammars),
      watch_(clock, config.wedge_floor),
      metrics_(registry_) {}

absl::StatusOr<std::unique_ptr<WorkerProcess>> WorkerProcess::Start(const WorkerConfig& config,
                                                                    const Backend& backend,
                                                                    const Clock& clock) {
  std::unique_ptr<WorkerProcess> self(new WorkerProcess(config, clock));
  ASSIGN_OR_RETURN(self->engine_, EngineStack::Create(config, backend, clock));
  RETURN_IF_ERROR(self->OpenTransfers(backend));
  RETURN_IF_ERROR(self->Serve());
  return self;
}

absl::Status WorkerProcess::OpenTransfers(const Backend& backend) {
  ASSIGN_OR_RETURN(transport_, backend.open_transport({.incarnation = incarnation_,
                                                       .listen = config_.kv_listen,
                                                       .advertise = config_.kv_advertise,
                                                       .transports = config_.kv_transports}));
  RETURN_IF_ERROR(CheckTransports(config_, transport_.transports));
  ASSIGN_OR_RETURN(const kvtransfer::RegionId pages, RegisterPages());
  kvtransfer::Transport& transport = *pages_transport_;
  ASSIGN_OR_RETURN(const kvtransfer::RegionId tails,
                   transport.Register(engine_->tails(), kvtransfer::MemoryKind::kHost));
  digester_->AddHostRegion(tails, engine_->tails());
  const bool is_dev = config_.timers == "dev";
  agent_ = std::make_unique<kvtransfer::TransferAgent>(
      kvtransfer::AgentConfig{
          .incarnation = incarnation_,
          .limits = is_dev ? kvtransfer::TransferLimits::Dev() : kvtransfer::TransferLimits{}},
      transport, *digester_, clock_);
  MakeSetup(pages, tails);
  LogF(LogLevel::kInfo, "transfer_ready",
       "address=%s transports=%s self_test_gbps=%.2f page_memory=%s", transport.Address(),
       transport_.transports, transport_.self_test_gbps, page_memory_);
  metrics_.SetStart({.self_test_gbps = transport_.self_test_gbps,
                     .experts_promoted = engine_->num_promoted_experts(),
                     .backend = engine_->backend(),
                     .page_memory = page_memory_});
  ASSIGN_OR_RETURN(agent_thread_, kvtransfer::AgentThread::Create(
                                      {.on_start = [this] { engine_->device().EnterThread(); }},
                                      *agent_, transport, clock_, [this] { inbox_.Wake(); }));
  return absl::OkStatus();
}

absl::StatusOr<kvtransfer::RegionId> WorkerProcess::RegisterPages() {
  kernels::Device& device = engine_->device();
  pages_transport_ = transport_.transport.get();
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::MemoryQueue> digests, device.MakeMemoryQueue());
  digester_ = std::make_unique<DeviceDigester>(std::move(digests));
  if (device.is_host()) {
    ASSIGN_OR_RETURN(const kvtransfer::RegionId pages,
                     pages_transport_->Register(engine_->pages(), kvtransfer::MemoryKind::kHost));
    digester_->AddHostRegion(pages, engine_->pages());
    return pages;
  }
  page_memory_ = transport_.reaches_devices ? "direct" : "staged";
  ASSIGN_OR_RETURN(
      const kvtransfer::RegionId pages,
      transport_.reaches_devices
          ? pages_transport_->Register(engine_->pages(), kvtransfer::MemoryKind::kDevice)
          : StagePages());
  digester_->AddDeviceRegion(pages, engine_->pages());
  return pages;
}

absl::StatusOr<kvtransfer::RegionId> WorkerProcess::StagePages() {
  kernels::Device& device = engine_->device();
  const size_t slot_bytes = engine_->layout().stride_bytes();
  ASSIGN_OR_RETURN(std::byte* const memory, device.AllocateHost(kStagingSlots * slot_bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::MemoryQueue> copies, device.MakeMemoryQueue());
  copier_ = std::make_unique<DeviceCopier>(std::move(copies));
  ASSIGN_OR_RETURN(
      staged_, kvtransfer::StagedTransport::Create(*transport_.transport, *copier_,
                                                   {.memory = {memory, kStagingSlots * slot_bytes},
                                                    .slot_bytes = slot_bytes,
                                                    .num_offer_slots = kStagingSlots / 2,
                                                    .num_pull_slots = kStagingSlots / 2}));
  pages_transport_ = staged_.get();
  return staged_->Register(engine_->pages(), kvtransfer::MemoryKind::kDevice);
}

void WorkerProcess::MakeSetup(kvtransfer::RegionId pages, kvtransfer::RegionId tails) {
  std::string id = config_.worker_id;
  if (id.empty()) {
    const bool is_mixed = config_.serves("prefill") && config_.serves("decode");
    id = absl::StrFormat("%s-%016x", is_mixed ? "mixed" : config_.serve[0], incarnation_.value);
  }
  setup_ = std::make_unique<WorkerSetup>(WorkerSetup{.worker_id = id,
                                                     .incarnation = incarnation_,
                                                     .serves_prefill = config_.serves("prefill"),
                                                     .serves_decode = config_.serves("decode"),
                                                     .weights = engine_->weights_id(),
                                                     .layout_id = engine_->layout().Id(),
                                                     .prompt_class = engine_->class_id(),
                                                     .decode_class = engine_->class_id(),
                                                     .kv_address = pages_transport_->Address(),
                                                     .has_drafter = engine_->has_drafter(),
                                                     .vocab_size = engine_->vocab_size(),
                                                     .masks = MakeMaskMaker(),
                                                     .layout = engine_->layout(),
                                                     .pages_region = pages,
                                                     .tails_region = tails,
                                                     .tail_memory = engine_->tails(),
                                                     .tail_stride = engine_->tail_stride(),
                                                     .limits = config_.limits});
  setup_->limits.max_context = engine_->max_context();
  setup_->limits.max_cached_tail_bytes = static_cast<uint64_t>(config_.cached_tail_mib) << 20;
  if (config_.timers == "dev") setup_->limits.wedged_after = absl::Seconds(30);
}

engine::MaskMaker* WorkerProcess::MakeMaskMaker() {
  if (engine_->grammars() == nullptr) return nullptr;
  masks_ =
      std::make_unique<engine::MaskMaker>(*engine_->grammars(), [this](std::function<void()> make) {
        return grammar_pool_.TryRun([this, make = std::move(make)] {
          make();
          inbox_.Wake();
        });
      });
  return masks_.get();
}

wire::WorkerHello WorkerProcess::MakeHello() const {
  return {.worker_id = setup_->worker_id,
          .incarnation = incarnation_,
          .protocol_version = wire::kProtocolVersion,
          .serves_prefill = setup_->serves_prefill,
          .serves_decode = setup_->serves_decode,
          .weights = setup_->weights,
          .layout = setup_->layout_id,
          .prompt_class = setup_->prompt_class,
          .decode_class = setup_->decode_class,
          .kv_address = setup_->kv_address,
          .kv_transports = transport_.transports,
          .num_ranks = 1,
          .pages = static_cast<uint32_t>(engine_->num_pages()),
          .max_sequences = static_cast<uint32_t>(setup_->limits.max_sequences),
          .max_context = static_cast<uint32_t>(setup_->limits.max_context),
          .build_version = kVersion};
}

absl::Status WorkerProcess::Serve() {
  SessionServiceOptions options;
  options.listen_address = config_.listen;
  options.beat_interval = config_.beat();
  options.silence = config_.silence();
  ASSIGN_OR_RETURN(
      sessions_,
      SessionService::Start(options,
                            {.hello = MakeHello(), .engine_beat = [this] { return watch_.Beat(); }},
                            clock_, inbox_));
  core_ = std::make_unique<WorkerCore>(CoreParts{.setup = *setup_,
                                                 .loop = engine_->loop(),
                                                 .sender = *sessions_,
                                                 .agent = *this,
                                                 .watch = watch_,
                                                 .clock = clock_,
                                                 .rng = rng_});
  UpdateMetrics();
  ASSIGN_OR_RETURN(
      metrics_server_,
      MetricsServer::Start(config_.metrics_listen,
                           {.metrics = [this] { return registry_.Render(); },
                            .health = [] { return ProbeAnswer{.code = 200, .body = "ok"}; },
                            .ready = [this] { return Ready(); }}));
  engine_thread_ = std::thread([this] { EngineLoop(); });
  LogF(LogLevel::kInfo, "serving",
       "worker=%s session_port=%d metrics_port=%d kv_address=%s max_context=%d", setup_->worker_id,
       sessions_->port(), metrics_server_->port(), setup_->kv_address, setup_->limits.max_context);
  return absl::OkStatus();
}

WorkerProcess::~WorkerProcess() {
  must_stop_ = true;
  inbox_.Wake();
  if (engine_thread_.joinable()) engine_thread_.join();
  grammar_pool_.Stop();
  inbox_.Close();  // nobody drains it any more: the sessions that end now must not wait for room
  metrics_server_.reset();
  sessions_.reset();
  agent_thread_.reset();
  core_.reset();
}

void WorkerProcess::Drain() {
  must_drain_ = true;
  inbox_.Wake();
}

absl::Status WorkerProcess::result() const { return is_done_ ? result_ : absl::OkStatus(); }

std::vector<kvtransfer::AgentEvent> WorkerProcess::TakeEvents() {
  std::vector<kvtransfer::AgentEvent> events;
  agent_thread_->events().Drain(events, kAgentEventsPerRound, absl::ZeroDuration());
  return events;
}

void WorkerProcess::EngineLoop() {
  engine_->device().EnterThread();
  while (!must_stop_ && RunRound()) {
  }
  is_done_ = true;
}

bool WorkerProcess::RunRound() {
  batch_.clear();
  inbox_.Drain(batch_, kEventsPerRound, did_work_ ? absl::ZeroDuration() : kIdleWait);
  for (SessionEvent& event : batch_) core_->Apply(std::move(event));
  if (core_->is_draining()) must_drain_ = true;  // a router asked for it
  if (must_drain_ && drain_until_ == absl::InfiniteFuture()) {
    LogF(LogLevel::kInfo, "draining", "worker=%s timeout_s=%.0f", setup_->worker_id,
         absl::ToDoubleSeconds(config_.drain_timeout));
    core_->Drain();
    drain_until_ = clock_.Now() + config_.drain_timeout;
  }
  const absl::StatusOr<bool> ran = core_->RunOnce();
  if (!ran.ok()) {
    LogF(LogLevel::kError, "engine_failed", "worker=%s error=%s", setup_->worker_id,
         ran.status().ToString());
    result_ = ran.status();
    return false;
  }
  did_work_ = *ran || !batch_.empty();
  metrics_.ObserveStep(engine_->loop().counters());
  UpdateMetrics();
  if (!must_drain_) return true;
  if (core_->IsIdle()) {
    // The last tokens must reach the routers before the streams end.
    if (sessions_->num_sessions() == 0) return false;
    if (sessions_->IsFlushed()) sessions_->EndAll(absl::UnavailableError("the worker has drained"));
  }
  if (clock_.Now() < drain_until_) return true;
  const CoreGauges open = core_->Gauges();
  LogF(LogLevel::kWarn, "drain_timeout", "worker=%s running=%d waiting=%d prompts=%d",
       setup_->worker_id, open.running, open.landings_waiting,
       open.queued_prompts + open.computing_prompts + open.sending_prompts);
  return false;
}

void WorkerProcess::UpdateMetrics() {
  const absl::Time now = clock_.Now();
  if (now < next_metrics_) return;
  next_metrics_ = now + kMetricsEvery;
  metrics_.Update(*core_, engine_->loop().counters(), watch_);
  metrics_.Update(agent_->metrics());
  if (engine_->grammars() != nullptr) metrics_.Update(engine_->grammars()->counters());
  if (staged_ != nullptr) metrics_.Update(staged_->stats());
}

ProbeAnswer WorkerProcess::Ready() const {
  if (is_done_) return {.code = 503, .body = "stopped"};
  if (must_drain_) return {.code = 503, .body = "draining"};
  if (watch_.IsWedged() || agent_->metrics().is_wedged) return {.code = 503, .body = "wedged"};
  return {.code = 200, .body = "ready"};
}

}  // namespace baton::worker
