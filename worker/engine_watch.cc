#include "worker/engine_watch.h"

#include <algorithm>

namespace baton::worker {
namespace {

constexpr int64_t kUsualSteps = 20;   // silent for so many usual steps: wedged
constexpr int64_t kUsualDecay = 64;   // steps: a prompt's chunk takes far longer than a decode step
constexpr int64_t kFirstFloors = 10;  // for the first step, whose usual length nobody knows

}  // namespace

EngineWatch::EngineWatch(const Clock& clock, absl::Duration floor)
    : clock_(clock),
      floor_us_(absl::ToInt64Microseconds(floor)),
      moved_at_us_(absl::ToUnixMicros(clock.Now())) {}

void EngineWatch::OnRound(uint64_t steps, absl::Duration last_step, bool has_work) {
  const bool has_moved = steps != steps_;
  const bool has_begun = has_work && !has_work_;
  if (has_moved || has_begun) moved_at_us_ = absl::ToUnixMicros(clock_.Now());
  if (has_moved) {
    const int64_t usual = usual_us_;
    const int64_t newest = absl::ToInt64Microseconds(last_step);
    usual_us_ = std::max(newest, usual - usual / kUsualDecay);
  }
  steps_ = steps;
  has_work_ = has_work;
}

int64_t EngineWatch::SinceStepUs() const {
  return std::max<int64_t>(absl::ToUnixMicros(clock_.Now()) - moved_at_us_, 0);
}

bool EngineWatch::IsWedged() const {
  if (is_memory_wedged_ || has_failed_) return true;
  const int64_t floor_us = steps_ == 0 ? kFirstFloors * floor_us_ : floor_us_;
  return has_work_ && SinceStepUs() > std::max(floor_us, kUsualSteps * usual_us_);
}

wire::Beat EngineWatch::Beat() const {
  return {.engine_steps = steps_,
          .since_step_us = static_cast<uint64_t>(SinceStepUs()),
          .is_wedged = IsWedged()};
}

}  // namespace baton::worker
