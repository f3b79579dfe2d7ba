#include "kernels/cuda/cuda_memory_queue.h"

#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::kernels::cuda {

absl::StatusOr<std::unique_ptr<CudaMemoryQueue>> CudaMemoryQueue::Create(int ordinal) {
  std::unique_ptr<CudaMemoryQueue> queue(new CudaMemoryQueue(ordinal));
  RETURN_IF_ERROR(queue->Initialise());
  return queue;
}

absl::Status CudaMemoryQueue::Initialise() {
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal_), "cudaSetDevice"));
  RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
  void *places = nullptr, *sums = nullptr;
  const bool has_memory = cudaMallocHost(&places, kPlaces * sizeof(Place)) == cudaSuccess &&
                          cudaMalloc(&sums, kPlaces * sizeof(Place::sums)) == cudaSuccess;
  places_ = static_cast<Place*>(places);
  sums_ = static_cast<uint64_t*>(sums);
  if (!has_memory) {
    cudaGetLastError();
    return absl::ResourceExhaustedError("no memory for a queue of copies and digests");
  }
  for (size_t i = kPlaces; i-- > 0;) free_places_.push_back(static_cast<int>(i));
  return absl::OkStatus();
}

CudaMemoryQueue::~CudaMemoryQueue() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const Running& running : running_) {
    if (running.event != nullptr) cudaEventDestroy(running.event);
  }
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
  cudaFree(sums_);
  cudaFreeHost(places_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

// A job that cannot be followed is over only when the stream is.
void CudaMemoryQueue::Finish(Running running) {
  if (running.error == cudaSuccess && free_events_.empty()) {
    cudaEvent_t event = nullptr;
    running.error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (running.error == cudaSuccess) free_events_.push_back(event);
  }
  if (running.error == cudaSuccess) {
    running.event = free_events_.back();
    free_events_.pop_back();
    running.error = cudaEventRecord(running.event, stream_);
  }
  if (running.error != cudaSuccess) {
    cudaStreamSynchronize(stream_);
    cudaGetLastError();
  }
  running_.push_back(running);
}

void CudaMemoryQueue::Copy(uint64_t job, std::byte* to, const std::byte* from, size_t bytes) {
  Running running{.job = job};
  running.error = cudaSetDevice(ordinal_);
  if (running.error == cudaSuccess)
    running.error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_);
  Finish(running);
}

void CudaMemoryQueue::Digest(uint64_t job, const Secret& secret, std::span<const std::byte> header,
                             std::span<const std::byte> data) {
  CHECK(header.size() <= kDigestChunkBytes);
  waiting_.push_back(
      {.job = job, .secret = secret, .header = {header.begin(), header.end()}, .data = data});
  if (waiting_.size() > 1 || free_places_.empty()) return;
  StartDigest(waiting_.front());
  waiting_.pop_front();
}

void CudaMemoryQueue::StartDigest(const Waiting& waiting) {
  Running running{.job = waiting.job, .place = free_places_.back()};
  free_places_.pop_back();
  Place& place = places_[running.place];
  place.header.fill(0);
  if (!waiting.header.empty())
    std::memcpy(place.header.data(), waiting.header.data(), waiting.header.size());
  place.item = {.header = place.header.data(),
                .data = reinterpret_cast<const uint8_t*>(waiting.data.data()),
                .bytes = waiting.data.size()};
  DigestKernelArgs kernel;
  std::memcpy(kernel.secret, waiting.secret.bytes.data(), sizeof(kernel.secret));
  kernel.items = &place.item;
  kernel.num_items = 1;
  kernel.longest = waiting.data.size();
  kernel.sums = sums_ + 2 * running.place;
  running.error = cudaSetDevice(ordinal_);
  if (running.error == cudaSuccess) running.error = RunDigest(kernel, stream_);
  if (running.error == cudaSuccess) {
    running.error = cudaMemcpyAsync(place.sums.data(), kernel.sums, sizeof(place.sums),
                                    cudaMemcpyDeviceToHost, stream_);
  }
  Finish(running);
}

bool CudaMemoryQueue::IsDone(Running& running) const {
  if (running.error != cudaSuccess) return true;
  const cudaError_t state = cudaEventQuery(running.event);
  if (state == cudaErrorNotReady) return false;
  running.error = state;
  return true;
}

void CudaMemoryQueue::Poll(std::vector<Done>& done) {
  while (!running_.empty() && IsDone(running_.front())) {
    const Running running = running_.front();
    running_.pop_front();
    if (running.event != nullptr) free_events_.push_back(running.event);
    Done& one = done.emplace_back();
    one.job = running.job;
    one.status = ToStatus(running.error, "copy or digest of pages");
    if (running.place == kNoPlace) continue;
    std::memcpy(one.digest.bytes.data(), places_[running.place].sums.data(), 16);
    free_places_.push_back(running.place);
  }
  while (!waiting_.empty() && !free_places_.empty()) {
    StartDigest(waiting_.front());
    waiting_.pop_front();
  }
}

}  // namespace baton::kernels::cuda
