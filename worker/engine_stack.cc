#include "worker/engine_stack.h"

#include <algorithm>
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
  const int by_model =
      std::min(checkpoint.config().max_position_embeddings, config.pages / 2 * kPageTokens);
  stack->max_context_ = config.limits.max_context > 0 ? config.limits.max_context
                                                      : std::min(by_model, kMaxDefaultContext);
  if (stack->max_context_ > checkpoint.config().max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrFormat("limits.max_context is %d, the model allows %d", stack->max_context_,
                        checkpoint.config().max_position_embeddings));
  }
  // A sequence alone must fit the pool, drafts included, or it would wait for ever.
  const int64_t room = int64_t{config.pages} * kPageTokens - 2 * (engine::kMaxDrafts + 1);
  if (stack->max_context_ > room) {
    return absl::InvalidArgumentError(
        absl::StrFormat("limits.max_context is %d, engine.pages %d hold %d tokens of one sequence",
                        stack->max_context_, config.pages, room));
  }
  RETURN_IF_ERROR(stack->Load(config, backend, checkpoint));
  RETURN_IF_ERROR(stack->Allocate(config, backend));
  stack->Plan(config, clock);
  return stack;
}

absl::Status EngineStack::Load(const WorkerConfig& config, const Backend& backend,
                               const engine::Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(weights_id_, checkpoint.ComputeWeightsId(config.cache_folder));
  const NumericsClass numerics = backend.numerics(mode_ == kernels::NumericsMode::kFloat32);
  class_id_ = ClassIdOf(numerics);
  LogF(LogLevel::kInfo, "ids", "weights=%s layout=%s class=%s numerics=%s", weights_id_.Hex(),
       layout_.Id().Hex(), class_id_.Hex(), CanonicalText(numerics));
  device_ = backend.make_device(mode_);
  ProgressDevice progress(*device_, checkpoint.tensors().size());
  ASSIGN_OR_RETURN(weights_, engine::LoadWeights(checkpoint, progress));
  has_drafter_ = weights_.has_mtp;
  num_promoted_experts_ =
      mode_ == kernels::NumericsMode::kOfficial ? backend.count_promoted_experts(weights_) : 0;
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

absl::Status EngineStack::Allocate(const WorkerConfig& config, const Backend& backend) {
  constexpr uint64_t kAlignment = 4096;
  tail_stride_ =
      (kernels::MaxTailBytes(layout_, kMaxChoices) + kAlignment - 1) / kAlignment * kAlignment;
  const uint64_t page_bytes = static_cast<uint64_t>(config.pages) * layout_.stride_bytes();
  const uint64_t tail_bytes = static_cast<uint64_t>(NumTailBuffers(config)) * tail_stride_;
  LogF(LogLevel::kInfo, "memory_plan",
       "weights_mib=%.1f pages=%d page_bytes=%d pages_mib=%.1f tail_slots=%d tail_buffers=%d "
       "tail_buffers_mib=%.1f "
       "cached_tails_mib=%d max_context=%d",
       MiB(device_->allocated_bytes()), config.pages, layout_.stride_bytes(), MiB(page_bytes),
       NumTailSlots(config), NumTailBuffers(config), MiB(tail_bytes), config.cached_tail_mib,
       max_context_);
  ASSIGN_OR_RETURN(std::byte* const pages, device_->Allocate(page_bytes));
  pages_ = {pages, page_bytes};
  tails_.resize(tail_bytes);
  const int cores = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
  threads_ = std::make_unique<engine::ThreadPool>(config.threads > 0 ? config.threads : cores);
  ASSIGN_OR_RETURN(ops_, backend.make_ops({.config = model_config_,
                                           .mode = mode_,
                                           .layout = layout_,
                                           .pages = pages,
                                           .num_pages = config.pages,
                                           .num_tail_slots = NumTailSlots(config),
                                           .max_rows = config.max_rows,
                                           .max_sequences = NumTailSlots(config),
                                           .max_head_rows = NumHeadRows(config),
                                           .max_context = max_context_ + engine::kMaxDrafts + 1,
                                           .parallel = threads_->AsParallelFor()},
                                          *device_));
  LogF(LogLevel::kInfo, "engine_ready", "device_mib=%.1f threads=%d",
       MiB(device_->allocated_bytes()), config.threads > 0 ? config.threads : cores);
  return absl::OkStatus();
}

void EngineStack::Plan(const WorkerConfig& config, const Clock& clock) {
  pool_ = std::make_unique<engine::PagePool>(pages_.data(), config.pages, layout_.stride_bytes(),
                                             layout_.payload_bytes());
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
                                 .max_head_rows = NumHeadRows(config)});
  loop_ = std::make_unique<engine::EngineLoop>(*pool_, *planner_, *runner_, clock, layout_);
}

}  // namespace baton::worker
