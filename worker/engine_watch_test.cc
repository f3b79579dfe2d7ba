#include "worker/engine_watch.h"

#include <gtest/gtest.h>

namespace baton::worker {
namespace {

TEST(EngineWatch, ASlowEngineIsNotWedgedAndASilentOneIs) {
  ManualClock clock;
  EngineWatch watch(clock, absl::Seconds(2));
  clock.Advance(absl::Minutes(1));
  EXPECT_FALSE(watch.IsWedged());  // nothing to do
  watch.OnRound(0, absl::ZeroDuration(), true);
  clock.Advance(absl::Seconds(1));
  EXPECT_FALSE(watch.IsWedged());
  watch.OnRound(1, absl::Seconds(1), true);
  clock.Advance(absl::Seconds(15));
  EXPECT_FALSE(watch.IsWedged());  // 20 usual steps
  EXPECT_EQ(watch.Beat().since_step_us, 15'000'000u);
  clock.Advance(absl::Seconds(6));
  EXPECT_TRUE(watch.Beat().is_wedged);
  watch.OnRound(2, absl::Seconds(1), true);
  EXPECT_FALSE(watch.IsWedged());
  watch.OnRound(3, absl::Milliseconds(20), true);
  clock.Advance(absl::Seconds(15));
  EXPECT_FALSE(watch.IsWedged());  // a short step after a long one proves nothing
}

}  // namespace
}  // namespace baton::worker
