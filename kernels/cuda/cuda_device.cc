#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/code_order.cuh"
#include "kernels/cuda/cuda_memory_queue.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/fp4_blocks.h"
#include "kernels/cuda/linear.h"
#include "kernels/host_matrix.h"

namespace baton::kernels::cuda {
namespace {

constexpr size_t kAlignment = 4096;
constexpr size_t kSmallAlignment = 256;
constexpr size_t kAlwaysAligned = size_t{2} << 20;
constexpr size_t kPieceBytes = size_t{32} << 20;
constexpr size_t kReadBytes = size_t{1} << 20;  // of a mapped file, by one thread
constexpr int kSmallestExponent = -100;  // of scales: a code times its scale is a normal bf16
constexpr int kLargestFp8Exponent = 7;   // widen.cuh: 2^120 times the scale is a bf16,
constexpr int kLargestFp4Exponent = 1;   // 2^126 times it too

size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

// Scales go into bf16 operands (R1 of contracts.md 1.3).
absl::Status CheckFp8Scales(std::span<const float> scales) {
  for (const float scale : scales) {
    int exponent = 0;
    const bool is_power = std::frexp(scale, &exponent) == 0.5f;
    --exponent;
    if (is_power && exponent >= kSmallestExponent && exponent <= kLargestFp8Exponent) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "CUDA back end: fp8 matrix with a scale of %g, supported are powers of two of 2^%d .. 2^%d",
        scale, kSmallestExponent, kLargestFp8Exponent));
  }
  return absl::OkStatus();
}

ValueFormat FormatOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return ValueFormat::kF32;
    case WeightFormat::kBf16:
      return ValueFormat::kBf16;
    case WeightFormat::kFp8Block128:
      return ValueFormat::kFp8;
    case WeightFormat::kFp4Group32:
      return ValueFormat::kFp4;
  }
  CHECK(false);
}

// The values of an f32 matrix where kernels look for them.
std::vector<float> OrderF32(const HostMatrix& host) {
  std::vector<float> ordered(Product(host.rows, host.cols));
  const std::byte* value = host.values;  // of a mapped file, aligned to bytes
  for (int row = 0; row < host.rows; ++row) {
    for (int column = 0; column < host.cols; ++column, value += sizeof(float)) {
      std::memcpy(&ordered[static_cast<size_t>(PlaceOfF32(row, column, host.rows, host.cols))],
                  value, sizeof(float));
    }
  }
  return ordered;
}

size_t ValueBytes(const HostMatrix& host) {
  const size_t count = Product(host.rows, host.cols);
  switch (host.format) {
    case WeightFormat::kF32:
      return 4 * count;
    case WeightFormat::kBf16:
      return 2 * count;
    case WeightFormat::kFp8Block128:
      return count;
    case WeightFormat::kFp4Group32:
      return count / 2;
  }
  CHECK(false);
}

}  // namespace

absl::Status CheckCapability(const std::string& gpu, int major, int minor) {
  if (major == 9 && minor == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "CUDA: %s has compute capability %d.%d; ProjectIn, ProjectQuery, SelectEntries, Attend, "
      "ProjectOut, Experts and Head have kernels for 9.0 (sm_90a) alone",
      gpu, major, minor));
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(int ordinal, ParallelFor parallel) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrFormat("CUDA: no usable driver or GPU: %s", cudaGetErrorString(error)));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        absl::StrFormat("CUDA: GPU %d was asked for, there are %d", ordinal, count));
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice);
  device->ordinal_ = ordinal;
  device->parallel_ = std::move(parallel);
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal), "cudaSetDevice"));
  RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&device->properties_, ordinal), "properties"));
  RETURN_IF_ERROR(CheckCapability(absl::StrFormat("GPU %d (%s)", ordinal, device->properties_.name),
                                  device->properties_.major, device->properties_.minor));
  RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                           "cudaStreamCreate"));
  for (cudaEvent_t& event : device->uploaded_) {
    RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
  }
  return device;
}

CudaDevice::~CudaDevice() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  for (void* buffer : buffers_) cudaFree(buffer);
  for (void* buffer : pinned_) cudaFreeHost(buffer);
  for (cudaEvent_t event : uploaded_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaStreamDestroy(stream_);
}

