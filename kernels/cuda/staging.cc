#include "kernels/cuda/staging.h"

#include <algorithm>
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
  while (free_events_.size() < kMaxInFlight) {
    cudaEvent_t event = nullptr;
    RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
    free_events_.push_back(event);
  }
  return absl::OkStatus();
}

Staging::~Staging() {
  for (const Piece& piece : in_flight_) cudaEventDestroy(piece.copied);
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
}

absl::Status Staging::WaitForOldest() {
  const Piece oldest = in_flight_.front();
  in_flight_.pop_front();
  free_events_.push_back(oldest.copied);
  return ToStatus(cudaEventSynchronize(oldest.copied), "wait for a copied batch");
}

absl::Status Staging::Begin() {
  first_ += (used_ + kAlignment - 1) / kAlignment * kAlignment;
  used_ = 0;
  if (first_ + batch_bytes_ > kBatches * batch_bytes_) first_ = 0;
  const auto is_in_the_way = [this](const Piece& piece) {
    return piece.begin < first_ + batch_bytes_ && piece.end > first_;
  };
  while (free_events_.empty() || std::ranges::any_of(in_flight_, is_in_the_way)) {
    RETURN_IF_ERROR(WaitForOldest());
  }
  return absl::OkStatus();
}

std::byte* Staging::PutBytes(const void* data, size_t bytes) {
  const size_t offset = (used_ + kAlignment - 1) / kAlignment * kAlignment;
  CHECK(offset + bytes <= batch_bytes_);
  if (bytes != 0) std::memcpy(host_ + first_ + offset, data, bytes);
  used_ = offset + bytes;
  return device_memory_ + first_ + offset;
}

absl::Status Staging::Flush() {
  if (used_ == 0) return absl::OkStatus();
  RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(device_memory_ + first_, host_ + first_, used_,
                                           cudaMemcpyHostToDevice, device_->stream()),
                           "copy arguments"));
  in_flight_.push_back({first_, first_ + used_, free_events_.back()});
  free_events_.pop_back();
  return ToStatus(cudaEventRecord(in_flight_.back().copied, device_->stream()), "cudaEventRecord");
}

}  // namespace baton::kernels::cuda
