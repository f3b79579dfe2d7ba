#include "common/cpu_pool.h"

#include <utility>

namespace baton {

CpuPool::CpuPool(int threads, size_t max_waiting) : queue_(max_waiting) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

CpuPool::~CpuPool() { Stop(); }

void CpuPool::Stop() {
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::vector<std::function<void()>> dropped;
  queue_.Drain(dropped, queue_.limit(), absl::ZeroDuration());
}

bool CpuPool::TryRun(std::function<void()> task) { return queue_.TryPush(std::move(task)); }

void CpuPool::Loop() {
  std::vector<std::function<void()>> tasks;
  while (!queue_.IsClosed()) {
    tasks.clear();
    queue_.Drain(tasks, 1, absl::Seconds(1));
    for (const auto& task : tasks) task();
  }
}

}  // namespace baton
