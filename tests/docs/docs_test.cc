// The reference pages that list what the programs know are compared with the programs: docs/metrics.md and docs/config.md.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "absl/strings/str_format.h"
#include "common/config.h"
#include "common/metrics.h"
#include "router/metrics_export.h"
#include "router/router_config.h"
#include "worker/worker_config.h"
#include "worker/worker_metrics.h"

namespace baton {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The table of section `## title`: from its first line that begins with '|' to the last one in a row.
std::string TableOf(const std::string& page, const std::string& title) {
  std::istringstream lines(page.substr(std::min(page.find("## " + title + "\n"), page.size())));
  std::string table;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("|", 0) == 0) {
      table += line + "\n";
    } else if (!table.empty()) {
      break;
    }
  }
  return table;
}

// "name type help" lines as a table.
std::string MetricTable(const std::string& described) {
  std::istringstream lines(described);
  std::string table = "| metric | type | meaning |\n| --- | --- | --- |\n";
  std::string name, type, help;
  while (lines >> name >> type && std::getline(lines >> std::ws, help))
    table += absl::StrFormat("| `%s` | %s | %s |\n", name, type, help);
  return table;
}

TEST(MetricsPage, ListsTheRoutersMetrics) {
  const router::RouterMetrics metrics;
  EXPECT_EQ(TableOf(ReadFile("docs/metrics.md"), "Router"), MetricTable(metrics.Describe()));
}

TEST(MetricsPage, ListsTheWorkersMetrics) {
  MetricRegistry registry;
  const worker::WorkerMetrics metrics(registry);
  EXPECT_EQ(TableOf(ReadFile("docs/metrics.md"), "Workers"), MetricTable(registry.Describe()));
}

TEST(ConfigPage, ListsTheRoutersKeys) {
  router::RouterConfig config;
  ConfigReader reader;
  BindConfig(reader, config);
  EXPECT_EQ(TableOf(ReadFile("docs/config.md"), "Router"), reader.Reference());
}

TEST(ConfigPage, ListsTheWorkersKeys) {
  worker::WorkerConfig config;
  config.serve = {"decode"};  // as baton-decode has it
  ConfigReader reader;
  BindConfig(reader, config);
  EXPECT_EQ(TableOf(ReadFile("docs/config.md"), "Workers"), reader.Reference());
}

}  // namespace
}  // namespace baton
