#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace baton {

using MetricLabels = std::map<std::string, std::string>;

// Handles into a MetricRegistry, valid as long as it lives. Any thread.
class CounterMetric {
 public:
  void Add(double value = 1);
  // For totals kept elsewhere: raises the counter to `total`; a smaller one is ignored. One thread
  // per counter.
  void RaiseTo(double total);

 private:
  friend class MetricRegistry;
  explicit CounterMetric(prometheus::Counter* counter) : counter_(counter) {}
  prometheus::Counter* counter_;
};
class GaugeMetric {
 public:
  void Set(double value);

 private:
  friend class MetricRegistry;
  explicit GaugeMetric(prometheus::Gauge* gauge) : gauge_(gauge) {}
  prometheus::Gauge* gauge_;
};
class HistogramMetric {
 public:
  void Observe(double value);
  // Observations counted elsewhere: one increment per bound and one for +Inf, not cumulative, and
  // the sum of their values.
  void ObserveMany(const std::vector<double>& increments, double sum);

 private:
  friend class MetricRegistry;
  explicit HistogramMetric(prometheus::Histogram* histogram) : histogram_(histogram) {}
  prometheus::Histogram* histogram_;
};

// The one wrapper around prometheus-cpp. Names are `baton_<component>_<noun>_<unit>`, labels from
// fixed sets; each component has a FooMetrics struct that adds its metrics in its constructor.
// Adding: one thread, at start; rendering: any thread.
class MetricRegistry {
 public:
  MetricRegistry();
  ~MetricRegistry();
  CounterMetric AddCounter(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  GaugeMetric AddGauge(const std::string& name, const std::string& help,
                       const MetricLabels& labels = {});
  HistogramMetric AddHistogram(const std::string& name, const std::string& help,
                               const std::vector<double>& bounds, const MetricLabels& labels = {});
  // Prometheus text format 0.0.4.
  std::string Render() const;
  // "name type help" per family, ascending by name: what docs/metrics.md lists and a test compares.
  std::string Describe() const;

 private:
  std::unique_ptr<prometheus::Registry> registry_;
};

// Bounds for latencies from 1 ms to 10 minutes (protocol.md 8, TTFT).
const std::vector<double>& LatencyBounds();

}  // namespace baton
