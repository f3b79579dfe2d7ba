#include <gtest/gtest.h>
#include <string>

#include "tests/sim/cluster.h"
#include "tests/sim/scenario.h"

// Fixed seeds of the scenario files (contracts.md 7); a failure says how to run its seed again.
namespace baton::sim {
namespace {

Scenario Load(const std::string& name) {
  const absl::StatusOr<Scenario> scenario = LoadScenario("tests/sim/" + name + ".yaml");
  EXPECT_TRUE(scenario.ok()) << scenario.status();
  return scenario.value_or(Scenario{});
}

void RunSeeds(const std::string& name, uint64_t first, uint64_t count) {
  const Scenario scenario = Load(name);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const SimResult result = Cluster(scenario, seed, false).Run();
    for (const std::string& violation : result.violations)
      ADD_FAILURE() << violation << "\nrun it again: make sim SEED=" << seed
                    << "  (baton_sim --seed " << seed << " --scenario tests/sim/" << name
                    << ".yaml)";
  }
}

TEST(Simulator, CalmLoadEndsWell) { RunSeeds("calm", 1, 5); }
TEST(Simulator, WorkersLostAtAnyMoment) { RunSeeds("faults", 1, 20); }
TEST(Simulator, WorkersDrainedHandTheirSequencesOn) {
  RunSeeds("drains", 1, 10);
  EXPECT_GT(Cluster(Load("drains"), 1, false).Run().moved, 0u);
}
TEST(Simulator, WorkersStoppedAndContinued) { RunSeeds("stops", 1, 10); }
TEST(Simulator, PoolsTooSmallForTheLoad) { RunSeeds("parking", 1, 5); }
TEST(Simulator, WorkersThatServeBoth) { RunSeeds("mixed", 1, 5); }
TEST(Simulator, BlocksSpoiltLateAndOutOfOrder) { RunSeeds("links", 1, 5); }
TEST(Simulator, PullsThatNeverComplete) { RunSeeds("stuck", 1, 5); }

TEST(Simulator, ASeedIsDeterministic) {
  const Scenario scenario = Load("faults");
  const std::string first = Cluster(scenario, 7, false).Run().Summary();
  EXPECT_EQ(first, Cluster(scenario, 7, false).Run().Summary());
  EXPECT_NE(first, Cluster(scenario, 8, false).Run().Summary());
}

TEST(Simulator, ScenariosReachWhatTheyAreFor) {
  SimResult sum;
  for (const char* name : {"faults", "stops", "parking"}) {
    const SimResult result = Cluster(Load(name), 3, false).Run();
    sum.kills += result.kills;
    sum.stops += result.stops;
    sum.lost_sessions += result.lost_sessions;
    sum.parked += result.parked;
    sum.replayed_tokens += result.replayed_tokens;
    sum.cache_hits += result.cache_hits;
  }
  EXPECT_GT(sum.kills, 0);
  EXPECT_GT(sum.stops, 0);
  EXPECT_GT(sum.lost_sessions, 0);
  EXPECT_GT(sum.parked, 0u);
  EXPECT_GT(sum.replayed_tokens, 0u);
  EXPECT_GT(sum.cache_hits, 0u);
}

// The checks can fail: a flipped byte in a page changes the text, and that is noticed.
TEST(Simulator, NoticesASpoiltPage) {
  Scenario scenario = Load("calm");
  scenario.faults.spoil_pages = 10;
  const SimResult result = Cluster(scenario, 1, false).Run();
  ASSERT_FALSE(result.violations.empty());
  EXPECT_NE(result.violations[0].find("fault-free"), std::string::npos) << result.violations[0];
}

TEST(LoadScenario, NamesAnUnknownKey) {
  const std::string path = testing::TempDir() + "/bad.yaml";
  FILE* file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs("load: {request: 3}\n", file);
  std::fclose(file);
  const absl::Status status = LoadScenario(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("unknown key load.request"), std::string::npos) << status;
}

}  // namespace
}  // namespace baton::sim
