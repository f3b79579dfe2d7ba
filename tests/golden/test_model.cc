#include "tests/golden/test_model.h"

#include "common/rng.h"
#include "common/status.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace baton::golden {

TestModel::TestModel(const engine::Checkpoint& checkpoint, const TestModelOptions& options)
    : config_(checkpoint.config()),
      layout_(engine::LayoutShapeOf(config_, options.mode)),
      threads_(options.num_threads),
      pages_(static_cast<size_t>(options.num_pages) * layout_.stride_bytes()),
      device_(kernels::cpu::MakeCpuDevice(options.mode)) {}

absl::StatusOr<std::unique_ptr<TestModel>> TestModel::Load(const engine::Checkpoint& checkpoint,
                                                           const TestModelOptions& options) {
  std::unique_ptr<TestModel> model(new TestModel(checkpoint, options));
  ASSIGN_OR_RETURN(model->weights_, engine::LoadWeights(checkpoint, *model->device_));
  if (!options.has_bounded_scores) {
    for (kernels::LayerWeights& layer : model->weights_.layers) layer.has_bounded_scores = false;
    model->weights_.mtp.block.has_bounded_scores = false;
  }
  kernels::cpu::CpuOptions ops{.config = model->config_,
                               .mode = options.mode,
                               .layout = model->layout_,
                               .pages = model->pages_.data(),
                               .num_pages = options.num_pages,
                               .num_tail_slots = options.num_tail_slots,
                               .max_rows = options.max_rows,
                               .max_sequences = options.max_sequences,
                               .max_head_rows = options.max_head_rows,
                               .max_context = options.max_context,
                               .max_draft_rows = options.max_draft_rows,
                               .force_scalar = options.force_scalar,
                               .parallel = model->threads_.AsParallelFor()};
  ASSIGN_OR_RETURN(model->ops_, kernels::cpu::MakeCpuOps(std::move(ops), *model->device_));
  return model;
}

kernels::cpu::Activations& TestModel::activations() {
  return static_cast<kernels::cpu::CpuOps&>(*ops_).activations();
}

std::span<const std::byte> TestModel::Page(PageId page) const {
  return std::span(pages_).subspan(static_cast<size_t>(page) * layout_.stride_bytes(),
                                   layout_.stride_bytes());
}

std::span<float> TestModel::Streams(int row) {
  const auto size = static_cast<size_t>(config_.hc_mult) * static_cast<size_t>(config_.hidden_size);
  return std::span(activations().streams).subspan(static_cast<size_t>(row) * size, size);
}

std::vector<int32_t> Prompt(int length, uint64_t seed) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) {
    tokens.push_back(
        static_cast<int32_t>(Mix64(seed * 1'000'003 + static_cast<uint64_t>(i)) % 512));
  }
  return tokens;
}

SamplingSpec Greedy() {
  SamplingSpec spec;
  spec.greedy = true;
  spec.top_logprobs = 3;
  return spec;
}

}  // namespace baton::golden
