#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "engine/loop.h"
#include "kvtransfer/metrics.h"
#include "kvtransfer/staged/staging.h"
#include "worker/worker_core.h"

namespace baton::worker {

// What is known once, at start.
struct WorkerStart {
  double self_test_gbps = 0;
  int experts_promoted = 0;
  std::string backend;      // cpu, cuda
  std::string page_memory;  // host, staged, direct
};

// The metrics of a worker process. Constructed at start; Update: engine thread.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(MetricRegistry& registry);
  void Update(const WorkerCore& core, const engine::LoopCounters& loop, const EngineWatch& watch);
  void Update(const kvtransfer::TransferMetrics& transfer);
  void Update(const engine::GrammarCounters& grammars);
  // After every round of the engine: its step, if it made one.
  void ObserveStep(const engine::LoopCounters& loop);
  void Update(const kvtransfer::StagingStats& staging);
  void SetStart(const WorkerStart& start);

 private:
  struct PoolGauge {
    GaugeMetric gauge;
    int engine::PoolCounts::*field;
  };
  struct CoreGauge {
    GaugeMetric gauge;
    double (*value)(const CoreGauges& gauges);
  };
  struct CoreCounter {
    CounterMetric counter;
    uint64_t CoreCounters::*field;
  };
  struct CacheCounter {
    CounterMetric counter;
    uint64_t CoreGauges::*field;
  };
  struct LoopCounter {
    CounterMetric counter;
    uint64_t engine::LoopCounters::*field;
  };
  struct TransferCounter {
    CounterMetric counter;
    std::atomic<uint64_t> kvtransfer::TransferMetrics::*field;
  };
  struct StagingCounter {
    CounterMetric counter;
    std::atomic<uint64_t> kvtransfer::StagingStats::*field;
  };
  struct StagingGauge {
    GaugeMetric gauge;
    std::atomic<int64_t> kvtransfer::StagingStats::*field;
  };
  // One of the ways a worker can be built and started; the one that is has value 1.
  struct BackendGauge {
    std::string backend, page_memory;
    GaugeMetric gauge;
  };
  struct TransferGauge {
    GaugeMetric gauge;
    std::atomic<int64_t> kvtransfer::TransferMetrics::*field;
  };
  void AddEngineMetrics(MetricRegistry& registry);
  void AddCoreMetrics(MetricRegistry& registry);
  void AddTransferMetrics(MetricRegistry& registry);
  void AddHardwareMetrics(MetricRegistry& registry);

  std::vector<PoolGauge> pool_;
  std::vector<CoreGauge> core_gauges_;
  std::vector<CoreCounter> core_counters_;
  std::vector<CacheCounter> cache_counters_;
  std::vector<LoopCounter> loop_counters_;
  std::vector<TransferCounter> transfer_counters_;
  std::vector<TransferGauge> transfer_gauges_;
  std::vector<StagingCounter> staging_counters_;
  std::vector<StagingGauge> staging_gauges_;
  std::vector<BackendGauge> backends_;
  std::vector<CounterMetric> refusals_sent_, refusals_received_;   // by reason
  std::vector<CounterMetric> stale_, bad_frames_, block_seconds_;  // by reason; by bucket
  GaugeMetric step_seconds_, prefill_rate_, is_wedged_, self_test_, experts_promoted_;
  CounterMetric block_seconds_sum_;
  CounterMetric mask_seconds_, mask_failures_, compile_seconds_;
  CounterMetric grammars_compiled_, grammars_reused_, grammars_refused_, grammars_failed_;
  CounterMetric grammar_memory_refusals_;
  GaugeMetric grammar_cache_bytes_, grammar_memory_bytes_;
  HistogramMetric step_histogram_;
  uint64_t seen_steps_ = 0;
};

}  // namespace baton::worker
