#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_format.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/prepared_matrix.h"

namespace baton::kernels::cpu {
namespace {

constexpr size_t kAlignment = 4096;

struct FreeMemory {
  void operator()(std::byte* data) const { std::free(data); }
};
using Memory = std::unique_ptr<std::byte, FreeMemory>;

// Host memory. Engine thread.
class CpuDevice final : public Device {
 public:
  explicit CpuDevice(NumericsMode mode) : mode_(mode) {}

  absl::StatusOr<const Matrix*> Upload(const HostMatrix& matrix) override {
    auto prepared = PreparedMatrix::Prepare(matrix, mode_);
    if (!prepared.ok()) return prepared.status();
    allocated_bytes_ += (*prepared)->bytes();
    matrices_.push_back(*std::move(prepared));
    return matrices_.back().get();
  }

  absl::StatusOr<Vector> UploadVector(std::span<const float> values) override {
    vectors_.push_back(std::make_unique<std::vector<float>>(values.begin(), values.end()));
    allocated_bytes_ += values.size_bytes();
    return Vector{vectors_.back()->data(), values.size()};
  }

  absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t> values) override {
    indices_.push_back(std::make_unique<std::vector<int32_t>>(values.begin(), values.end()));
    allocated_bytes_ += values.size_bytes();
    return indices_.back()->data();
  }

  absl::StatusOr<std::byte*> Allocate(size_t bytes) override {
    const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
    Memory memory(static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("no memory for %d bytes, %d are allocated", rounded, allocated_bytes_));
    }
    Zero(memory.get(), rounded);
    allocated_bytes_ += rounded;
    buffers_.push_back(std::move(memory));
    return buffers_.back().get();
  }

  void Zero(std::byte* data, size_t bytes) override { std::memset(data, 0, bytes); }
  size_t allocated_bytes() const override { return allocated_bytes_; }
  std::string Describe() const override { return "host memory"; }
  bool is_host() const override { return true; }
  void EnterThread() override {}
  DeviceMemory memory() const override { return {}; }
  absl::StatusOr<std::byte*> AllocateHost(size_t bytes) override { return Allocate(bytes); }
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<MemoryQueue>> MakeMemoryQueue() override { return nullptr; }

 private:
  const NumericsMode mode_;
  size_t allocated_bytes_ = 0;
  std::vector<std::unique_ptr<PreparedMatrix>> matrices_;
  std::vector<std::unique_ptr<std::vector<float>>> vectors_;
  std::vector<std::unique_ptr<std::vector<int32_t>>> indices_;
  std::vector<Memory> buffers_;
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(NumericsMode mode) {
  return std::make_unique<CpuDevice>(mode);
}

}  // namespace baton::kernels::cpu
