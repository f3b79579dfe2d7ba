#include "router/openai/generate_params.h"

#include <gtest/gtest.h>

#include "router/text/test_data.h"

namespace baton::router {
namespace {

constexpr int32_t kEos = 1;

ApiResult<GenerateParams> Parse(const std::string& body,
                                CompletionKind kind = CompletionKind::kChat) {
  return ParseGenerateParams(*JsonValue::Parse(body), kind, RealTokenizer(), kEos);
}

// The parameter an error names; "" when there is none.
std::string Refused(const std::string& body, CompletionKind kind = CompletionKind::kChat) {
  const auto params = Parse(body, kind);
  return params.ok() ? "" : params.error().param;
}

TEST(GenerateParams, DefaultsAreTheOfficialOnes) {
  const auto params = Parse("{}");
  ASSERT_TRUE(params.ok());
  EXPECT_EQ(params->sampling, SamplingSpec{});
  EXPECT_EQ(params->stop_tokens, std::vector<int32_t>{kEos});
  EXPECT_FALSE(params->max_tokens.has_value());
  EXPECT_EQ(params->num_choices, 1);
  EXPECT_EQ(*Parse("{}", CompletionKind::kText)->max_tokens, 16);
}

TEST(GenerateParams, TemperatureBecomesItsInverse) {
  EXPECT_FLOAT_EQ(Parse(R"({"temperature": 0.5})")->sampling.inv_temperature, 2.0f);
  EXPECT_FLOAT_EQ(Parse(R"({"temperature": 0.001})")->sampling.inv_temperature,
                  100.0f);  // raised to 0.01
  EXPECT_TRUE(Parse(R"({"temperature": 0.000001})")->sampling.greedy);
}

TEST(GenerateParams, GreedyIgnoresTruncation) {
  const auto params = Parse(R"({"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1})");
  EXPECT_EQ(params->sampling.top_p, kTopPOff);
  EXPECT_EQ(params->sampling.top_k, 0);
  EXPECT_EQ(params->sampling.min_p, 0u);
}

TEST(GenerateParams, ProbabilitiesAreFixedPoint) {
  EXPECT_EQ(Parse(R"({"top_p": 0.5})")->sampling.top_p, uint64_t{1} << 31);
  EXPECT_EQ(Parse(R"({"top_p": 1})")->sampling.top_p, kTopPOff);
  EXPECT_EQ(Parse(R"({"min_p": 0.25})")->sampling.min_p, uint64_t{1} << 30);
}

TEST(GenerateParams, RefusalsNameTheMember) {
  EXPECT_EQ(Refused(R"({"top_p": 0})"), "top_p");
  EXPECT_EQ(Refused(R"({"top_k": -2})"), "top_k");
  EXPECT_EQ(Refused(R"({"min_p": 1.5})"), "min_p");
  EXPECT_EQ(Refused(R"({"repetition_penalty": 0})"), "repetition_penalty");
  EXPECT_EQ(Refused(R"({"frequency_penalty": -2.5})"), "frequency_penalty");
  EXPECT_EQ(Refused(R"({"n": 129})"), "n");
  EXPECT_EQ(Refused(R"({"stop": ["a", ""]})"), "stop");
  EXPECT_EQ(Refused(R"({"stop_token_ids": [999999]})"), "stop_token_ids");
  EXPECT_EQ(Refused(R"({"allowed_token_ids": []})"), "allowed_token_ids");
  EXPECT_EQ(Refused(R"({"logit_bias": {"x": 1}})"), "logit_bias");
  EXPECT_EQ(Refused(R"({"top_logprobs": 1})"), "top_logprobs");
  EXPECT_EQ(Refused(R"({"logprobs": true, "top_logprobs": 21})"), "top_logprobs");
  EXPECT_EQ(Refused(R"({"stream_options": {}})"), "stream_options");
  EXPECT_EQ(Refused(R"({"temperature": true})"), "temperature");
  EXPECT_EQ(Refused(R"({"cache_salt": ""})"), "cache_salt");
  EXPECT_EQ(Refused(R"({"use_beam_search": true})"), "use_beam_search");
  EXPECT_EQ(Refused(R"({"logprobs": 21})", CompletionKind::kText), "logprobs");
}

TEST(GenerateParams, BiasIsSortedAndClamped) {
  const auto params = Parse(R"({"logit_bias": {"9": 500, "3": -1}})");
  const std::vector<std::pair<int32_t, float>> expected = {{3, -1.0f}, {9, 100.0f}};
  EXPECT_EQ(params->sampling.logit_bias, expected);
}

TEST(GenerateParams, BadWordsComeWithAndWithoutASpace) {
  const auto params = Parse(R"({"bad_words": ["word"]})");
  const std::vector<std::vector<int32_t>> expected = {
      RealTokenizer().Encode("word", SpecialTokens::kPlain),
      RealTokenizer().Encode(" word", SpecialTokens::kPlain)};
  EXPECT_EQ(params->sampling.bad_words, expected);
}

TEST(GenerateParams, TheFirstLengthWins) {
  EXPECT_EQ(*Parse(R"({"max_tokens": 5, "max_completion_tokens": 7})")->max_tokens, 7);
  EXPECT_EQ(
      *Parse(R"({"max_tokens": 5, "max_completion_tokens": 7})", CompletionKind::kText)->max_tokens,
      5);
}

TEST(GenerateParams, ExtremeNumbersStayWhatAWorkerTakes) {
  const auto hot = Parse(R"({"temperature": 1e300})");
  ASSERT_TRUE(hot.ok());
  EXPECT_GT(hot->sampling.inv_temperature, 0.0f);
  std::string ids = "1";
  for (int i = 0; i < 200'000; ++i) ids += ",1";
  EXPECT_FALSE(Parse(R"({"stop_token_ids": [)" + ids + "]}").ok());
}

TEST(GenerateParams, IgnoringEosKeepsTheRequestsStops) {
  EXPECT_EQ(Parse(R"({"ignore_eos": true, "stop_token_ids": [5]})")->stop_tokens,
            std::vector<int32_t>{5});
  const std::vector<int32_t> both = {kEos, 5};  // ascending
  EXPECT_EQ(Parse(R"({"stop_token_ids": [5]})")->stop_tokens, both);
}

}  // namespace
}  // namespace baton::router
