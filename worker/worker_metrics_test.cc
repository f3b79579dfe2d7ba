#include "worker/worker_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sstream>
#include <string>

#include "worker/test_worker.h"

namespace baton::worker {
namespace {

using testing::HasSubstr;

TEST(WorkerMetrics, EveryNameSaysItsComponent) {
  MetricRegistry registry;
  const WorkerMetrics metrics(registry);
  std::istringstream lines(registry.Describe());
  std::string line;
  int num_families = 0;
  while (std::getline(lines, line)) {
    EXPECT_EQ(line.rfind("baton_", 0), 0u) << line;
    ++num_families;
  }
  EXPECT_GT(num_families, 40);
}

TEST(WorkerMetrics, ShowWhatPoolSessionsAndTransfersSay) {
  ManualClock clock;
  SeededRng rng(1);
  kvtransfer::InprocNetwork network(clock, rng);
  TestWorker worker({.name = "w"}, network, clock);
  worker.core->Apply(SessionOpened{.session = SessionId{1}, .hello = {}});
  worker.core->Apply(SessionMessage{.session = SessionId{1}, .message = [] {
                                      wire::RouterMessage message;
                                      message.cancels.resize(2);
                                      return message;
                                    }()});
  worker.Round();
  MetricRegistry registry;
  WorkerMetrics metrics(registry);
  metrics.Update(*worker.core, worker.loop.counters(), worker.watch);
  kvtransfer::TransferMetrics transfer;
  transfer.blocks_landed = 5;
  transfer.stale_frames[1] = 3;
  transfer.refusals_sent[static_cast<size_t>(kvtransfer::RefuseReason::kFull)] = 2;
  transfer.block_micros_sum = 1'500'000;
  transfer.block_seconds[0] = 2;
  transfer.block_seconds[3] = 4;
  metrics.Update(transfer);
  const std::string text = registry.Render();
  EXPECT_THAT(text, HasSubstr("baton_worker_pages{state=\"free\"} 64"));
  EXPECT_THAT(text, HasSubstr("baton_worker_sessions 1"));
  EXPECT_THAT(text, HasSubstr("baton_worker_cancels_total 2"));
  EXPECT_THAT(text, HasSubstr("baton_kv_blocks_landed_total 5"));
  EXPECT_THAT(text, HasSubstr("baton_kv_stale_frames_total{reason=\"attempt\"} 3"));
  EXPECT_THAT(text, HasSubstr("baton_kv_refusals_sent_total{reason=\"full\"} 2"));
  EXPECT_THAT(text, HasSubstr("baton_kv_block_seconds_sum_total 1.5"));
  EXPECT_THAT(text, HasSubstr("baton_kv_block_seconds_total{at_most=\"+Inf\"} 6"));
}

TEST(WorkerMetrics, ObserveEveryStepOnce) {
  MetricRegistry registry;
  WorkerMetrics metrics(registry);
  engine::LoopCounters loop;
  for (const int step : {1, 2, 2, 3}) {  // a round without a step between
    loop.steps = static_cast<uint64_t>(step);
    loop.last_step = absl::Milliseconds(3);
    metrics.ObserveStep(loop);
  }
  EXPECT_THAT(registry.Render(), HasSubstr("baton_worker_step_seconds_count 3"));
}

}  // namespace
}  // namespace baton::worker
