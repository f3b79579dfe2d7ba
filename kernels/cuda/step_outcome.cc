#include "kernels/cuda/step_outcome.h"

#include "common/status.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {
namespace {

size_t Unsigned(int n) { return static_cast<size_t>(n); }
size_t Rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

size_t StepOutcome::DraftsAt(const Sizes& sizes) {
  return Rounded(Unsigned(sizes.max_runs) * sizeof(DrafterRun));
}

size_t StepOutcome::ChoicesAt(const Sizes& sizes) {
  return DraftsAt(sizes) +
         Rounded(Ops::kMaxKeptDrafts * Unsigned(sizes.max_draft_rows) * sizeof(int32_t));
}

size_t StepOutcome::DeviceBytes(const Sizes& sizes) {
  return ChoicesAt(sizes) + Unsigned(sizes.max_choices) * sizeof(SampleResult);
}

absl::Status StepOutcome::Create(CudaDevice& device, const Sizes& sizes) {
  device_ = &device;
  sizes_ = sizes;
  ASSIGN_OR_RETURN(device_memory_, device.Allocate(DeviceBytes(sizes)));
  ASSIGN_OR_RETURN(host_, device.AllocateHost(DeviceBytes(sizes)));
  return ToStatus(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "cudaEventCreate");
}

StepOutcome::~StepOutcome() {
  if (copied_ != nullptr) cudaEventDestroy(copied_);
}

DrafterRun* StepOutcome::runs() const { return reinterpret_cast<DrafterRun*>(device_memory_); }

int32_t* StepOutcome::drafts() const {
  return reinterpret_cast<int32_t*>(device_memory_ + DraftsAt(sizes_));
}

SampleResult* StepOutcome::choices() const {
  return reinterpret_cast<SampleResult*>(device_memory_ + ChoicesAt(sizes_));
}

absl::Status StepOutcome::Queue(size_t num_choices) {
  const size_t bytes = ChoicesAt(sizes_) + num_choices * sizeof(SampleResult);
  RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(host_, device_memory_, bytes, cudaMemcpyDeviceToHost, device_->stream()),
      "copy what the step has chosen"));
  return ToStatus(cudaEventRecord(copied_, device_->stream()), "cudaEventRecord");
}

absl::Status StepOutcome::Await() {
  return ToStatus(cudaEventSynchronize(copied_), "a kernel or copy of this step");
}

const DrafterRun& StepOutcome::FetchedRun(size_t run) const {
  return reinterpret_cast<const DrafterRun*>(host_)[run];
}

const SampleResult& StepOutcome::FetchedChoice(size_t choice) const {
  return reinterpret_cast<const SampleResult*>(host_ + ChoicesAt(sizes_))[choice];
}

int32_t StepOutcome::FetchedDraft(size_t draft, size_t run) const {
  const int32_t row = FetchedRun(run).draft_row;
  if (row < 0) return -1;
  const auto* drafts = reinterpret_cast<const int32_t*>(host_ + DraftsAt(sizes_));
  return drafts[draft * Unsigned(sizes_.max_draft_rows) + static_cast<size_t>(row)];
}

}  // namespace baton::kernels::cuda
