#include "engine/model/config.h"

#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/load/test_checkpoint.h"

namespace baton::engine {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json GoodConfig() { return json::parse(ModelConfigJson(TestModelConfig())); }

std::string ErrorOf(const json& root) {
  const auto config = ParseModelConfig(root.dump(), "m/config.json");
  return config.ok() ? "accepted" : std::string(config.status().message());
}

// The error after `change`.
std::string ErrorAfter(const std::function<void(json&)>& change) {
  json root = GoodConfig();
  change(root);
  return ErrorOf(root);
}

TEST(ModelConfig, ReadsTheGoldenConfiguration) {
  std::ifstream in("tests/data/golden/tiny-a/config.json");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto config = ParseModelConfig(text, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->expert_dtype, "fp4");
  EXPECT_EQ(config->compress_ratios, (std::vector<int>{0, 4, 128, 4}));
  EXPECT_EQ(config->yarn_original_positions, 65'536);
  const kernels::PageLayout layout(LayoutShapeOf(*config, kernels::NumericsMode::kOfficial));
  EXPECT_EQ(layout.Id().Hex(), "82bdcbab59d1e78b");
}

TEST(ModelConfig, WrittenConfigurationComesBack) {
  ModelConfig config = TestModelConfig();
  config.expert_dtype = "fp8";
  config.num_hash_layers = 3;
  const auto back = ParseModelConfig(ModelConfigJson(config), "config.json");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ModelConfigJson(*back), ModelConfigJson(config));
}

TEST(ModelConfig, WithoutMtpIsAccepted) {
  ModelConfig config = TestModelConfig();
  config.num_nextn_predict_layers = 0;
  const auto back = ParseModelConfig(ModelConfigJson(config), "config.json");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(LayoutShapeOf(*back, kernels::NumericsMode::kOfficial).num_mtp_layers, 0);
}

TEST(ModelConfig, Float32ModeKeepsFloatRows) {
  const auto shape = LayoutShapeOf(TestModelConfig(), kernels::NumericsMode::kFloat32);
  EXPECT_EQ(kernels::PageLayout(shape).stride_bytes(), 331'776u);
}

TEST(ModelConfig, EveryRequiredFieldIsMissedByName) {
  const json good = GoodConfig();
  for (const auto& [name, value] : good.items()) {
    if (name == "expert_dtype" || name == "tie_word_embeddings") continue;
    json root = good;
    root.erase(name);
    EXPECT_THAT(ErrorOf(root), HasSubstr(name + " is missing"));
  }
}

TEST(ModelConfig, EveryNumberIsCheckedByNameValueAndLimit) {
  const json good = GoodConfig();
  for (const auto& [name, value] : good.items()) {
    if (!value.is_number()) continue;
    json root = good;
    root[name] = -7;
    EXPECT_THAT(ErrorOf(root), HasSubstr(name + " is -7, must be"));
    root[name] = "x";
    EXPECT_THAT(ErrorOf(root), HasSubstr(name + " is \"x\", must be"));
  }
}

TEST(ModelConfig, SizesThatAreNoMultipleOf128AreRefusedByName) {
  for (const char* name : {"hidden_size", "q_lora_rank", "moe_intermediate_size", "head_dim"}) {
    EXPECT_THAT(ErrorAfter([name](json& root) { root[name] = 192; }),
                HasSubstr(std::string(name) + " is 192, must be an integer of"));
  }
  EXPECT_THAT(ErrorAfter([](json& root) { root["o_lora_rank"] = 96; }),
              HasSubstr("o_lora_rank * o_groups is 192, must be a multiple of 128"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["index_head_dim"] = 96; }),
              HasSubstr("index_head_dim is 96, must be a power of two"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["num_attention_heads"] = 3; }),
              HasSubstr("num_attention_heads is 3, must be a multiple of 2"));
}

