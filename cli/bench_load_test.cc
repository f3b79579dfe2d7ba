#include "cli/bench_load.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace baton::cli {
namespace {

using nlohmann::json;

std::vector<PlannedRequest> Plan(const LoadOptions& options,
                                 const std::vector<FilePrompt>& prompts = {}, uint64_t seed = 1) {
  SeededRng rng(seed);
  auto load = PlanLoad(options, prompts, rng);
  EXPECT_TRUE(load.ok()) << load.status();
  return load.ok() ? *std::move(load) : std::vector<PlannedRequest>();
}

std::string Refused(std::string_view text) {
  const auto prompts = ReadPrompts(text);
  return prompts.ok() ? "" : std::string(prompts.status().message());
}

TEST(PlanLoad, RandomIdsHaveTheGivenLengthsAndBounds) {
  LoadOptions options;
  options.api = BenchApi::kCompletions;
  options.model = "m";
  options.num_prompts = 300;
  options.input_length = 20;
  options.range_ratio = 0.5;
  options.max_token_id = 7;
  options.ignores_eos = true;
  size_t least = 99, most = 0;
  for (const PlannedRequest& request : Plan(options)) {
    const json body = json::parse(request.body);
    least = std::min(least, body["prompt"].size());
    most = std::max(most, body["prompt"].size());
    for (const json& id : body["prompt"]) EXPECT_LT(id.get<int>(), 7);
    EXPECT_EQ(body["max_tokens"], 128);
    EXPECT_EQ(body["ignore_eos"], true);
    EXPECT_EQ(body["stream_options"]["include_usage"], true);
    EXPECT_EQ(request.at, absl::ZeroDuration());
  }
  EXPECT_EQ(least, 10u);
  EXPECT_EQ(most, 20u);
}

TEST(PlanLoad, SeedsDecideEverything) {
  LoadOptions options;
  options.rate = 3;
  const auto bodies = [&](uint64_t seed) {
    std::string out;
    for (const PlannedRequest& r : Plan(options, {}, seed)) out += r.body + FormatDuration(r.at);
    return out;
  };
  EXPECT_EQ(bodies(5), bodies(5));
  EXPECT_NE(bodies(5), bodies(6));
}

TEST(PlanLoad, ArrivalsArePoisson) {
  LoadOptions options;
  options.rate = 50;
  options.num_prompts = 20'000;
  options.input_length = 1;
  const auto load = Plan(options);
  EXPECT_EQ(load[0].at, absl::ZeroDuration());
  double sum = 0, squares = 0;
  for (size_t i = 1; i < load.size(); ++i) {
    const double gap = absl::ToDoubleSeconds(load[i].at - load[i - 1].at);
    ASSERT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const auto n = static_cast<double>(load.size() - 1);
  EXPECT_NEAR(sum / n, 0.02, 0.001);
  EXPECT_NEAR(squares / n, 2 * 0.02 * 0.02, 0.0001);  // an exponential's second moment
}

TEST(PlanLoad, FilePromptsAreUsedInTurnAndExtrasWin) {
  const auto prompts = ReadPrompts(
      "{\"prompt\": \"a\", \"max_tokens\": 3}\n\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\r\n");
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  LoadOptions options;
  options.num_prompts = 3;
  options.output_length = 9;
  options.extra_body = R"({"temperature": 0.5, "reasoning_effort": "none"})";
  const auto load = Plan(options, *prompts);
  const json first = json::parse(load[0].body), second = json::parse(load[1].body);
  EXPECT_EQ(first["messages"][0]["content"], "a");
  EXPECT_EQ(first["max_tokens"], 3);
  EXPECT_EQ(first["temperature"], 0.5);
  EXPECT_EQ(second["messages"][0]["content"], "b");
  EXPECT_EQ(second["max_tokens"], 9);
  EXPECT_EQ(second["reasoning_effort"], "none");
  EXPECT_EQ(load[2].body, load[0].body);
  SeededRng rng(1);
  options.extra_body = "[1]";
  EXPECT_EQ(PlanLoad(options, *prompts, rng).status().message(),
            "--extra-body is no JSON object: [1]");
  options.extra_body.clear();
  options.api = BenchApi::kCompletions;
  EXPECT_EQ(PlanLoad(options, *prompts, rng).status().message(),
            "the file has messages: use --api chat");
}

TEST(ReadPrompts, TakesShareGptsList) {
  const auto prompts = ReadPrompts(
      R"([{"id": "x", "conversations": [{"from": "human", "value": "q"}, {"value": "a"}]}])");
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ(prompts->at(0).prompt, "\"q\"");
}

TEST(ReadPrompts, ErrorsNameTheLineOrItem) {
  EXPECT_EQ(Refused(" \n"), "it has no prompts");
  EXPECT_EQ(Refused("[]"), "it has no prompts");
  EXPECT_EQ(Refused("[1"), "it begins with '[' but is no JSON list");
  EXPECT_EQ(Refused("{\"prompt\": \"a\"}\n{oops"), "line 2: no JSON");
  EXPECT_EQ(Refused("7"), "line 1: want a JSON object");
  EXPECT_EQ(Refused("{}"), "line 1: want messages, or prompt as a text");
  EXPECT_EQ(Refused(R"({"messages": []})"),
            "line 1: messages must be a list with at least one message");
  for (const char* limit : {"0", "1.5", "\"3\"", "true", "99999999999"})
    EXPECT_EQ(Refused(std::string(R"({"prompt": "a", "max_tokens": )") + limit + "}"),
              "line 1: max_tokens must be an integer, 1 or more");
  EXPECT_EQ(Refused("[{\"conversations\": [{\"value\": \"a\"}]}, {}]"),
            "item 1: want conversations");
  EXPECT_EQ(Refused("[{\"conversations\": [{}]}]"),
            "item 0: conversations must begin with a turn that has a value");
}

}  // namespace
}  // namespace baton::cli
