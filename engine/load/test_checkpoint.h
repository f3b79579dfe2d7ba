#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "engine/load/checkpoint.h"
#include "engine/model/config.h"

// Checkpoints with random weights, written for tests: any configuration of the family, in each
// layout that Checkpoint reads.
namespace baton::engine {

// A tensor to be written.
struct OwnedTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

// A safetensors file; larger elements first, so that every tensor is aligned.
absl::Status WriteSafetensors(const std::string& path, std::vector<OwnedTensor> tensors);

struct TestCheckpointOptions {
  ModelConfig config;  // expert_dtype: the layout of the routed experts
  uint64_t seed = 1;
  bool has_bf16_wo_a = false;   // as in the FP8 rerelease
  bool has_f32_scales = false;  // else E8M0
  int fp4_scale_spread = 3;     // log2 of the largest ratio of two group scales, 0..14
  int num_shards = 1;           // 0: model.safetensors without an index
};

// The numbers depend on seed, names and fp4_scale_spread only: all layouts of one seed hold equal
// values (model.md 9.5).
std::vector<OwnedTensor> MakeTestTensors(const TestCheckpointOptions& options);

// Writes config.json, shards and index into an existing folder.
absl::Status WriteTestCheckpoint(const TestCheckpointOptions& options, const std::string& folder);

// The smallest interesting model: hidden 128, 2 heads, 8 experts, layers sliding (hashed), CSA,
// HCA, CSA, one MTP block.
ModelConfig TestModelConfig();

// config.json of a configuration.
std::string ModelConfigJson(const ModelConfig& config);

}  // namespace baton::engine
