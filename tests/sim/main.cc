// baton_sim: runs seeds of a scenario and says how to run a failing one again.
#include <cstdint>
#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

#include "common/clock.h"
#include "tests/sim/cluster.h"
#include "tests/sim/scenario.h"

namespace baton::sim {
namespace {

struct Options {
  uint64_t seed = 1;
  uint64_t seeds = 1;
  std::string scenario = "tests/sim/faults.yaml";
  bool trace = false;
  bool verbose = false;
};

int RunSeeds(const Options& options) {
  const absl::StatusOr<Scenario> scenario = LoadScenario(options.scenario);
  if (!scenario.ok()) {
    std::fprintf(stderr, "%s\n", scenario.status().ToString().c_str());
    return 2;
  }
  const SteadyClock clock;
  const absl::Time start = clock.Now();
  int failed = 0;
  for (uint64_t seed = options.seed; seed < options.seed + options.seeds; ++seed) {
    const SimResult result = Cluster(*scenario, seed, options.trace).Run();
    if (options.verbose || options.seeds == 1)
      std::printf("seed=%llu %s\n", static_cast<unsigned long long>(seed),
                  result.Summary().c_str());
    if (result.violations.empty()) continue;
    ++failed;
    for (const std::string& violation : result.violations)
      std::printf("seed=%llu VIOLATION %s\n", static_cast<unsigned long long>(seed),
                  violation.c_str());
    std::printf("run it again: make sim SEED=%llu  (baton_sim --seed %llu --scenario %s)\n",
                static_cast<unsigned long long>(seed), static_cast<unsigned long long>(seed),
                options.scenario.c_str());
  }
  const double minutes = absl::ToDoubleMinutes(clock.Now() - start);
  std::printf("%s: %llu seeds, %d failed, %.1f seeds/min\n", scenario->name.c_str(),
              static_cast<unsigned long long>(options.seeds), failed,
              static_cast<double>(options.seeds) / minutes);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace baton::sim

int main(int argc, char** argv) {
  baton::sim::Options options;
  CLI::App app("Runs the cluster simulator.");
  app.add_option("--seed", options.seed, "first seed");
  app.add_option("--seeds", options.seeds, "how many seeds from there");
  app.add_option("--scenario", options.scenario, "scenario file");
  app.add_flag("--trace", options.trace, "print what happens");
  app.add_flag("--verbose", options.verbose, "one line per seed");
  CLI11_PARSE(app, argc, argv);
  return baton::sim::RunSeeds(options);
}
