#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

// What a benchmark measured, and how it is shown. Pure; any thread.
namespace baton::cli {

struct RequestRecord {
  std::string error{};            // its kind, such as "http 429"; empty: succeeded
  absl::Duration first_token{};   // since the request was sent
  absl::Duration total{};         // likewise, of the last token
  std::vector<double> gaps_ms{};  // between arrivals of chunks
  int64_t prompt_tokens = 0;      // as the server says
  int64_t cached_tokens = 0;      // likewise
  int64_t completion_tokens = 0;  // likewise; without usage: chunks
  bool has_usage = true;
};

struct Distribution {
  size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};
// Percentile q in [0, 1] of ascending values, interpolated linearly; 0 of none.
double PercentileOf(const std::vector<double>& ascending, double q);
Distribution DistributionOf(std::vector<double> values);

struct BenchSummary {
  double seconds = 0;
  size_t num_succeeded = 0, num_failed = 0, num_unfinished = 0, num_without_usage = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // of those that succeeded
  std::map<std::string, size_t> errors;                                 // by kind
  std::vector<double> first_token_ms, per_token_ms;                     // one value a request
  Distribution ttft, tpot, itl, e2e;                                    // ms
};
// TPOT: (total - first token) / (tokens - 1), of answers of two tokens or more.
BenchSummary Summarize(const std::vector<RequestRecord>& records, absl::Duration duration,
                       size_t num_unfinished);

std::string SummaryTable(const BenchSummary& summary);

// Label columns come first; a value with a comma, quote or line break is quoted.
using CsvLabels = std::vector<std::pair<std::string, std::string>>;
std::string CsvHeader(const CsvLabels& labels);
std::string CsvRow(const CsvLabels& labels, const BenchSummary& summary);

// Two histograms, of TTFT and TPOT, as an SVG document of its own.
std::string SummarySvg(const std::string& title, const BenchSummary& summary);

}  // namespace baton::cli
