#pragma once

#include <string>
#include <vector>

#include "common/metrics.h"
#include "common/mutex.h"
#include "router/http/http_server.h"
#include "router/plan/request.h"
#include "router/plan/router_metrics.h"

namespace baton::router {

// What /metrics of the router shows; the list is docs/metrics.md. The planner counts plain values
// (router_metrics.h), this turns them into Prometheus when somebody scrapes. Any thread.
class RouterMetrics {
 public:
  RouterMetrics();
  // Takes over what was counted since the last call; totals never go down.
  std::string Render(const RouterFacts& facts, const ClusterView& view, const HttpCounters& http,
                     size_t waiting_bodies);
  // "name type help" per family.
  std::string Describe() const { return registry_.Describe(); }

 private:
  struct FactCounter {
    CounterMetric counter;
    uint64_t RouterFacts::*field;
  };
  struct OutcomeCounter {
    CounterMetric counter;
    uint64_t OutcomeCounts::*field;
  };
  struct MoveCounter {
    CounterMetric counter;
    uint64_t MoveCounts::*field;
  };
  struct FactGauge {
    GaugeMetric gauge;
    double (*value)(const RouterFacts& facts);
  };
  struct StageHistogram {
    HistogramMetric histogram;
    SecondsHistogram StageHistograms::*field;
    SecondsHistogram seen{};  // as of the last Render
  };
  struct WorkerGauge {
    GaugeMetric gauge;
    const char* state;
  };
  struct HttpCounter {
    CounterMetric counter;
    std::atomic<uint64_t> HttpCounters::*field;
  };
  void AddCounters();
  void AddOutcomes();
  void AddGauges();
  void AddStages();
  void AddHttpMetrics();

  MetricRegistry registry_;
  Mutex mutex_;  // two scrapes may meet, and what was seen before belongs to one of them
  std::vector<FactCounter> counters_ GUARDED_BY(mutex_);
  std::vector<OutcomeCounter> outcomes_ GUARDED_BY(mutex_);
  std::vector<MoveCounter> moves_ GUARDED_BY(mutex_);
  std::vector<FactGauge> gauges_ GUARDED_BY(mutex_);
  std::vector<StageHistogram> stages_ GUARDED_BY(mutex_);
  std::vector<WorkerGauge> workers_ GUARDED_BY(mutex_);
  std::vector<HttpCounter> http_ GUARDED_BY(mutex_);
  GaugeMetric connections_, bodies_bytes_, waiting_bodies_;
};

}  // namespace baton::router
