#include "cli/bench_stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"

namespace baton::cli {
namespace {

constexpr int kBins = 40;
constexpr double kPanelWidth = 420, kPanelHeight = 160, kMargin = 50;

double Rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string CsvField(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

// A panel at `top`: bars of equal width over the range of the values, and lines at p50, p90, p99.
std::string Panel(const std::string& name, double top, const std::vector<double>& values,
                  const Distribution& distribution) {
  std::string out = absl::StrFormat(
      "<text x=\"%g\" y=\"%g\">%s, ms: mean %.2f, p50 %.2f, p90 %.2f, p99 %.2f (%d requests)"
      "</text>\n",
      kMargin, top - 8, name, distribution.mean, distribution.p50, distribution.p90,
      distribution.p99, distribution.count);
  out += absl::StrFormat("<path d=\"M%g %gH%g\" stroke=\"#888\"/>\n", kMargin, top + kPanelHeight,
                         kMargin + kPanelWidth);
  if (values.empty()) return out;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double width = std::max(*most - *least, 1e-9);
  std::vector<int> bins(kBins, 0);
  for (const double value : values) {
    const int bin = static_cast<int>((value - *least) / width * kBins);
    ++bins[static_cast<size_t>(std::clamp(bin, 0, kBins - 1))];
  }
  const double highest = *std::max_element(bins.begin(), bins.end());
  for (size_t i = 0; i < bins.size(); ++i) {
    const double height = bins[i] / highest * kPanelHeight;
    if (bins[i] > 0)
      out += absl::StrFormat(
          "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#4e79a7\"/>\n",
          kMargin + static_cast<double>(i) * kPanelWidth / kBins, top + kPanelHeight - height,
          kPanelWidth / kBins - 1, height);
  }
  for (const double mark : {distribution.p50, distribution.p90, distribution.p99})
    out +=
        absl::StrFormat("<path d=\"M%.2f %gV%g\" stroke=\"#e15759\" stroke-dasharray=\"4 3\"/>\n",
                        kMargin + (mark - *least) / width * kPanelWidth, top, top + kPanelHeight);
  out += absl::StrFormat(
      "<text x=\"%g\" y=\"%g\">%.2f</text>\n<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%.2f"
      "</text>\n",
      kMargin, top + kPanelHeight + 16, *least, kMargin + kPanelWidth, top + kPanelHeight + 16,
      *most);
  return out;
}

}  // namespace

double PercentileOf(const std::vector<double>& ascending, double q) {
  if (ascending.empty()) return 0;
  const double at = q * static_cast<double>(ascending.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, ascending.size() - 1);
  return std::lerp(ascending[low], ascending[high], at - static_cast<double>(low));
}

Distribution DistributionOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {.count = values.size(),
          .mean = sum / static_cast<double>(values.size()),
          .p50 = PercentileOf(values, 0.5),
          .p90 = PercentileOf(values, 0.9),
          .p99 = PercentileOf(values, 0.99)};
}

BenchSummary Summarize(const std::vector<RequestRecord>& records, absl::Duration duration,
                       size_t num_unfinished) {
  BenchSummary out;
  out.seconds = absl::ToDoubleSeconds(duration);
  out.num_unfinished = num_unfinished;
  std::vector<double> gaps, totals;
  for (const RequestRecord& record : records) {
    if (!record.error.empty()) {
      ++out.num_failed;
      ++out.errors[record.error];
      continue;
    }
    ++out.num_succeeded;
    out.num_without_usage += record.has_usage ? 0 : 1;
    out.prompt_tokens += record.prompt_tokens;
    out.cached_tokens += record.cached_tokens;
    out.completion_tokens += record.completion_tokens;
    totals.push_back(absl::ToDoubleMilliseconds(record.total));
    if (record.completion_tokens < 1) continue;
    out.first_token_ms.push_back(absl::ToDoubleMilliseconds(record.first_token));
    gaps.insert(gaps.end(), record.gaps_ms.begin(), record.gaps_ms.end());
    if (record.completion_tokens > 1)
      out.per_token_ms.push_back(absl::ToDoubleMilliseconds(record.total - record.first_token) /
                                 static_cast<double>(record.completion_tokens - 1));
  }
  out.ttft = DistributionOf(out.first_token_ms);
  out.tpot = DistributionOf(out.per_token_ms);
  out.itl = DistributionOf(std::move(gaps));
  out.e2e = DistributionOf(std::move(totals));
  return out;
}

std::string SummaryTable(const BenchSummary& s) {
  std::string out =
      absl::StrFormat("requests          %d succeeded, %d failed, %d not finished, in %.2f s\n",
                      s.num_succeeded, s.num_failed, s.num_unfinished, s.seconds);
  for (const auto& [kind, count] : s.errors)
    out += absl::StrFormat("  failed          %d: %s\n", count, kind);
  if (s.num_without_usage > 0)
    out += absl::StrFormat("  without usage   %d: their chunks are counted as tokens\n",
                           s.num_without_usage);
  out +=
      absl::StrFormat("throughput        %.3f requests/s, %.2f output tokens/s, %.2f tokens/s\n",
                      Rate(static_cast<double>(s.num_succeeded), s.seconds),
                      Rate(static_cast<double>(s.completion_tokens), s.seconds),
                      Rate(static_cast<double>(s.prompt_tokens + s.completion_tokens), s.seconds));
  out += absl::StrFormat("tokens            %d in (%d cached), %d out\n\n", s.prompt_tokens,
                         s.cached_tokens, s.completion_tokens);
  out += "ms               mean        p50        p90        p99\n";
  const auto line = [&out](const char* name, const Distribution& d) {
    out +=
        absl::StrFormat("%-10s %10.2f %10.2f %10.2f %10.2f\n", name, d.mean, d.p50, d.p90, d.p99);
  };
  line("TTFT", s.ttft);
  line("TPOT", s.tpot);
  line("ITL", s.itl);
  line("E2E", s.e2e);
  return out;
}

std::string CsvHeader(const CsvLabels& labels) {
  std::string out;
  for (const auto& label : labels) out += CsvField(label.first) + ",";
  out +=
      "seconds,succeeded,failed,unfinished,requests_per_s,output_tokens_per_s,prompt_tokens,"
      "cached_tokens,completion_tokens";
  for (const char* name : {"ttft", "tpot", "itl", "e2e"})
    out += absl::StrFormat(",%s_mean_ms,%s_p50_ms,%s_p90_ms,%s_p99_ms", name, name, name, name);
  return out + "\n";
}

std::string CsvRow(const CsvLabels& labels, const BenchSummary& s) {
  std::string out;
  for (const auto& label : labels) out += CsvField(label.second) + ",";
  out +=
      absl::StrFormat("%.3f,%d,%d,%d,%.3f,%.2f,%d,%d,%d", s.seconds, s.num_succeeded, s.num_failed,
                      s.num_unfinished, Rate(static_cast<double>(s.num_succeeded), s.seconds),
                      Rate(static_cast<double>(s.completion_tokens), s.seconds), s.prompt_tokens,
                      s.cached_tokens, s.completion_tokens);
  for (const Distribution* d : {&s.ttft, &s.tpot, &s.itl, &s.e2e})
    out += absl::StrFormat(",%.3f,%.3f,%.3f,%.3f", d->mean, d->p50, d->p90, d->p99);
  return out + "\n";
}

std::string SummarySvg(const std::string& title, const BenchSummary& summary) {
  const double first = 80, second = first + kPanelHeight + 80;
  return absl::StrFormat(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" "
             "font-family=\"sans-serif\" font-size=\"12\">\n"
             "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
             "<text x=\"%g\" y=\"30\" font-size=\"15\">%s</text>\n",
             kPanelWidth + 2 * kMargin, second + kPanelHeight + 40, kMargin, Escaped(title)) +
         Panel("TTFT", first, summary.first_token_ms, summary.ttft) +
         Panel("TPOT", second, summary.per_token_ms, summary.tpot) + "</svg>\n";
}

}  // namespace baton::cli
