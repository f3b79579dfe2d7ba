#include "kvtransfer/staged/test_copier.h"

#include <cstring>

namespace baton::kvtransfer {

void TestCopier::Begin(CopyJob job, std::byte* to, const std::byte* from, size_t bytes) {
  const absl::Duration spread = settings_.max_delay - settings_.min_delay;
  const absl::Time due = clock_.Now() + settings_.min_delay + spread * rng_.Uniform();
  const bool will_fail = settings_.failure > 0 && rng_.Uniform() < settings_.failure;
  open_.emplace(std::pair(due, num_begun_++), Job{job, to, from, bytes, will_fail});
}

void TestCopier::Poll(std::vector<CopyDone>& done) {
  while (NextTime() <= clock_.Now()) {
    const Job job = open_.begin()->second;
    open_.erase(open_.begin());
    if (job.will_fail) {
      std::memset(job.to, 0xee, job.bytes / 2);
      done.push_back({job.id, absl::InternalError("the device gave up")});
    } else {
      std::memcpy(job.to, job.from, job.bytes);
      done.push_back({job.id, absl::OkStatus()});
    }
  }
}

absl::Time TestCopier::NextTime() const {
  return open_.empty() ? absl::InfiniteFuture() : open_.begin()->first.first;
}

}  // namespace baton::kvtransfer
