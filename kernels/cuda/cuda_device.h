#pragma once

#include <array>
#include <cuda_runtime_api.h>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/matrix_view.h"
#include "kernels/device.h"

namespace baton::kernels::cuda {

// A weight matrix in device memory.
class DeviceMatrix final : public Matrix {
 public:
  DeviceMatrix(int rows, int cols) : Matrix(rows, cols) {}
  MatrixView view;
};

// The one Matrix type of this back end.
inline const MatrixView& ViewOf(const Matrix* matrix) {
  return static_cast<const DeviceMatrix*>(matrix)->view;
}

// OK for the GPUs that have a kernel of every operator: compute capability 9.0. kFailedPrecondition
// names the operators that `gpu` lacks.
absl::Status CheckCapability(const std::string& gpu, int major, int minor);

// Memory and the stream of one GPU. Engine thread.
class CudaDevice final : public Device {
 public:
  // `parallel` copies weights out of their mapping; null: the calling thread.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(int ordinal,
                                                            ParallelFor parallel = nullptr);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  absl::StatusOr<const Matrix*> Upload(const HostMatrix& matrix) override;
  absl::StatusOr<Vector> UploadVector(std::span<const float> values) override;
  absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t> values) override;
  absl::StatusOr<std::byte*> Allocate(size_t bytes) override;
  void Zero(std::byte* data, size_t bytes) override;
  size_t allocated_bytes() const override { return allocated_bytes_; }
  std::string Describe() const override;
  bool is_host() const override { return false; }
  void EnterThread() override { cudaSetDevice(ordinal_); }
  DeviceMemory memory() const override;
  // Pinned; lives as long as the device.
  absl::StatusOr<std::byte*> AllocateHost(size_t bytes) override;
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override;
  absl::Status Synchronize() override;
  absl::StatusOr<std::unique_ptr<MemoryQueue>> MakeMemoryQueue() override;

  // Copies into new device memory, through pinned pieces: reading the source and moving it to the
  // GPU go on side by side. Returns when the source may change; kernels queued later see the copy.
  absl::StatusOr<const uint8_t*> UploadBytes(const void* data, size_t bytes);

  cudaStream_t stream() const { return stream_; }

 private:
  CudaDevice() = default;
  absl::StatusOr<std::byte*> Suballocate(size_t bytes);
  absl::StatusOr<std::byte*> NextPiece();
  absl::Status UploadFp4(const HostMatrix& host, MatrixView& view);

  cudaStream_t stream_ = nullptr;
  cudaDeviceProp properties_ = {};
  int ordinal_ = 0;
  ParallelFor parallel_;
  size_t allocated_bytes_ = 0;
  std::byte* piece_ = nullptr;  // the piece small uploads go into
  size_t piece_used_ = 0;
  // Uploads on their way, two pinned pieces in turns.
  std::array<std::byte*, 2> upload_pieces_ = {};
  std::array<cudaEvent_t, 2> uploaded_ = {};
  size_t upload_turn_ = 0;
  std::vector<void*> buffers_, pinned_;
  std::vector<std::unique_ptr<DeviceMatrix>> matrices_;
};

}  // namespace baton::kernels::cuda
