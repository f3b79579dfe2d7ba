#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "common/ids.h"
#include "engine/model/config.h"

namespace baton::engine {

// dtypes as a safetensors header spells them; F8_E8M0 and F8_E4M3 are raw bytes.
enum class DType { kBf16, kF32, kF8E4M3, kF8E8M0, kI8, kI32, kI64 };

// One tensor of a safetensors file: a view into a read-only mapping.
struct HostTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // little-endian, row-major
};

// One safetensors file, mapped. Errors name the file and the tensor. Immutable, any thread.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();
  const std::vector<HostTensor>& tensors() const;  // ascending by name
  const HostTensor* Find(std::string_view name) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A checkpoint folder in the official layout, checked as a whole: config field by field, then every
// tensor's name, dtype and shape (missing, extra and misshaped ones are reported together).
// Immutable, any thread.
class Checkpoint {
 public:
  static absl::StatusOr<Checkpoint> Open(const std::string& folder);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::string& folder() const;
  const ModelConfig& config() const;
  // The tensor of that official name; CHECKs that it exists (Open has verified all of them).
  const HostTensor& Tensor(std::string_view name) const;
  bool Has(std::string_view name) const;  // optional ones only: wo_a.scale in the FP8 rerelease
  const std::vector<const HostTensor*>& tensors() const;  // ascending by name
  uint64_t total_bytes() const;
  // contracts.md 1.1. Reads every byte the first time, then keeps `<cache_folder>/<key>.weights_id`
  // keyed by path, sizes and mtimes; an empty cache_folder always computes.
  absl::StatusOr<WeightsId> ComputeWeightsId(const std::string& cache_folder) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::engine
