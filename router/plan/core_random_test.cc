// RouterCore against scripted workers that are lost, refuse and fail at any moment. A failure names
// its seed; BATON_SEED runs that one alone.
#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "router/plan/fake_cluster.h"

namespace baton::router {
namespace {

constexpr int kRequests = 60;

struct Plan {
  int num_choices = 1, max_tokens = 1;
  bool may_be_cut = false;  // cancelled by its client at some moment
  int report_size = 0;      // positions of its prompt to be told, from 1 on
};

struct Scenario {
  std::string name;
  FakeClusterOptions options;
  absl::Duration between_kills = absl::InfiniteDuration();
  absl::Duration between_drains = absl::InfiniteDuration();
  bool may_fail = false;      // more faults than a request's attempts
  bool has_grammars = false;  // every other request
};

PlanConfig Config() {
  PlanConfig config;
  config.max_attempts = 50;  // losses alone never fail a request here
  config.max_lost_bookings = 50;
  config.progress_floor = absl::Milliseconds(300);
  config.answer_timeout = absl::Milliseconds(500);
  config.no_worker_grace = absl::Seconds(5);
  return config;
}

void StartRequests(const Scenario& scenario, FakeCluster& cluster,
                   std::map<RequestKey, Plan>& plans) {
  Rng& rng = cluster.rng();
  for (int i = 0; i < kRequests; ++i) {
    const bool has_grammar = scenario.has_grammars && i % 2 == 0;
    cluster.At(rng.Uniform() * absl::Seconds(2), [&cluster, &plans, has_grammar] {
      Rng& draw = cluster.rng();
      Plan plan{.num_choices = 1 + static_cast<int>(draw.Below(3)),
                .max_tokens = 1 + static_cast<int>(draw.Below(60))};
      plan.may_be_cut = draw.Below(5) == 0;
      const int prompt = 1 + static_cast<int>(draw.Below(3'000));
      GenerateRequest request =
          cluster.harness().MakeRequest(prompt, plan.max_tokens, plan.num_choices);
      request.priority = static_cast<int>(draw.Below(2));
      if (has_grammar) request.masks.grammar = "start: /[0-9]+/";
      if (draw.Below(3) == 0) {
        request.prompt_logprobs = 1;
        plan.report_size = prompt - 1;
      }
      const RequestKey key = cluster.Arrive(std::move(request));
      plans[key] = plan;
      if (!plan.may_be_cut) return;
      const bool is_choice = draw.Below(2) == 0;
      cluster.At(draw.Uniform() * absl::Milliseconds(400), [&cluster, key, is_choice] {
        if (is_choice) return cluster.CancelChoice(key, 0);
        cluster.ClientGone(key);
      });
    });
  }
}

void KillNow(FakeCluster& cluster, absl::Duration between, int left) {
  if (left == 0) return;
  cluster.At(between * (0.5 + cluster.rng().Uniform()), [&cluster, between, left] {
    const auto& workers = cluster.workers();
    cluster.Kill(workers[cluster.rng().Below(workers.size())]);
    KillNow(cluster, between, left - 1);
  });
}

// One worker after the other is drained, and replaced once it had its time.
void DrainNow(FakeCluster& cluster, absl::Duration between, int left) {
  if (left == 0) return;
  cluster.At(between * (0.5 + cluster.rng().Uniform()), [&cluster, between, left] {
    const auto& workers = cluster.workers();
    const WorkerId worker = workers[cluster.rng().Below(workers.size())];
    cluster.Drain(worker);
    cluster.At(absl::Seconds(1), [&cluster, worker] { cluster.Kill(worker); });
    DrainNow(cluster, between, left - 1);
  });
}

// Each position once, as the model has it: the harness sees to the order.
void CheckReport(const RequestLog& log, const Plan& plan) {
  for (size_t i = 0; i < log.prompt_logprobs.size(); ++i)
    EXPECT_EQ(log.prompt_logprobs[i].token,
              CoreHarness::TokenAt(0, static_cast<int64_t>(i) + 1).token)
        << "prompt position " << i + 1;
  if (log.end.status.ok() && !plan.may_be_cut) {
    EXPECT_EQ(log.prompt_logprobs.size(), static_cast<size_t>(plan.report_size));
  }
}

// Its text is complete, but not what was to be said of its prompt.
bool HasLostReport(const RequestLog& log, const Plan& plan) {
  return plan.report_size > 0 && absl::IsUnavailable(log.end.status) &&
         log.end.status.message().find("report on the prompt") != std::string::npos;
}

void CheckRequest(CoreHarness& harness, RequestKey key, const Plan& plan, bool may_fail) {
  const RequestLog& log = harness.Log(key);
  ASSERT_EQ(log.num_ended, 1);
  EXPECT_EQ(log.num_inexact, 0);
  for (int i = 0; i < plan.num_choices; ++i) {
    const auto it = log.tokens.find(i);
    const int count = it == log.tokens.end() ? 0 : static_cast<int>(it->second.size());
    harness.ExpectTokens(key, i, count);  // whatever came is the model's
    if (log.end.status.ok() && !plan.may_be_cut) {
      EXPECT_EQ(count, plan.max_tokens) << "choice " << i;
    }
  }
  const bool is_cut = plan.may_be_cut && absl::IsCancelled(log.end.status);
  EXPECT_TRUE(log.end.status.ok() || is_cut || may_fail || HasLostReport(log, plan))
      << log.end.status.message();
  CheckReport(log, plan);
  const StageTimes& t = log.end.times;
  for (const absl::Duration part : {t.parse, t.queue, t.booking, t.prefill_queue, t.prefill, t.emit,
                                    t.transfer, t.decode_queue, t.first_step})
    EXPECT_GE(part, absl::ZeroDuration());
}

void RunSeed(const Scenario& scenario, uint64_t seed, RouterFacts& sum) {
  SCOPED_TRACE(scenario.name + " BATON_SEED=" + std::to_string(seed));
  PlanConfig config = Config();
  if (scenario.may_fail) config.max_attempts = 3;
  FakeCluster cluster(scenario.options, config, seed);
  std::map<RequestKey, Plan> plans;
  StartRequests(scenario, cluster, plans);
  if (scenario.between_kills != absl::InfiniteDuration())
    KillNow(cluster, scenario.between_kills, 20);
  if (scenario.between_drains != absl::InfiniteDuration())
    DrainNow(cluster, scenario.between_drains, 6);
  for (int i = 0; i < 600 && (plans.size() < kRequests || cluster.harness().core().num_live() > 0);
       ++i)
    cluster.RunFor(absl::Milliseconds(100));
  ASSERT_EQ(plans.size(), static_cast<size_t>(kRequests));
  for (const auto& [key, plan] : plans)
    EXPECT_EQ(cluster.harness().State(key), "ended")
        << "request " << key.value << " after a minute";
  ASSERT_EQ(cluster.harness().core().num_live(), 0u);
  for (const auto& [key, plan] : plans)
    CheckRequest(cluster.harness(), key, plan, scenario.may_fail);
  const RouterFacts facts = cluster.harness().Facts();
  EXPECT_EQ(facts.repeat_mismatches, 0u);
  EXPECT_EQ(facts.position_gaps, 0u);
  cluster.harness().ExpectQuiet();
  sum.recoveries += facts.recoveries;
  sum.moves.moved += facts.moves.moved;
  sum.moves.recovered += facts.moves.recovered;
  sum.moves.ended += facts.moves.ended;
  sum.retargets += facts.retargets;
  sum.rebookings += facts.rebookings;
  sum.refusals += facts.refusals;
  sum.prefill_on_decode += facts.prefill_on_decode;
  sum.outcomes.ok += facts.outcomes.ok;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeedDivisor = 4;  // a seed takes fifty times as long
#else
constexpr uint64_t kSeedDivisor = 1;
#endif

// What happened in all seeds together; absent if only one ran.
std::optional<RouterFacts> RunSeeds(const Scenario& scenario, uint64_t count) {
  RouterFacts sum;
  const char* only = std::getenv("BATON_SEED");
  const uint64_t first = only == nullptr ? 1 : std::stoull(only);
  const uint64_t end = only == nullptr ? count / kSeedDivisor + 1 : first + 1;
  for (uint64_t seed = first; seed < end && !testing::Test::HasFailure(); ++seed)
    RunSeed(scenario, seed, sum);
  if (only != nullptr) return std::nullopt;
  return sum;
}

TEST(RouterCoreRandom, EveryRequestEndsOnceWithoutLosses) {
  const auto sum = RunSeeds({.name = "calm", .options = {}}, 20);
  if (sum) {
    EXPECT_EQ(sum->recoveries, 0u);
    EXPECT_GT(sum->outcomes.ok, 0u);
  }
}

TEST(RouterCoreRandom, EveryRequestEndsOnceWithTheSameTextDespiteLosses) {
  const auto sum =
      RunSeeds({.name = "losses", .options = {}, .between_kills = absl::Milliseconds(120)}, 60);
  if (sum) {
    EXPECT_GT(sum->recoveries, 0u);
    EXPECT_GT(sum->retargets, 0u);
    EXPECT_GT(sum->rebookings, 0u);
    EXPECT_GT(sum->refusals, 0u);
  }
}

TEST(RouterCoreRandom, WorkersWithoutRoomForGrammars) {
  const auto sum = RunSeeds({.name = "grammars",
                             .options = {.refusal = 0},
                             .between_kills = absl::Milliseconds(300),
                             .has_grammars = true},
                            30);
  if (sum) {
    EXPECT_GT(sum->refusals, 0u);
  }
}

TEST(RouterCoreRandom, DrainedWorkersHandTheirSequencesOn) {
  const auto sum =
      RunSeeds({.name = "drains", .options = {}, .between_drains = absl::Milliseconds(400)}, 40);
  if (sum) {
    EXPECT_GT(sum->moves.moved, 0u);
  }
}

TEST(RouterCoreRandom, MovesSurviveLossesOfBothSides) {
  FakeClusterOptions options{.refusal = 0.1, .failure = 0.1};
  const auto sum = RunSeeds({.name = "drains and losses",
                             .options = options,
                             .between_kills = absl::Milliseconds(150),
                             .between_drains = absl::Milliseconds(300)},
                            40);
  if (sum) {
    EXPECT_GT(sum->moves.moved, 0u);
    EXPECT_GT(sum->moves.recovered, 0u);
  }
}

TEST(RouterCoreRandom, MixedWorkersCarryEverythingAlone) {
  FakeClusterOptions options{.num_prefill = 0, .num_decode = 0, .num_mixed = 3};
  const auto sum =
      RunSeeds({.name = "mixed", .options = options, .between_kills = absl::Milliseconds(300)}, 30);
  if (sum) {
    EXPECT_GT(sum->prefill_on_decode, 0u);
  }
}

TEST(RouterCoreRandom, MixedWorkersStandInForALostPrefillPool) {
  FakeClusterOptions options{.num_prefill = 1, .num_decode = 1, .num_mixed = 2};
  const auto sum = RunSeeds(
      {.name = "stand-in", .options = options, .between_kills = absl::Milliseconds(150)}, 30);
  if (sum) {
    EXPECT_GT(sum->prefill_on_decode, 0u);
  }
}

TEST(RouterCoreRandom, EveryRequestEndsOnceThoughManyFail) {
  FakeClusterOptions options{.refusal = 0.2, .failure = 0.4};
  RunSeeds({.name = "harsh",
            .options = options,
            .between_kills = absl::Milliseconds(60),
            .may_fail = true},
           30);
}

}  // namespace
}  // namespace baton::router
