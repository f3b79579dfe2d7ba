#include "common/clock.h"

#include <chrono>
#include <thread>

namespace baton {

absl::Time SteadyClock::Now() const {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return absl::UnixEpoch() +
         absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(since));
}

absl::Time WallNow() { return absl::FromChrono(std::chrono::system_clock::now()); }

void SleepFor(absl::Duration duration) {
  std::this_thread::sleep_for(absl::ToChronoNanoseconds(duration));
}

}  // namespace baton
