#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/load/checkpoint.h"

namespace baton::golden {

// Logits of some positions of a sequence.
struct GoldenLogits {
  std::vector<int32_t> positions;  // ascending
  std::vector<float> values;       // [positions, V]
};

// One sequence of golden.safetensors; what the file does not have is empty.
struct GoldenSequence {
  int number = 0;
  std::vector<int32_t> tokens;
  std::vector<int32_t> argmax;      // float32, every position
  GoldenLogits logits, mtp_logits;  // float32
  GoldenLogits official_logits, mtp_official_logits;
  std::vector<std::vector<float>> layers;            // float32 streams after each layer
  std::vector<std::vector<float>> official_streams;  // before each layer, and after the last
  bool is_trained = false;                           // end-to-end official logits can be judged
};

// Every sequence of a file made as tests/data/golden/README.md says. Errors name the file and the
// tensor.
absl::StatusOr<std::vector<GoldenSequence>> ReadGoldens(const std::string& path);

}  // namespace baton::golden
