#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "common/sampling_spec.h"
#include "engine/load/checkpoint.h"
#include "engine/parallel.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/ops.h"
#include "kernels/page_layout.h"
#include "kernels/weights.h"

namespace baton::golden {

struct TestModelOptions {
  kernels::NumericsMode mode = kernels::NumericsMode::kOfficial;
  int max_rows = 768;
  int max_sequences = 4;
  int num_pages = 16;
  int num_tail_slots = 4;
  int max_head_rows = 64;
  int max_context = 4096;
  int num_threads = 1;
  int max_draft_rows = 64;
  bool force_scalar = false;
  bool has_bounded_scores = true;  // false: R3's running maximum, whatever the weights allow
};

// A checkpoint on the CPU back end, with a page arena; everything a test needs to run phases. One
// thread.
class TestModel {
 public:
  static absl::StatusOr<std::unique_ptr<TestModel>> Load(const engine::Checkpoint& checkpoint,
                                                         const TestModelOptions& options);

  kernels::Ops& ops() { return *ops_; }
  kernels::cpu::Activations& activations();
  const kernels::ModelWeights& weights() const { return weights_; }
  const kernels::ModelConfig& config() const { return config_; }
  const kernels::PageLayout& layout() const { return layout_; }
  std::span<std::byte> pages() { return pages_; }
  std::span<const std::byte> Page(PageId page) const;
  std::span<float> Streams(int row);  // [S, H] of a row of the step

 private:
  TestModel(const engine::Checkpoint& checkpoint, const TestModelOptions& options);

  const kernels::ModelConfig config_;
  const kernels::PageLayout layout_;
  engine::ThreadPool threads_;
  std::vector<std::byte> pages_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<kernels::Ops> ops_;
  kernels::ModelWeights weights_;
};

// Tokens of tiny-a's vocabulary, the same for the same seed.
std::vector<int32_t> Prompt(int length, uint64_t seed);
// Greedy, with the three best logprobs.
SamplingSpec Greedy();

}  // namespace baton::golden
