#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "common/mutex.h"

namespace baton {

// Many producers, one consumer. Full means "no", never waiting: the producer answers
// kResourceExhausted. Any thread.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t limit) : limit_(limit) {}

  // False when full or closed; `value` is then untouched.
  bool TryPush(T&& value) {
    {
      MutexLock lock(mutex_);
      if (closed_ || items_.size() >= limit_) return false;
      items_.push_back(std::move(value));
    }
    ready_.NotifyOne();
    return true;
  }

  // Moves up to `max_items` into `out`; waits up to `timeout` for the first. Returns how many came.
  size_t Drain(std::vector<T>& out, size_t max_items, absl::Duration timeout) {
    MutexLock lock(mutex_);
    if (items_.empty() && !closed_ && !woken_ && timeout > absl::ZeroDuration())
      ready_.WaitFor(mutex_, timeout);
    woken_ = false;
    const size_t count = std::min(max_items, items_.size());
    for (size_t i = 0; i < count; ++i) {
      out.push_back(std::move(items_.front()));
      items_.pop_front();
    }
    return count;
  }

  // Ends the consumer's wait, or its next one, though nothing was pushed: it has work elsewhere.
  void Wake() {
    {
      MutexLock lock(mutex_);
      woken_ = true;
    }
    ready_.NotifyOne();
  }

  // Refuses further pushes and wakes the consumer; what is inside can still be drained.
  void Close() {
    {
      MutexLock lock(mutex_);
      closed_ = true;
    }
    ready_.NotifyAll();
  }

  bool IsClosed() const {
    MutexLock lock(mutex_);
    return closed_;
  }

  size_t Size() const {
    MutexLock lock(mutex_);
    return items_.size();
  }
  size_t limit() const { return limit_; }

 private:
  const size_t limit_;
  mutable Mutex mutex_;
  ConditionVariable ready_;
  std::deque<T> items_ GUARDED_BY(mutex_);
  bool closed_ GUARDED_BY(mutex_) = false;
  bool woken_ GUARDED_BY(mutex_) = false;
};

}  // namespace baton
