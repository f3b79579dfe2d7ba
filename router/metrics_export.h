#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "common/mutex.h"
#include "router/http/api_keys.h"
#include "router/http/http_server.h"
#include "router/plan/request.h"
#include "router/plan/router_metrics.h"
#include "router/text/tool_call_parser.h"

namespace baton::router {

// What the front door and the surfaces behind it counted.
struct DoorCounts {
  uint64_t unauthorized = 0;                      // requests to guarded paths without a valid key
  uint64_t dropped_tools = 0;                     // server tools in requests of Anthropic's form
  std::array<uint64_t, kNumDsmlOutcomes> dsml{};  // choices with tools, by DsmlOutcome
  uint64_t known_runs = 0, new_runs = 0;          // texts of prompts, by RunCache
  uint64_t known_grammars = 0, new_grammars = 0;  // by GrammarChecker
  std::vector<KeyAccount::Use> keys{};  // in the order of the names that RouterMetrics was given
};

// What /metrics of the router shows; the list is docs/metrics.md. The planner counts plain values
// (router_metrics.h), this turns them into Prometheus when somebody scrapes. Any thread.
class RouterMetrics {
 public:
  // `key_names`: of the API keys; each is a label, so the key file bounds their number.
  explicit RouterMetrics(const std::vector<std::string>& key_names = {});
  // Takes over what was counted since the last call; totals never go down.
  std::string Render(const RouterFacts& facts, const ClusterView& view, const HttpCounters& http,
                     size_t waiting_bodies, const DoorCounts& door = {});
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
  struct KeyCounters {
    CounterMetric requests, refusals, tokens;
  };
  void AddKeys(const std::vector<std::string>& names);
  void AddTexts();
  void RaiseTexts(const DoorCounts& door) REQUIRES_LOCK(mutex_);
  void RaiseKeys(const DoorCounts& door) REQUIRES_LOCK(mutex_);
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
  std::vector<KeyCounters> keys_ GUARDED_BY(mutex_);    // the first one: of no valid key
  std::vector<CounterMetric> dsml_ GUARDED_BY(mutex_);  // by DsmlOutcome
  CounterMetric known_runs_ GUARDED_BY(mutex_), new_runs_ GUARDED_BY(mutex_);
  CounterMetric known_grammars_ GUARDED_BY(mutex_), new_grammars_ GUARDED_BY(mutex_);
  CounterMetric dropped_tools_ GUARDED_BY(mutex_);
  GaugeMetric connections_, bodies_bytes_, waiting_bodies_;
};

}  // namespace baton::router
