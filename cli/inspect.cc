#include "cli/inspect.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <unistd.h>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/http_client.h"
#include <nlohmann/json.hpp>

#include "common/status.h"

namespace baton::cli {
namespace {

using nlohmann::json;

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const int width = i + 1 == row.size() ? 0 : static_cast<int>(widths[i]) + 2;
      std::printf("%-*s", width, row[i].c_str());
    }
    std::printf("\n");
  }
}

std::string Text(const json& object, const char* key) {
  if (!object.contains(key)) return "-";
  return object[key].is_string() ? object[key].get<std::string>() : object[key].dump();
}

void PrintCluster(const json& view) {
  std::printf("ready: %s    in flight: %s    queued: %s\n\n", Text(view, "ready").c_str(),
              Text(view, "in_flight").c_str(), Text(view, "queued").c_str());
  std::vector<std::vector<std::string>> rows = {{"worker", "address", "state", "serves", "pages",
                                                 "free", "leased", "cached", "running", "waiting",
                                                 "queued prompt tokens"}};
  for (const json& worker : view["workers"]) {
    std::string serves;
    if (worker.value("serves_prefill", false)) serves = "prefill";
    if (worker.value("serves_decode", false)) serves += serves.empty() ? "decode" : ",decode";
    rows.push_back({Text(worker, "name"), Text(worker, "address"), Text(worker, "state"), serves,
                    Text(worker, "pages"), Text(worker, "free_pages"), Text(worker, "leased_pages"),
                    Text(worker, "cached_pages"), Text(worker, "running"), Text(worker, "waiting"),
                    Text(worker, "queued_prompt_tokens")});
  }
  PrintTable(rows);
}

// A worker's gauges and counters; histograms are for Prometheus.
void PrintWorker(const HttpReply& ready, const std::string& metrics) {
  std::printf("ready: %s (%s)\n\n", ready.status == 200 ? "true" : "false",
              ready.body.substr(0, ready.body.find('\n')).c_str());
  std::vector<std::vector<std::string>> rows = {{"metric", "value"}};
  std::istringstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos ||
        line.find("_bucket{") != std::string::npos)
      continue;
    rows.push_back({line.substr(0, space), line.substr(space + 1)});
  }
  PrintTable(rows);
}

absl::Status InspectUrl(const std::string& target) {
  ASSIGN_OR_RETURN(HttpUrl url, ParseUrl(target));
  url.path = "/ready";
  ASSIGN_OR_RETURN(const HttpReply ready, Fetch({.url = url, .timeout = absl::Seconds(10)}));
  const json view = json::parse(ready.body, nullptr, /*allow_exceptions=*/false);
  if (view.is_object() && view.contains("workers")) {
    PrintCluster(view);
    return absl::OkStatus();
  }
  url.path = "/metrics";
  ASSIGN_OR_RETURN(const HttpReply metrics, Fetch({.url = url, .timeout = absl::Seconds(10)}));
  if (metrics.status != 200)
    return absl::UnavailableError(
        absl::StrFormat("%s/metrics answered %d", target, metrics.status));
  PrintWorker(ready, metrics.body);
  return absl::OkStatus();
}

}  // namespace

int RunInspect(const std::string& target, const std::string& program_folder) {
  std::error_code ignored;
  if (std::filesystem::is_directory(target, ignored)) {
    const std::string program = program_folder + "/baton-decode";
    execl(program.c_str(), program.c_str(), "--inspect", target.c_str(), nullptr);
    std::fprintf(stderr, "baton inspect: %s: %s\n", program.c_str(), strerror(errno));
    return 1;
  }
  const absl::Status status = InspectUrl(target);
  if (status.ok()) return 0;
  std::fprintf(stderr, "baton inspect: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace baton::cli
