#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "absl/time/time.h"

namespace baton::sim {

// What happens when, in order of time and then of insertion.
class EventQueue {
 public:
  void At(absl::Time time, std::function<void()> event) {
    events_.emplace(std::pair(time, next_++), std::move(event));
  }
  absl::Time Next() const {
    return events_.empty() ? absl::InfiniteFuture() : events_.begin()->first.first;
  }
  void RunFirst() {
    const std::function<void()> event = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    event();
  }

 private:
  std::map<std::pair<absl::Time, uint64_t>, std::function<void()>> events_;
  uint64_t next_ = 0;
};

}  // namespace baton::sim
