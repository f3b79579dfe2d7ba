#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/load/checkpoint.h"

// Which tensors a checkpoint of a model has: names, shapes and dtypes of model.md 9.2, with the
// variants of 9.5. Pure.
namespace baton::engine {

enum class TensorKind {
  kBf16,           // BF16
  kF32,            // F32
  kF8,             // F8_E4M3
  kF8OrBf16,       // wo_a: BF16 where the FP8 rerelease left it unquantised
  kPackedFp4,      // I8, two codes a byte
  kScale,          // F8_E8M0, or F32 powers of two
  kOptionalScale,  // wo_a's: present exactly when its weight is F8_E4M3
  kIndices,        // I64 or I32
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kBf16;
};

// Every tensor of the checkpoint, in the order of the model.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// Whether a tensor of that kind may have that dtype.
bool IsAllowed(TensorKind kind, DType dtype);
// The allowed dtypes, for messages: "F8_E8M0 or F32".
const char* AllowedDTypes(TensorKind kind);

}  // namespace baton::engine
