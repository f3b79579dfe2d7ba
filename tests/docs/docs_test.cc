// The reference pages that list what the programs know are compared with the programs:
// docs/metrics.md and docs/config.md.
#include <algorithm>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <sstream>
#include <string>

#include "absl/strings/str_format.h"
#include <yaml-cpp/yaml.h>

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

// The table of section `## title`: from its first line that begins with '|' to the last one in a
// row.
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

// Reads the file `name` of every ConfigMap in the manifests; returns how many there are.
int ReadManifests(const std::string& name, ConfigReader& reader) {
  int count = 0;
  for (const YAML::Node& document : YAML::LoadAllFromFile("deploy/kubernetes/baton.yaml")) {
    if (document["kind"].as<std::string>() != "ConfigMap" || !document["data"][name]) continue;
    const absl::Status status = reader.ReadText(document["data"][name].as<std::string>(), name);
    EXPECT_TRUE(status.ok()) << status;
    ++count;
  }
  return count;
}

TEST(Manifests, HoldConfigsThatTheProgramsAccept) {
  router::RouterConfig router_config;
  ConfigReader router_reader;
  BindConfig(router_reader, router_config);
  EXPECT_EQ(ReadManifests("router.yaml", router_reader), 1);
  EXPECT_TRUE(Validate(router_config).ok()) << Validate(router_config);
  worker::WorkerConfig worker_config;
  worker_config.serve = {"decode"};
  ConfigReader worker_reader;
  BindConfig(worker_reader, worker_config);
  EXPECT_EQ(ReadManifests("worker.yaml", worker_reader), 1);
  EXPECT_TRUE(Validate(worker_config).ok()) << Validate(worker_config);
}

}  // namespace
}  // namespace baton
