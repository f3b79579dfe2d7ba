#include "worker/engine_stack.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace baton::worker {
namespace {

constexpr int kMaxDefaultContext = 32768;
constexpr uint32_t kMaxChoices = 128;  // of one request that a tail buffer has room for
constexpr int kProgressLines = 10;
constexpr uint64_t kAlignment = 4096;
constexpr int kMaxPages = 1 << 24;
constexpr uint64_t kReserveBytes = uint64_t{512} << 20;  // graphs, contexts, fragments

double MiB(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// Says how far the weights are, for checkpoints that take minutes.
class ProgressDevice final : public kernels::Device {
 public:
  ProgressDevice(kernels::Device& device, size_t num_tensors)
      : device_(device), num_tensors_(num_tensors) {}

  absl::StatusOr<const kernels::Matrix*> Upload(const kernels::HostMatrix& matrix) override {
    Count();
    return device_.Upload(matrix);
  }
  absl::StatusOr<kernels::Vector> UploadVector(std::span<const float> values) override {
    Count();
    return device_.UploadVector(values);
  }
  absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t> values) override {
    Count();
    return device_.UploadIndices(values);
  }
  absl::StatusOr<std::byte*> Allocate(size_t bytes) override { return device_.Allocate(bytes); }
  void Zero(std::byte* data, size_t bytes) override { device_.Zero(data, bytes); }
  size_t allocated_bytes() const override { return device_.allocated_bytes(); }
  std::string Describe() const override { return device_.Describe(); }
  bool is_host() const override { return device_.is_host(); }
  void EnterThread() override { device_.EnterThread(); }
  kernels::DeviceMemory memory() const override { return device_.memory(); }
  absl::StatusOr<std::byte*> AllocateHost(size_t bytes) override {
    return device_.AllocateHost(bytes);
  }
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override {
    return device_.Copy(to, from, bytes);
  }
  absl::Status Synchronize() override { return device_.Synchronize(); }
  absl::StatusOr<std::unique_ptr<kernels::MemoryQueue>> MakeMemoryQueue() override {
    return device_.MakeMemoryQueue();
  }

 private:
  void Count() {
    ++done_;
    const size_t every = std::max<size_t>(num_tensors_ / kProgressLines, 1);
    if (done_ % every != 0) return;
    LogF(LogLevel::kInfo, "weights_loading", "weights=%d of_tensors=%d mib=%.1f", done_,
         num_tensors_, MiB(device_.allocated_bytes()));
  }

  kernels::Device& device_;
  const size_t num_tensors_;
  size_t done_ = 0;
};

kernels::NumericsMode ModeOf(const WorkerConfig& config) {
  return config.mode == "float32" ? kernels::NumericsMode::kFloat32
                                  : kernels::NumericsMode::kOfficial;
}

int NumTailBuffers(const WorkerConfig& config) {
  return config.limits.max_sequences + 2 * config.limits.max_computing_prompts;
}

}  // namespace

EngineStack::EngineStack(const engine::ModelConfig& config, kernels::NumericsMode mode)
    : model_config_(config), mode_(mode), layout_(engine::LayoutShapeOf(config, mode)) {}

EngineStack::~EngineStack() = default;

absl::StatusOr<std::unique_ptr<EngineStack>> EngineStack::Create(const WorkerConfig& config,
                                                                 const Backend& backend,
                                                                 const Clock& clock) {
  ASSIGN_OR_RETURN(const engine::Checkpoint checkpoint,
                   engine::Checkpoint::Open(config.checkpoint));
  LogF(LogLevel::kInfo, "checkpoint_opened", "folder=%s tensors=%d mib=%.1f layers=%d",
       config.checkpoint, checkpoint.tensors().size(), MiB(checkpoint.total_bytes()),
       checkpoint.config().num_hidden_layers);
  std::unique_ptr<EngineStack> stack(new EngineStack(checkpoint.config(), ModeOf(config)));
  RETURN_IF_ERROR(stack->OpenDevice(config, backend));
  RETURN_IF_ERROR(stack->PlanMemory(config, checkpoint.total_bytes()));
  RETURN_IF_ERROR(stack->Load(config, checkpoint));
  RETURN_IF_ERROR(stack->Allocate(config));
  RETURN_IF_ERROR(stack->LoadVocabulary(config, clock));
  stack->Plan(config, clock);
  return stack;
}

