#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/load/checkpoint.h"

// The safetensors format (model.md 9.1): u64 header length, JSON header, data. Pure, any thread.
namespace baton::engine {

inline constexpr size_t kMaxHeaderBytes = 100'000'000;

// Bytes of one element.
size_t ElementBytes(DType dtype);
// As a safetensors header spells it.
const char* DTypeName(DType dtype);

// The tensors of a whole file, ascending by name, as views into `file`. Every error names `path`
// and the tensor: header length, JSON, names (no spaces, control characters, duplicates), dtypes,
// shapes, ranges; the tensors tile the data exactly.
absl::StatusOr<std::vector<HostTensor>> ParseSafetensors(std::span<const std::byte> file,
                                                         const std::string& path);

}  // namespace baton::engine
