#include "common/metrics.h"

#include <algorithm>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace baton {
namespace {

const char* TypeName(prometheus::MetricType type) {
  switch (type) {
    case prometheus::MetricType::Counter:
      return "counter";
    case prometheus::MetricType::Gauge:
      return "gauge";
    case prometheus::MetricType::Histogram:
      return "histogram";
    default:
      return "untyped";
  }
}

}  // namespace

void CounterMetric::Add(double value) { counter_->Increment(value); }

void CounterMetric::RaiseTo(double total) {
  const double now = counter_->Value();
  if (total > now) counter_->Increment(total - now);
}

void GaugeMetric::Set(double value) { gauge_->Set(value); }

void HistogramMetric::Observe(double value) { histogram_->Observe(value); }

void HistogramMetric::ObserveMany(const std::vector<double>& increments, double sum) {
  histogram_->ObserveMultiple(increments, sum);
}

MetricRegistry::MetricRegistry() : registry_(std::make_unique<prometheus::Registry>()) {}
MetricRegistry::~MetricRegistry() = default;

CounterMetric MetricRegistry::AddCounter(const std::string& name, const std::string& help,
                                         const MetricLabels& labels) {
  return CounterMetric(
      &prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels));
}

GaugeMetric MetricRegistry::AddGauge(const std::string& name, const std::string& help,
                                     const MetricLabels& labels) {
  return GaugeMetric(
      &prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels));
}

HistogramMetric MetricRegistry::AddHistogram(const std::string& name, const std::string& help,
                                             const std::vector<double>& bounds,
                                             const MetricLabels& labels) {
  return HistogramMetric(
      &prometheus::BuildHistogram().Name(name).Help(help).Register(*registry_).Add(labels, bounds));
}

std::string MetricRegistry::Render() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

std::string MetricRegistry::Describe() const {
  std::vector<std::string> lines;
  for (const auto& family : registry_->Collect())
    lines.push_back(family.name + " " + TypeName(family.type) + " " + family.help);
  std::sort(lines.begin(), lines.end());
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
  std::string out;
  for (const auto& line : lines) out += line + "\n";
  return out;
}

const std::vector<double>& LatencyBounds() {
  static const std::vector<double> kBounds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75,
                                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640};
  return kBounds;
}

}  // namespace baton