// The back end asked for, or the first of the program's that has a device here.
absl::Status EngineStack::OpenDevice(const WorkerConfig& config, const Backend& backend) {
  const int cores = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
  num_threads_ = config.threads > 0 ? config.threads : cores;
  threads_ = std::make_unique<engine::ThreadPool>(num_threads_);
  std::string known;
  absl::Status why = absl::OkStatus();
  for (const ComputeBackend& compute : backend.compute) {
    known += (known.empty() ? "" : ", ") + compute.name;
    if (config.backend != "auto" && config.backend != compute.name) continue;
    auto device = compute.make_device(
        {.mode = mode_, .gpu = config.gpu, .parallel = threads_->AsParallelFor()});
    if (device.ok()) {
      compute_ = compute;
      device_ = *std::move(device);
      break;
    }
    why = device.status();
    // Only where there is none of its devices: one that fails must not become a slow worker.
    if (!absl::IsUnavailable(why)) return why;
    LogF(LogLevel::kWarn, "backend_not_used", "backend=%s reason=%s", compute.name, why.ToString());
  }
  if (device_ == nullptr && !why.ok()) return why;
  if (device_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "engine.backend is %s, this program was built with: %s", config.backend, known));
  }
  LogF(LogLevel::kInfo, "backend", "backend=%s device=%s threads=%d", compute_.name,
       device_->Describe(), num_threads_);
  return absl::OkStatus();
}

// Pages that fit beside what else lies on the device: `taken` bytes of ours by now, `planned` still
// to come.
int EngineStack::PagesByMemory(const WorkerConfig& config, uint64_t taken, uint64_t planned) const {
  const kernels::DeviceMemory memory = device_->memory();
  const auto share =
      static_cast<uint64_t>(config.memory_fraction * static_cast<double>(memory.total_bytes));
  const uint64_t own = share > taken ? share - taken : 0;
  const uint64_t left = std::min<uint64_t>(own, memory.free_bytes);
  const uint64_t pages = left > planned ? (left - planned) / layout_.stride_bytes() : 0;
  return static_cast<int>(std::min<uint64_t>(pages, kMaxPages));
}

// The context follows from the pages unless the configuration says one.
absl::Status EngineStack::PlanContext(const WorkerConfig& config) {
  const int model = model_config_.max_position_embeddings;
  max_context_ = config.limits.max_context > 0
                     ? config.limits.max_context
                     : std::min({model, num_pages_ / 2 * kPageTokens, kMaxDefaultContext});
  if (max_context_ > model) {
    return absl::InvalidArgumentError(
        absl::StrFormat("limits.max_context is %d, the model allows %d", max_context_, model));
  }
  // A sequence alone must fit the pool, drafts included, or it would wait for ever.
  const int64_t room = int64_t{num_pages_} * kPageTokens - 2 * (engine::kMaxDrafts + 1);
  if (max_context_ > 0 && max_context_ <= room) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("limits.max_context is %d, engine.pages %d hold %d tokens of one sequence",
                      max_context_, num_pages_, room));
}

