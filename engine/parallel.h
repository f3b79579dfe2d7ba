#pragma once

#include <functional>
#include <memory>

#include "kernels/device.h"

namespace baton::engine {

// The threads behind a CPU back end's phases and a step's masks. ForEach runs fn(0) ..
// fn(parts - 1), each once, on the caller and the pool's threads, and returns when all are done;
// who runs which part is open. One caller at a time; fn must not call ForEach. Threads end with the
// pool.
class ThreadPool {
 public:
  // num_threads >= 1, the caller included: 1 starts none.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void ForEach(int parts, const std::function<void(int part)>& fn);
  // As the kernels take it; the pool must outlive it.
  kernels::ParallelFor AsParallelFor();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace baton::engine
