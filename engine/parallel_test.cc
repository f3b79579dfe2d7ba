#include "engine/parallel.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace baton::engine {
namespace {

TEST(ThreadPool, RunsEveryPartOnceWhateverTheNumberOfThreads) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int parts = 0; parts < 70; ++parts) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(parts));
      pool.ForEach(parts, [&](int part) { ++runs[static_cast<size_t>(part)]; });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, FinishesASectionBeforeTheNextStarts) {
  ThreadPool pool(3);
  std::atomic<int> sum{0};
  int expected = 0;
  for (int section = 0; section < 20000; ++section) {
    const int parts = 1 + section % 4;
    pool.ForEach(parts, [&](int part) { sum += part + 1; });
    expected += parts * (parts + 1) / 2;
    ASSERT_EQ(sum.load(), expected) << section;
  }
}

TEST(ThreadPool, ServesAsParallelFor) {
  ThreadPool pool(2);
  const kernels::ParallelFor parallel = pool.AsParallelFor();
  std::atomic<int> sum{0};
  parallel(10, [&](int part) { sum += part; });
  EXPECT_EQ(sum.load(), 45);
}

}  // namespace
}  // namespace baton::engine