// What will lie where, before anything large is allocated.
absl::Status EngineStack::PlanMemory(const WorkerConfig& config, uint64_t weight_bytes) {
  tail_stride_ =
      (kernels::MaxTailBytes(layout_, kMaxChoices) + kAlignment - 1) / kAlignment * kAlignment;
  const kernels::DeviceMemory memory = device_->memory();
  if (config.pages == 0 && memory.total_bytes == 0) {
    return absl::InvalidArgumentError(
        "engine.pages is 0, which takes their number from a GPU's memory: say how many");
  }
  max_context_ = std::min(model_config_.max_position_embeddings, kMaxDefaultContext);
  if (config.limits.max_context > 0) max_context_ = config.limits.max_context;
  const uint64_t workspace = compute_.workspace_bytes(MakeOpsRequest(config));
  const uint64_t others = weight_bytes + workspace + kReserveBytes;
  num_pages_ = config.pages > 0 ? config.pages : PagesByMemory(config, 0, others);
  RETURN_IF_ERROR(PlanContext(config));
  const uint64_t page_bytes = static_cast<uint64_t>(num_pages_) * layout_.stride_bytes();
  LogF(LogLevel::kInfo, "memory_plan",
       "device_total_mib=%.1f device_free_mib=%.1f weights_mib=%.1f workspace_mib=%.1f pages=%d "
       "page_bytes=%d pages_mib=%.1f tail_slots=%d tail_buffers=%d host_tails_mib=%.1f "
       "cached_tails_mib=%d max_context=%d",
       MiB(memory.total_bytes), MiB(memory.free_bytes), MiB(weight_bytes), MiB(workspace),
       num_pages_, layout_.stride_bytes(), MiB(page_bytes), NumTailSlots(config),
       NumTailBuffers(config), MiB(static_cast<uint64_t>(NumTailBuffers(config)) * tail_stride_),
       config.cached_tail_mib, max_context_);
  if (memory.total_bytes == 0 || others + page_bytes <= memory.free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%d pages of %d bytes, weights of %d, workspace of %d and %d in reserve do not fit the "
      "device: %d bytes are free",
      num_pages_, layout_.stride_bytes(), weight_bytes, workspace, kReserveBytes,
      memory.free_bytes));
}

absl::Status EngineStack::Load(const WorkerConfig& config, const engine::Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(weights_id_, checkpoint.ComputeWeightsId(config.cache_folder));
  const NumericsClass numerics = compute_.numerics(mode_ == kernels::NumericsMode::kFloat32);
  class_id_ = ClassIdOf(numerics);
  LogF(LogLevel::kInfo, "ids", "weights=%s layout=%s class=%s numerics=%s", weights_id_.Hex(),
       layout_.Id().Hex(), class_id_.Hex(), CanonicalText(numerics));
  ProgressDevice progress(*device_, checkpoint.tensors().size());
  ASSIGN_OR_RETURN(weights_, engine::LoadWeights(checkpoint, progress));
  RETURN_IF_ERROR(device_->Synchronize());
  has_drafter_ = weights_.has_mtp;
  num_promoted_experts_ =
      mode_ == kernels::NumericsMode::kOfficial ? compute_.count_promoted_experts(weights_) : 0;
  LogF(LogLevel::kInfo, "weights_loaded", "mib=%.1f mtp=%d experts_promoted_per_32=%d",
       MiB(device_->allocated_bytes()), has_drafter_, num_promoted_experts_);
  return absl::OkStatus();
}

int EngineStack::NumTailSlots(const WorkerConfig& config) const {
  return config.limits.max_sequences + config.limits.max_computing_prompts;
}

// Rows of logits at once: the runner takes more in groups.
int EngineStack::NumHeadRows(const WorkerConfig& config) const {
  constexpr int kLeast = 64;
  return std::max(NumTailSlots(config) * (engine::kMaxDrafts + 1), kLeast);
}

OpsRequest EngineStack::MakeOpsRequest(const WorkerConfig& config) const {
  return {.config = model_config_,
          .mode = mode_,
          .layout = layout_,
          .pages = pages_.data(),
          .num_pages = num_pages_,
          .num_tail_slots = NumTailSlots(config),
          .max_rows = config.max_rows,
          .max_sequences = NumTailSlots(config),
          .max_head_rows = NumHeadRows(config),
          .max_context = max_context_ + engine::kMaxDrafts + 1,
          .has_graphs = config.has_graphs,
          .parallel = threads_->AsParallelFor()};
}

