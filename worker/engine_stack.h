#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "common/clock.h"
#include "common/grammar.h"
#include "engine/grammar/grammar_cache.h"
#include "engine/load/checkpoint.h"
#include "engine/loop.h"
#include "engine/model/model_runner.h"
#include "engine/parallel.h"
#include "engine/planning/mixed_planner.h"
#include "worker/backend.h"
#include "worker/worker_config.h"

namespace baton::worker {

// The engine of one process, from the checkpoint to the loop, with its memory. Built on the main
// thread, used by the engine thread.
class EngineStack {
 public:
  // Logs what it does and the memory plan before anything large is allocated. Errors name file,
  // tensor or key.
  static absl::StatusOr<std::unique_ptr<EngineStack>> Create(const WorkerConfig& config,
                                                             const Backend& backend,
                                                             const Clock& clock);
  ~EngineStack();

  engine::EngineLoop& loop() { return *loop_; }
  kernels::Device& device() { return *device_; }
  const std::string& backend() const { return compute_.name; }
  std::span<std::byte> pages() const { return pages_; }
  int num_pages() const { return num_pages_; }
  std::span<std::byte> tails() { return tails_; }  // host memory, pinned where that helps
  const kernels::PageLayout& layout() const { return layout_; }
  uint64_t tail_stride() const { return tail_stride_; }
  const WeightsId& weights_id() const { return weights_id_; }
  const ClassId& class_id() const { return class_id_; }
  int max_context() const { return max_context_; }
  engine::GrammarCache* grammars() { return grammars_.get(); }  // null: no tokenizer.json
  int vocab_size() const { return model_config_.vocab_size; }
  bool has_drafter() const { return has_drafter_; }
  int num_promoted_experts() const { return num_promoted_experts_; }

 private:
  EngineStack(const engine::ModelConfig& config, kernels::NumericsMode mode);
  absl::Status OpenDevice(const WorkerConfig& config, const Backend& backend);
  absl::Status PlanMemory(const WorkerConfig& config, uint64_t weight_bytes);
  absl::Status PlanContext(const WorkerConfig& config);
  int PagesByMemory(const WorkerConfig& config, uint64_t taken, uint64_t planned) const;
  absl::Status Load(const WorkerConfig& config, const engine::Checkpoint& checkpoint);
  absl::Status Allocate(const WorkerConfig& config);
  absl::Status LoadVocabulary(const WorkerConfig& config, const Clock& clock);
  OpsRequest MakeOpsRequest(const WorkerConfig& config) const;
  void Plan(const WorkerConfig& config, const Clock& clock);
  int NumTailSlots(const WorkerConfig& config) const;
  int NumHeadRows(const WorkerConfig& config) const;

  const engine::ModelConfig model_config_;
  const kernels::NumericsMode mode_;
  const kernels::PageLayout layout_;
  WeightsId weights_id_;
  ClassId class_id_;
  ComputeBackend compute_;
  int num_threads_ = 1;
  int num_pages_ = 0;
  int max_context_ = 0;
  bool has_drafter_ = false;
  int num_promoted_experts_ = 0;
  uint64_t tail_stride_ = 0;
  std::unique_ptr<engine::ThreadPool> threads_;
  std::unique_ptr<kernels::Device> device_;
  kernels::ModelWeights weights_;
  std::span<std::byte> pages_;
  std::span<std::byte> tails_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<kernels::MemoryQueue> digest_queue_;  // until the pool has it
  std::unique_ptr<engine::PagePool> pool_;
  std::unique_ptr<engine::MixedPlanner> planner_;
  std::unique_ptr<engine::ModelRunner> runner_;
  std::optional<Vocabulary> vocabulary_;
  std::unique_ptr<engine::GrammarCache> grammars_;
  std::unique_ptr<engine::EngineLoop> loop_;
};

}  // namespace baton::worker