std::string CudaDevice::Describe() const {
  return absl::StrFormat("%s, %d multiprocessors, %.1f GiB, sm_%d%d", properties_.name,
                         properties_.multiProcessorCount,
                         static_cast<double>(properties_.totalGlobalMem) / (1 << 30),
                         properties_.major, properties_.minor);
}

absl::StatusOr<std::byte*> CudaDevice::Allocate(size_t bytes) {
  const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
  // Large blocks begin at a boundary of 2 MiB, small ones need room for one of ours.
  const size_t taken = rounded < kAlwaysAligned ? rounded + kAlignment : rounded;
  void* memory = nullptr;
  if (cudaMalloc(&memory, taken) != cudaSuccess) {
    cudaGetLastError();  // not sticky: the caller decides
    return absl::ResourceExhaustedError(
        absl::StrFormat("no GPU memory for %d bytes, %d are allocated", rounded, allocated_bytes_));
  }
  buffers_.push_back(memory);
  allocated_bytes_ += taken;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  auto* data = reinterpret_cast<std::byte*>((address + kAlignment - 1) / kAlignment * kAlignment);
  CHECK(data + rounded <= static_cast<std::byte*>(memory) + taken);
  RETURN_IF_ERROR(ToStatus(cudaMemsetAsync(data, 0, rounded, stream_), "zero new memory"));
  return data;
}

absl::StatusOr<std::byte*> CudaDevice::AllocateHost(size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocHost(&memory, std::max<size_t>(bytes, 1)) != cudaSuccess) {
    cudaGetLastError();  // not sticky: the caller decides
    return absl::ResourceExhaustedError(absl::StrFormat("no pinned memory for %d bytes", bytes));
  }
  std::memset(memory, 0, bytes);
  pinned_.push_back(memory);
  return static_cast<std::byte*>(memory);
}

DeviceMemory CudaDevice::memory() const {
  DeviceMemory memory;
  if (cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes) != cudaSuccess) return {};
  return memory;
}

// A failure here is one of the device; Synchronize repeats it.
void CudaDevice::Zero(std::byte* data, size_t bytes) { cudaMemsetAsync(data, 0, bytes, stream_); }

absl::Status CudaDevice::Copy(std::byte* to, const std::byte* from, size_t bytes) {
  RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy"));
  return Synchronize();
}

absl::Status CudaDevice::Synchronize() {
  return ToStatus(cudaStreamSynchronize(stream_), "a kernel or copy of this step");
}

absl::StatusOr<std::unique_ptr<MemoryQueue>> CudaDevice::MakeMemoryQueue() {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaMemoryQueue> queue, CudaMemoryQueue::Create(ordinal_));
  return std::unique_ptr<MemoryQueue>(std::move(queue));
}

// Thousands of small matrices share large pieces of memory.
absl::StatusOr<std::byte*> CudaDevice::Suballocate(size_t bytes) {
  const size_t rounded = (bytes + kSmallAlignment - 1) / kSmallAlignment * kSmallAlignment;
  if (rounded > kPieceBytes / 4) return Allocate(rounded);
  if (piece_ == nullptr || piece_used_ + rounded > kPieceBytes) {
    ASSIGN_OR_RETURN(piece_, Allocate(kPieceBytes));
    piece_used_ = 0;
  }
  std::byte* memory = piece_ + piece_used_;
  piece_used_ += rounded;
  return memory;
}

// A pinned piece whose last copy has left it.
absl::StatusOr<std::byte*> CudaDevice::NextPiece() {
  upload_turn_ = (upload_turn_ + 1) % upload_pieces_.size();
  std::byte*& piece = upload_pieces_[upload_turn_];
  if (piece == nullptr) {
    ASSIGN_OR_RETURN(piece, AllocateHost(kPieceBytes));
  }
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(uploaded_[upload_turn_]), "upload"));
  return piece;
}

