// Random checkpoints of other layouts and shapes on the CPU back end.
#include <filesystem>

#include "gtest/gtest.h"

#include "engine/load/test_checkpoint.h"
#include "engine/model/weights.h"
#include "tests/golden/sequence_runs.h"

namespace baton::golden {
namespace {

// Writes the checkpoint to a folder of the test's own and opens it.
engine::Checkpoint Write(const engine::TestCheckpointOptions& options, const std::string& name) {
  const std::string folder = testing::TempDir() + name;
  std::filesystem::create_directories(folder);
  EXPECT_TRUE(engine::WriteTestCheckpoint(options, folder).ok());
  absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::vector<int32_t> Prompt(int length) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((i * 37 + i / 5) % 512);
  return tokens;
}

Remains RunPlainly(const engine::Checkpoint& checkpoint, int chunk) {
  const TestModelOptions options;
  absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load(checkpoint, options);
  EXPECT_TRUE(model.ok()) << model.status();
  SequenceRuns runs(**model, options);
  SamplingSpec sampling;
  sampling.greedy = true;
  sampling.top_logprobs = 5;
  const SequenceId id = runs.Start(Prompt(300), sampling);
  runs.PrefillAll(id, chunk, 3);
  runs.DecodeTo(id, 3, 10);
  const SequenceId moved = runs.HandOver(id);
  runs.DecodeTo(moved, 3, 20);
  return runs.Leave(moved);
}

TEST(CheckpointLayouts, Fp4AndItsLosslessFp8CopyGiveTheSameBits) {
  engine::TestCheckpointOptions fp4{.config = engine::TestModelConfig()};
  fp4.fp4_scale_spread = 14;
  engine::TestCheckpointOptions fp8 = fp4;
  fp8.config.expert_dtype = "fp8";
  fp8.has_bf16_wo_a = true;
  fp8.has_f32_scales = true;
  const Remains a = RunPlainly(Write(fp4, "layouts_fp4"), 768);
  const Remains b = RunPlainly(Write(fp8, "layouts_fp8"), 768);
  EXPECT_TRUE(a == b);
  EXPECT_EQ(a.tokens.size(), 320u);
}

TEST(CheckpointLayouts, AModelWithoutCompressedLayersRunsAndMoves) {
  engine::TestCheckpointOptions options{.config = engine::TestModelConfig()};
  options.config.compress_ratios = {0, 0};
  options.config.num_hidden_layers = 2;
  const engine::Checkpoint checkpoint = Write(options, "layouts_sliding");
  EXPECT_TRUE(RunPlainly(checkpoint, 768) == RunPlainly(checkpoint, 100));
}

TEST(CheckpointLayouts, AModelWithoutDrafterRunsAndMoves) {
  engine::TestCheckpointOptions options{.config = engine::TestModelConfig()};
  options.config.num_nextn_predict_layers = 0;
  const engine::Checkpoint checkpoint = Write(options, "layouts_no_mtp");
  EXPECT_TRUE(RunPlainly(checkpoint, 768) == RunPlainly(checkpoint, 100));
}

// contracts.md 1.3, R3: max |w| up to 2.89, sinks up to 70.
TEST(AreScoresBounded, HoldsUpToTheContractsLimits) {
  EXPECT_TRUE(engine::AreScoresBounded(512, 2.89f, 70.0f));
  EXPECT_FALSE(engine::AreScoresBounded(512, 2.90f, 0.0f));
  EXPECT_FALSE(engine::AreScoresBounded(512, 1.0f, 70.5f));
}

}  // namespace
}  // namespace baton::golden
