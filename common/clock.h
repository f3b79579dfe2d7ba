#pragma once

#include "absl/time/time.h"

namespace baton {

// Monotonic time since an arbitrary start, as an absl::Time so that deadlines subtract. Any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The machine's steady clock.
class SteadyClock final : public Clock {
 public:
  absl::Time Now() const override;
};

// Moves only when told to. One thread.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Set(absl::Time now) { now_ = now; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Time now_ = absl::UnixEpoch();
};

// Calendar time, for `created` fields and log lines only.
absl::Time WallNow();

// Blocks the calling thread. Only for threads that own no queue.
void SleepFor(absl::Duration duration);

}  // namespace baton