absl::StatusOr<const uint8_t*> CudaDevice::UploadBytes(const void* data, size_t bytes) {
  ASSIGN_OR_RETURN(std::byte * memory, Suballocate(bytes));
  const auto* source = static_cast<const std::byte*>(data);
  for (size_t done = 0; done < bytes; done += kPieceBytes) {
    const size_t size = std::min(kPieceBytes, bytes - done);
    ASSIGN_OR_RETURN(std::byte* const piece, NextPiece());
    const auto parts = static_cast<int>((size + kReadBytes - 1) / kReadBytes);
    const auto read = [&](int part) {
      const size_t first = static_cast<size_t>(part) * kReadBytes;
      std::memcpy(piece + first, source + done + first, std::min(kReadBytes, size - first));
    };
    if (parallel_ != nullptr && parts > 1) {
      parallel_(parts, read);
    } else {
      for (int part = 0; part < parts; ++part) read(part);
    }
    RETURN_IF_ERROR(ToStatus(
        cudaMemcpyAsync(memory + done, piece, size, cudaMemcpyHostToDevice, stream_), "upload"));
    RETURN_IF_ERROR(ToStatus(cudaEventRecord(uploaded_[upload_turn_], stream_), "upload"));
  }
  return reinterpret_cast<const uint8_t*>(memory);
}

absl::Status CudaDevice::UploadFp4(const HostMatrix& host, MatrixView& view) {
  const Fp4Scales scales = ReadFp4Scales(host);
  if (scales.smallest < kSmallestExponent || scales.largest > kLargestFp4Exponent) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "CUDA back end: FP4 matrix of %d x %d has scales of 2^%d .. 2^%d, supported are 2^%d .. "
        "2^%d",
        host.rows, host.cols, scales.smallest, scales.largest, kSmallestExponent,
        kLargestFp4Exponent));
  }
  view.is_wide = scales.is_wide;
  ASSIGN_OR_RETURN(view.exponents, UploadBytes(scales.exponents.data(), scales.exponents.size()));
  ASSIGN_OR_RETURN(const uint8_t* common,
                   UploadBytes(scales.common.data(), scales.common.size() * sizeof(float)));
  view.scales = reinterpret_cast<const float*>(common);
  return absl::OkStatus();
}

absl::StatusOr<const Matrix*> CudaDevice::Upload(const HostMatrix& host) {
  RETURN_IF_ERROR(CheckHost(host));
  auto matrix = std::make_unique<DeviceMatrix>(host.rows, host.cols);
  MatrixView& view = matrix->view;
  view.rows = host.rows;
  view.cols = host.cols;
  view.format = FormatOf(host.format);
  const size_t bytes = ValueBytes(host);
  if (host.format == WeightFormat::kF32) {
    const std::vector<float> ordered = OrderF32(host);
    ASSIGN_OR_RETURN(view.values, UploadBytes(ordered.data(), bytes));
  } else {
    ASSIGN_OR_RETURN(view.values, UploadBytes(host.values, bytes));
  }
  RETURN_IF_ERROR(ToStatus(
      OrderCodes(const_cast<uint8_t*>(view.values), bytes, view.format, stream_), "order codes"));
  if (host.format == WeightFormat::kFp4Group32) {
    RETURN_IF_ERROR(UploadFp4(host, view));
  } else if (host.format == WeightFormat::kFp8Block128) {
    const std::vector<float> scales = Fp8ScalesOf(host);
    RETURN_IF_ERROR(CheckFp8Scales(scales));
    ASSIGN_OR_RETURN(const uint8_t* uploaded,
                     UploadBytes(scales.data(), scales.size() * sizeof(float)));
    view.scales = reinterpret_cast<const float*>(uploaded);
  }
  matrices_.push_back(std::move(matrix));
  return matrices_.back().get();
}

absl::StatusOr<Vector> CudaDevice::UploadVector(std::span<const float> values) {
  ASSIGN_OR_RETURN(const uint8_t* data, UploadBytes(values.data(), values.size_bytes()));
  return Vector{reinterpret_cast<const float*>(data), values.size()};
}

absl::StatusOr<const int32_t*> CudaDevice::UploadIndices(std::span<const int32_t> values) {
  ASSIGN_OR_RETURN(const uint8_t* data, UploadBytes(values.data(), values.size_bytes()));
  return reinterpret_cast<const int32_t*>(data);
}

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int ordinal, ParallelFor parallel) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device,
                   CudaDevice::Create(ordinal, std::move(parallel)));
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace baton::kernels::cuda