TEST(ModelConfig, FieldsMustFitOneAnother) {
  EXPECT_THAT(ErrorAfter([](json& root) { root["num_experts_per_tok"] = 9; }),
              HasSubstr("num_experts_per_tok is 9, at most n_routed_experts = 8"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["num_hash_layers"] = 5; }),
              HasSubstr("num_hash_layers is 5, at most num_hidden_layers = 4"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["eos_token_id"] = 512; }),
              HasSubstr("eos_token_id is 512, at most vocab_size - 1 = 511"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["rope_scaling"]["beta_fast"] = 0.5; }),
              HasSubstr("rope_scaling.beta_fast is 0.5, at least beta_slow 1"));
}

TEST(ModelConfig, RatiosAreCheckedOneByOne) {
  EXPECT_THAT(ErrorAfter([](json& root) {
                root["compress_ratios"] = {0, 4, 64, 4, 0};
              }),
              HasSubstr("compress_ratios[2] is 64, must be 0, 4 or 128"));
  EXPECT_THAT(ErrorAfter([](json& root) {
                root["compress_ratios"] = {0, 4, 128, 4, 4};
              }),
              HasSubstr("compress_ratios[4] is 4, must be 0 (MTP)"));
  EXPECT_THAT(ErrorAfter([](json& root) {
                root["compress_ratios"] = {0, 4, 128, 4};
              }),
              HasSubstr("must have 5 entries for 4 layers and 1 MTP layers"));
}

TEST(ModelConfig, RelativesOfTheModelAreRefusedByName) {
  EXPECT_THAT(ErrorAfter([](json& root) { root["model_type"] = "deepseek_v41"; }),
              HasSubstr("V4.1"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["dspark_block_size"] = 5; }), HasSubstr("DSpark"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["compress_ratios"] = {0, 4, 128, 4, 0, 0, 0}; }),
              HasSubstr("DSpark"));
  EXPECT_THAT(ErrorAfter([](json& root) { root["model_type"] = "llama"; }),
              HasSubstr("model_type is \"llama\", must be \"deepseek_v4\""));
  EXPECT_THAT(ErrorAfter([](json& root) { root["scoring_func"] = "sigmoid"; }),
              HasSubstr("scoring_func is \"sigmoid\", must be \"sqrtsoftplus\""));
  EXPECT_THAT(ErrorAfter([](json& root) { root["expert_dtype"] = "nvfp4"; }),
              HasSubstr("expert_dtype is \"nvfp4\""));
  EXPECT_THAT(ErrorAfter([](json& root) { root["rope_scaling"]["mscale"] = 1; }),
              HasSubstr("rope_scaling.mscale is present"));
  EXPECT_THAT(ErrorAfter([](json& root) {
                root["quantization_config"]["weight_block_size"] = {32, 32};
              }),
              HasSubstr("quantization_config.weight_block_size is [32,32], must be [128,128]"));
}

TEST(ModelConfig, AllProblemsAreReportedTogether) {
  const std::string error = ErrorAfter([](json& root) {
    root["hidden_size"] = 100;
    root.erase("q_lora_rank");
    root["rope_scaling"]["type"] = "linear";
  });
  EXPECT_THAT(error, HasSubstr("m/config.json: "));
  EXPECT_THAT(error, HasSubstr("hidden_size is 100"));
  EXPECT_THAT(error, HasSubstr("q_lora_rank is missing"));
  EXPECT_THAT(error, HasSubstr("rope_scaling.type is \"linear\", must be \"yarn\""));
}

TEST(ModelConfig, TextThatIsNoConfigurationIsRefused) {
  const auto error = [](const std::string& text) {
    return ParseModelConfig(text, "c").status().ToString();
  };
  EXPECT_THAT(error(""), HasSubstr("no JSON object"));
  EXPECT_THAT(error("[1, 2"), HasSubstr("no JSON object"));
  EXPECT_THAT(error("[]"), HasSubstr("no JSON object"));
  EXPECT_THAT(error(std::string(100, '[') + std::string(100, ']')), HasSubstr("nested deeper"));
  EXPECT_THAT(error(std::string((1 << 20) + 1, ' ')), HasSubstr("at most 1048576"));
}

}  // namespace
}  // namespace baton::engine
