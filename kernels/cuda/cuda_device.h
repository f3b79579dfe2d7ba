#pragma once

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

// Memory and the stream of one GPU. Engine thread.
class CudaDevice final : public Device {
 public:
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(int ordinal);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  absl::StatusOr<const Matrix*> Upload(const HostMatrix& matrix) override;
  absl::StatusOr<Vector> UploadVector(std::span<const float> values) override;
  absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t> values) override;
  absl::StatusOr<std::byte*> Allocate(size_t bytes) override;
  void Zero(std::byte* data, size_t bytes) override;
  size_t allocated_bytes() const override { return allocated_bytes_; }

  // Pinned host memory that lives as long as the device.
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes);
  // Copies into new device memory; returns when the source may change.
  absl::StatusOr<const uint8_t*> UploadBytes(const void* data, size_t bytes);

  cudaStream_t stream() const { return stream_; }
  std::string Describe() const;

 private:
  CudaDevice() = default;
  absl::StatusOr<std::byte*> Suballocate(size_t bytes);
  absl::Status UploadFp4(const HostMatrix& host, MatrixView& view);

  cudaStream_t stream_ = nullptr;
  cudaDeviceProp properties_ = {};
  size_t allocated_bytes_ = 0;
  std::byte* piece_ = nullptr;  // the piece small uploads go into
  size_t piece_used_ = 0;
  std::vector<void*> buffers_, pinned_;
  std::vector<std::unique_ptr<DeviceMatrix>> matrices_;
};

}  // namespace baton::kernels::cuda
