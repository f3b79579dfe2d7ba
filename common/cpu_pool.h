#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "common/bounded_queue.h"

namespace baton {

// A few threads for work that would hold a loop too long: large bodies and answers, grammars.
// Any thread.
class CpuPool {
 public:
  CpuPool(int threads, size_t max_waiting);
  ~CpuPool();  // Stop

  // Finishes what was taken, drops what waits and takes nothing more.
  void Stop();

  // False when `max_waiting` tasks wait already.
  bool TryRun(std::function<void()> task);
  size_t waiting() const { return queue_.Size(); }

 private:
  void Loop();
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace baton
