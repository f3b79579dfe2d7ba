#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

#include "common/clock.h"
#include "proto/wire.h"

namespace baton::worker {

// Tells slow from wedged (contracts.md 5): no step for max(floor, 20 x usual) while work waits. The
// engine thread writes, any reads.
class EngineWatch {
 public:
  EngineWatch(const Clock& clock, absl::Duration floor);

  // Engine thread: before each round; `has_work`: a step is due.
  void OnRound(uint64_t steps, absl::Duration last_step, bool has_work);
  void SetMemoryWedged(bool is_wedged) { is_memory_wedged_ = is_wedged; }
  void SetFailed() { has_failed_ = true; }

  // Any thread.
  bool IsWedged() const;
  wire::Beat Beat() const;  // engine_steps, since_step_us, is_wedged

 private:
  int64_t SinceStepUs() const;

  const Clock& clock_;
  const int64_t floor_us_;
  std::atomic<uint64_t> steps_ = 0;
  std::atomic<int64_t> moved_at_us_;  // of the clock: the last step, or when work came
  std::atomic<int64_t> usual_us_ = 0;
  std::atomic<bool> has_work_ = false;
  std::atomic<bool> is_memory_wedged_ = false;
  std::atomic<bool> has_failed_ = false;
};

}  // namespace baton::worker
