#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

// Clang's -Wthread-safety checks these; g++ sees nothing.
#if defined(__clang__)
#define BATON_ANNOTATE(x) __attribute__((x))
#else
#define BATON_ANNOTATE(x)
#endif
#undef GUARDED_BY  // Abseil's header of the same name means the same
#define GUARDED_BY(x) BATON_ANNOTATE(guarded_by(x))
#define REQUIRES_LOCK(x) BATON_ANNOTATE(requires_capability(x))

namespace baton {

// std::mutex with annotations. Not absl::Mutex: Debian's Abseil is not instrumented, so TSan would
// report false races.
class BATON_ANNOTATE(capability("mutex")) Mutex {
 public:
  void Lock() BATON_ANNOTATE(acquire_capability()) { mutex_.lock(); }
  void Unlock() BATON_ANNOTATE(release_capability()) { mutex_.unlock(); }

 private:
  friend class ConditionVariable;
  std::mutex mutex_;
};

class BATON_ANNOTATE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) BATON_ANNOTATE(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() BATON_ANNOTATE(release_capability()) { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class ConditionVariable {
 public:
  // Waits up to `timeout` with `mutex` held; spurious wake-ups happen, so loop on the condition.
  void WaitFor(Mutex& mutex, absl::Duration timeout) REQUIRES_LOCK(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait_for(lock, absl::ToChronoNanoseconds(timeout));
    lock.release();
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace baton
