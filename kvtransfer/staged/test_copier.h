#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "kvtransfer/block_copier.h"

namespace baton::kvtransfer {

// For tests: copies in virtual time. Bytes move when a job's time has come, so an end that changed
// too early is visible. A failed job leaves half a block of garbage. One thread.
class TestCopier final : public BlockCopier {
 public:
  struct Settings {
    absl::Duration min_delay = absl::Microseconds(5);
    absl::Duration max_delay = absl::Microseconds(50);
    double failure = 0;  // chance in [0, 1]
  };
  TestCopier(const Clock& clock, Rng& rng) : clock_(clock), rng_(rng) {}

  void Set(const Settings& settings) { settings_ = settings; }
  void Begin(CopyJob job, std::byte* to, const std::byte* from, size_t bytes) override;
  void Poll(std::vector<CopyDone>& done) override;

  // When the next job is due; InfiniteFuture if none is.
  absl::Time NextTime() const;
  size_t NumOpen() const { return open_.size(); }
  size_t NumBegun() const { return num_begun_; }

 private:
  struct Job {
    CopyJob id;
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    size_t bytes = 0;
    bool will_fail = false;
  };

  const Clock& clock_;
  Rng& rng_;
  Settings settings_;
  std::map<std::pair<absl::Time, size_t>, Job> open_;  // by time due, then by order
  size_t num_begun_ = 0;
};

}  // namespace baton::kvtransfer
