#include "kernels/cuda/staging.h"

#include <cstring>

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::kernels::cuda {

absl::Status Staging::Create(CudaDevice& device, size_t batch_bytes) {
  device_ = &device;
  batch_bytes_ = (batch_bytes + 4095) / 4096 * 4096;
  ASSIGN_OR_RETURN(host_, device.AllocateHost(kBatches * batch_bytes_));
  ASSIGN_OR_RETURN(device_memory_, device.Allocate(kBatches * batch_bytes_));
  for (cudaEvent_t& event : copied_) {
    RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
  }
  return absl::OkStatus();
}

Staging::~Staging() {
  for (cudaEvent_t event : copied_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

absl::Status Staging::Begin() {
  current_ = (current_ + 1) % kBatches;
  used_ = 0;
  return ToStatus(cudaEventSynchronize(copied_[current_]), "wait for a copied batch");
}

std::byte* Staging::PutBytes(const void* data, size_t bytes) {
  const size_t offset = (used_ + kAlignment - 1) / kAlignment * kAlignment;
  CHECK(offset + bytes <= batch_bytes_);
  if (bytes != 0) std::memcpy(host_ + current_ * batch_bytes_ + offset, data, bytes);
  used_ = offset + bytes;
  return device_memory_ + current_ * batch_bytes_ + offset;
}

absl::Status Staging::Flush() {
  const size_t first = current_ * batch_bytes_;
  if (used_ != 0) {
    RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(device_memory_ + first, host_ + first, used_,
                                             cudaMemcpyHostToDevice, device_->stream()),
                             "copy arguments"));
  }
  return ToStatus(cudaEventRecord(copied_[current_], device_->stream()), "cudaEventRecord");
}

}  // namespace baton::kernels::cuda