absl::Status EngineStack::Allocate(const WorkerConfig& config) {
  if (config.pages == 0) {  // weights lie in pieces: now it is known what they take
    const uint64_t workspace = compute_.workspace_bytes(MakeOpsRequest(config));
    const int pages = PagesByMemory(config, device_->allocated_bytes(), workspace + kReserveBytes);
    num_pages_ = std::min(num_pages_, pages);
    RETURN_IF_ERROR(PlanContext(config));
    LogF(LogLevel::kInfo, "pages_planned", "pages=%d max_context=%d", num_pages_, max_context_);
  }
  const uint64_t page_bytes = static_cast<uint64_t>(num_pages_) * layout_.stride_bytes();
  const uint64_t tail_bytes = static_cast<uint64_t>(NumTailBuffers(config)) * tail_stride_;
  ASSIGN_OR_RETURN(std::byte* const pages, device_->Allocate(page_bytes));
  pages_ = {pages, page_bytes};
  ASSIGN_OR_RETURN(std::byte* const tails, device_->AllocateHost(tail_bytes));
  tails_ = {tails, tail_bytes};
  ASSIGN_OR_RETURN(digest_queue_, device_->MakeMemoryQueue());
  ASSIGN_OR_RETURN(ops_, compute_.make_ops(MakeOpsRequest(config), *device_));
  LogF(LogLevel::kInfo, "engine_ready", "device_mib=%.1f threads=%d",
       MiB(device_->allocated_bytes()), num_threads_);
  return absl::OkStatus();
}

void EngineStack::Plan(const WorkerConfig& config, const Clock& clock) {
  pool_ = std::make_unique<engine::PagePool>(pages_.data(), num_pages_, layout_.stride_bytes(),
                                             layout_.payload_bytes());
  if (!device_->is_host()) pool_->UseDevice(*device_, std::move(digest_queue_));
  // Drafts do not travel with a tail: a worker that hands every sequence on makes none.
  const int num_drafts = has_drafter_ && config.serves("decode") ? config.num_drafts : 0;
  planner_ = std::make_unique<engine::MixedPlanner>(
      engine::MixedConfig{.batch = {.max_sequences = config.limits.max_sequences,
                                    .max_rows = config.max_rows,
                                    .num_drafts = num_drafts},
                          .chunk = {.chunk_tokens = config.chunk_tokens},
                          .max_rows = config.max_rows});
  runner_ = std::make_unique<engine::ModelRunner>(
      *ops_, weights_, model_config_,
      engine::ModelRunnerOptions{.num_tail_slots = NumTailSlots(config),
                                 .max_head_rows = NumHeadRows(config),
                                 .goes_ahead = !device_->is_host()});
  loop_ = std::make_unique<engine::EngineLoop>(*pool_, *planner_, *runner_, clock, layout_);
  loop_->SetParallelFor(threads_->AsParallelFor());
}

// What masks are made of. A checkpoint without a tokenizer serves requests without them.
absl::Status EngineStack::LoadVocabulary(const WorkerConfig& config, const Clock& clock) {
  const std::string path = config.checkpoint + "/tokenizer.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    LogF(LogLevel::kWarn, "no_vocabulary", "file=%s effect=\"masks are refused\"", path);
    return absl::OkStatus();
  }
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const absl::Time start = clock.Now();
  absl::StatusOr<Vocabulary> vocabulary =
      Vocabulary::FromTokenizerJson(json, model_config_.vocab_size);
  if (!vocabulary.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s", path, vocabulary.status().message()));
  }
  vocabulary_ = *std::move(vocabulary);
  grammars_ = std::make_unique<engine::GrammarCache>(
      *vocabulary_, clock,
      engine::GrammarLimits{.memory_bytes = static_cast<size_t>(config.grammar_mib) << 20});
  LogF(LogLevel::kInfo, "vocabulary_loaded", "tokens=%d seconds=%.2f", vocabulary_->size(),
       absl::ToDoubleSeconds(clock.Now() - start));
  return absl::OkStatus();
}

}  // namespace baton::worker
