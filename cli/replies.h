#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What servers answer, read without trust: a member that is missing or of another type counts as
// not there. Pure; any thread.
namespace baton::cli {

// One event of a streamed chat answer, but for "[DONE]".
struct AnswerEvent {
  std::string reasoning, content;  // of the first choice
  std::string error;               // empty: none
};
AnswerEvent ReadAnswerEvent(std::string_view data);

// The message of an error's body; empty: it has none.
std::string ErrorMessageOf(std::string_view body);

// The first name in a body of /v1/models; empty: none.
std::string FirstModelOf(std::string_view body);

// How many workers a router's /ready counts.
struct ReadyWorkers {
  int64_t prefill = 0, decode = 0;
};
ReadyWorkers ReadyWorkersOf(std::string_view body);

// A router's /ready as a table of its workers; nothing where the body is not a router's.
std::optional<std::string> ClusterTable(std::string_view body);

// A worker's gauges and counters as a table; histograms are for Prometheus.
std::string MetricsTable(std::string_view metrics);

}  // namespace baton::cli
