#include <gtest/gtest.h>

#include "router/metrics_export.h"
#include "router/model_facts.h"
#include "router/router_config.h"

namespace baton::router {
namespace {

bool Has(const std::string& text, const std::string& line) {
  return text.find("\n" + line + "\n") != std::string::npos;
}

TEST(RouterMetrics, CountsWhatIsNewSinceTheLastScrape) {
  RouterMetrics metrics;
  const HttpCounters http;
  RouterFacts facts;
  facts.requests = 3;
  facts.outcomes.ok = 2;
  facts.stages.prefill.Observe(absl::Milliseconds(20));
  metrics.Render(facts, {}, http, 0);
  facts.stages.prefill.Observe(absl::Seconds(100));
  facts.requests = 4;
  metrics.Render(facts, {}, http, 0);
  const std::string text = metrics.Render(facts, {}, http, 0);
  EXPECT_TRUE(Has(text, "baton_router_requests_total 4")) << text;
  EXPECT_TRUE(Has(text, "baton_router_requests_ended_total{outcome=\"ok\"} 2"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_count{stage=\"prefill\"} 2"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_bucket{stage=\"prefill\",le=\"0.01\"} 0"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_bucket{stage=\"prefill\",le=\"0.025\"} 1"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_bucket{stage=\"prefill\",le=\"60\"} 1"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_bucket{stage=\"prefill\",le=\"+Inf\"} 2"));
}

TEST(RouterMetrics, AnOlderSnapshotTakesNothingBack) {
  RouterMetrics metrics;
  const HttpCounters http;
  RouterFacts facts;
  facts.requests = 3;
  facts.stages.queue.Observe(absl::Milliseconds(1));
  metrics.Render(facts, {}, http, 0);
  const std::string text = metrics.Render({}, {}, http, 0);
  EXPECT_TRUE(Has(text, "baton_router_requests_total 3"));
  EXPECT_TRUE(Has(text, "baton_router_stage_seconds_count{stage=\"queue\"} 1"));
}

TEST(RouterMetrics, CountsWorkersByState) {
  RouterMetrics metrics;
  ClusterView view;
  view.workers.resize(3);
  view.workers[0].state = view.workers[1].state = "ready";
  view.workers[2].state = "gone";
  const std::string text = metrics.Render({}, view, HttpCounters(), 7);
  EXPECT_TRUE(Has(text, "baton_router_workers{state=\"ready\"} 2"));
  EXPECT_TRUE(Has(text, "baton_router_workers{state=\"gone\"} 1"));
  EXPECT_TRUE(Has(text, "baton_router_http_waiting_bodies 7"));
}

TEST(RouterMetrics, CountsByKey) {
  RouterMetrics metrics({"alice", "bob"});
  const DoorCounts door = {.unauthorized = 4,
                           .dropped_tools = 2,
                           .keys = {{.requests = 3}, {.refusals = 1, .tokens = 9}}};
  const std::string text = metrics.Render({}, {}, HttpCounters(), 0, door);
  EXPECT_TRUE(Has(text, "baton_router_key_refusals_total{key=\"none\"} 4")) << text;
  EXPECT_TRUE(Has(text, "baton_router_key_requests_total{key=\"alice\"} 3"));
  EXPECT_TRUE(Has(text, "baton_router_key_refusals_total{key=\"bob\"} 1"));
  EXPECT_TRUE(Has(text, "baton_router_key_tokens_total{key=\"bob\"} 9"));
  EXPECT_TRUE(Has(text, "baton_router_dropped_server_tools_total 2"));
}

TEST(ModelFacts, ReadsWhatTheRouterNeeds) {
  const auto facts = ParseModelFacts(
      R"({"architectures": ["DeepseekV4ForCausalLM"], "max_position_embeddings": 4096, )"
      R"("vocab_size": 100})",
      "c.json");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->max_context, 4096);
  EXPECT_EQ(facts->profile, EffortProfile::kPreview);
}

TEST(ModelFacts, DsparkKeysMeanTheLaterEffortTexts) {
  const auto facts = ParseModelFacts(
      R"({"architectures": ["DeepseekV4ForCausalLM"], "max_position_embeddings": 4096, )"
      R"("vocab_size": 100, "dspark_noise_token_id": 7})",
      "c.json");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->profile, EffortProfile::k0731);
}

TEST(ModelFacts, RefusesAnotherModelByName) {
  const auto facts = ParseModelFacts(R"({"architectures": ["DeepseekV41ForCausalLM"]})", "c.json");
  ASSERT_FALSE(facts.ok());
  EXPECT_NE(facts.status().message().find("DeepseekV41ForCausalLM"), std::string::npos);
  EXPECT_NE(facts.status().message().find("c.json"), std::string::npos);
  EXPECT_FALSE(ReadModelFacts("no/such/file").ok());
}

class RouterConfigTest : public testing::Test {
 protected:
  RouterConfigTest() { BindConfig(reader_, config_); }
  RouterConfig config_;
  ConfigReader reader_;
};

TEST_F(RouterConfigTest, ReadsYamlThenAssignments) {
  ASSERT_TRUE(reader_.ReadText("model: m\nworkers: [a:1, b:2]\nhttp: {port: 9}\n", "file").ok());
  ASSERT_TRUE(reader_.Set("http.port=10").ok());
  ASSERT_TRUE(reader_.Set("sessions.silence_ms=4000").ok());
  EXPECT_TRUE(Validate(config_).ok());
  EXPECT_EQ(config_.endpoint.port, 10);
  EXPECT_EQ(config_.workers.size(), 2u);
  EXPECT_EQ(config_.sessions.silence, absl::Seconds(4));
}

TEST_F(RouterConfigTest, RefusesUnknownKeysAndBadValues) {
  EXPECT_FALSE(reader_.ReadText("modell: m\n", "file").ok());
  EXPECT_FALSE(reader_.Set("http.port=70000").ok());
  EXPECT_FALSE(reader_.Set("plan.max_queued_requests=-1").ok());
  EXPECT_FALSE(Validate(config_).ok());  // no model
  config_.model = "m";
  EXPECT_FALSE(Validate(config_).ok());  // no workers
  config_.workers = {"a:1"};
  EXPECT_TRUE(Validate(config_).ok());
  config_.endpoint.tls_key_file = "key.pem";
  EXPECT_NE(Validate(config_).message().find("http.tls_key_file 'key.pem': both or none"),
            std::string::npos);
  config_.endpoint.tls_key_file.clear();
  config_.sessions.silence = config_.sessions.beat_interval;
  EXPECT_FALSE(Validate(config_).ok());
}

}  // namespace
}  // namespace baton::router
