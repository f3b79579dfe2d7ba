#include "worker/device_memory.h"

#include <algorithm>

#include "common/check.h"

namespace baton::worker {

void DeviceCopier::Begin(kvtransfer::CopyJob job, std::byte* to, const std::byte* from,
                         size_t bytes) {
  queue_->Copy(job.value, to, from, bytes);
}

void DeviceCopier::Poll(std::vector<kvtransfer::CopyDone>& done) {
  finished_.clear();
  queue_->Poll(finished_);
  for (const kernels::MemoryQueue::Done& one : finished_)
    done.push_back({.job = kvtransfer::CopyJob{one.job}, .status = one.status});
}

void DeviceDigester::AddDeviceRegion(kvtransfer::RegionId region,
                                     std::span<const std::byte> memory) {
  CHECK(queue_ != nullptr);
  device_.push_back({.id = region, .memory = memory});
}

void DeviceDigester::Begin(kvtransfer::DigestJob job, const kvtransfer::Place& place,
                           const Secret& secret, std::span<const std::byte> header) {
  const auto region = std::ranges::find(device_, place.region, &Region::id);
  if (region == device_.end()) return host_.Begin(job, place, secret, header);
  CHECK(place.offset <= region->memory.size() &&
        place.bytes <= region->memory.size() - place.offset);
  queue_->Digest(job.value, secret, header, region->memory.subspan(place.offset, place.bytes));
}

void DeviceDigester::Poll(std::vector<kvtransfer::DigestDone>& done) {
  host_.Poll(done);
  if (queue_ == nullptr) return;
  finished_.clear();
  queue_->Poll(finished_);
  for (const kernels::MemoryQueue::Done& one : finished_) {
    const kvtransfer::DigestJob job{one.job};
    if (one.status.ok()) {
      done.push_back({job, one.digest});
    } else {
      done.push_back({job, one.status});
    }
  }
}

}  // namespace baton::worker
