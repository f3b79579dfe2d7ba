#include "engine/parallel.h"

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/mutex.h"

namespace baton::engine {
namespace {

// A section is microseconds long and the next one follows at once: waiting threads look this often
// before they sleep.
constexpr int kSpins = 2000;
constexpr uint32_t kClosed = 0xffffffffu;            // as a next part: none is left
constexpr absl::Duration kSleep = absl::Seconds(1);  // a bound only; Start and Stop wake sleepers

}  // namespace

struct ThreadPool::State {
  // One parallel section. `ticket` packs its number and the next part; a part is taken by
  // compare-and-swap against the ticket seen before `parts` and `fn` were read. They change only
  // while the ticket is closed, so a late thread's swap fails and it takes nothing.
  std::atomic<uint64_t> ticket{0};  // section << 32 | next part
  std::atomic<int> unfinished{0};   // parts of the section that have not ended
  std::atomic<uint32_t> parts{0};
  std::atomic<const std::function<void(int)>*> fn{nullptr};
  std::atomic<bool> stops{false};

  // The lock is for sleeping only: everything above is atomic.
  Mutex mutex;
  ConditionVariable wakes;
  std::atomic<int> sleepers{0};

  std::vector<std::thread> threads;

  static uint32_t SectionOf(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

  // Runs parts of the current section until none is left.
  void Work() {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    const uint32_t section = SectionOf(seen);
    while (SectionOf(seen) == section) {
      const uint32_t count = parts.load(std::memory_order_acquire);
      const std::function<void(int)>* run = fn.load(std::memory_order_acquire);
      const auto part = static_cast<uint32_t>(seen);
      if (part >= count) return;
      if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      (*run)(static_cast<int>(part));
      unfinished.fetch_sub(1, std::memory_order_acq_rel);
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  // Until the section is no longer `section`, or the end.
  void AwaitSection(uint32_t section) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (SectionOf(ticket.load(std::memory_order_acquire)) != section || stops.load()) return;
      std::this_thread::yield();
    }
    MutexLock lock(mutex);
    sleepers.fetch_add(1);
    while (SectionOf(ticket.load()) == section && !stops.load()) wakes.WaitFor(mutex, kSleep);
    sleepers.fetch_sub(1);
  }

  void Loop() {
    uint32_t section = 0;
    while (!stops.load()) {
      AwaitSection(section);
      section = SectionOf(ticket.load(std::memory_order_acquire));
      Work();
    }
  }

  void Wake() {
    if (sleepers.load() == 0) return;
    MutexLock lock(mutex);
    wakes.NotifyAll();
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) {
    state_->threads.emplace_back([state = state_.get()] { state->Loop(); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stops.store(true);
  {
    MutexLock lock(state_->mutex);
    state_->wakes.NotifyAll();
  }
  for (std::thread& thread : state_->threads) thread.join();
}

void ThreadPool::ForEach(int parts, const std::function<void(int part)>& fn) {
  if (parts <= 1 || state_->threads.empty()) {
    for (int part = 0; part < parts; ++part) fn(part);
    return;
  }
  State& state = *state_;
  const uint64_t section = State::SectionOf(state.ticket.load());
  state.ticket.store((section << 32) | kClosed);
  state.unfinished.store(parts);
  state.fn.store(&fn);
  state.parts.store(static_cast<uint32_t>(parts));
  state.ticket.store((section + 1) << 32);
  state.Wake();
  state.Work();
  while (state.unfinished.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

kernels::ParallelFor ThreadPool::AsParallelFor() {
  return [this](int parts, const std::function<void(int)>& fn) { ForEach(parts, fn); };
}

}  // namespace baton::engine
