#include "engine/load/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/load/inspect.h"
#include "engine/load/test_checkpoint.h"
#include "engine/load/weights_id.h"

namespace baton::engine {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kGolden[] = "tests/data/golden/tiny-a";

// The smallest checkpoint: one layer, two experts.
TestCheckpointOptions SmallOptions() {
  TestCheckpointOptions options{.config = TestModelConfig()};
  options.config.num_hidden_layers = 1;
  options.config.compress_ratios = {4};
  options.config.num_hash_layers = 0;
  options.config.n_routed_experts = 2;
  options.config.num_experts_per_tok = 1;
  options.config.num_nextn_predict_layers = 0;
  return options;
}

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = (fs::path(::testing::TempDir()) / ("baton_checkpoint_" + test)).string();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Write(const TestCheckpointOptions& options) {
    const absl::Status status = WriteTestCheckpoint(options, folder_);
    ASSERT_TRUE(status.ok()) << status;
  }

  // Opens a single-file checkpoint whose tensors `change` has altered.
  std::string ErrorAfter(const std::function<void(std::vector<OwnedTensor>&)>& change) {
    TestCheckpointOptions options = SmallOptions();
    options.num_shards = 0;
    Write(options);
    std::vector<OwnedTensor> tensors = MakeTestTensors(options);
    change(tensors);
    EXPECT_TRUE(WriteSafetensors(folder_ + "/model.safetensors", std::move(tensors)).ok());
    return Error();
  }

  std::string Error() const {
    const auto checkpoint = Checkpoint::Open(folder_);
    return checkpoint.ok() ? "accepted" : std::string(checkpoint.status().message());
  }

  void WriteFile(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
  }

  std::string folder_;
};

OwnedTensor& Named(std::vector<OwnedTensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&name](const OwnedTensor& tensor) { return tensor.name == name; });
}

TEST_F(CheckpointTest, GoldenCheckpointOpens) {
  const auto checkpoint = Checkpoint::Open(kGolden);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 427u);
  EXPECT_EQ(checkpoint->total_bytes(), 6'169'244u);
  EXPECT_EQ(checkpoint->Tensor("layers.0.ffn.gate.tid2eid").dtype, DType::kI64);
  EXPECT_TRUE(checkpoint->Has("layers.1.attn.wo_a.scale"));
  EXPECT_FALSE(checkpoint->Has("layers.1.ffn.gate.tid2eid"));
}

TEST_F(CheckpointTest, EveryVariantOfTheFamilyOpens) {
  for (const char* experts : {"fp4", "fp8"}) {
    for (const bool is_plain : {false, true}) {
      TestCheckpointOptions options = SmallOptions();
      options.config.expert_dtype = experts;
      options.has_bf16_wo_a = is_plain;
      options.has_f32_scales = !is_plain;
      options.num_shards = is_plain ? 3 : 1;
      Write(options);
      EXPECT_EQ(Error(), "accepted") << experts << is_plain;
    }
  }
}

TEST_F(CheckpointTest, OtherShapesAndLayerOrdersOpen) {
  TestCheckpointOptions options{.config = TestModelConfig()};
  options.config.hidden_size = 256;
  options.config.num_attention_heads = 4;
  options.config.num_hidden_layers = 3;
  options.config.compress_ratios = {128, 0, 4};
  options.config.num_hash_layers = 2;
  options.config.n_routed_experts = 3;
  options.config.num_experts_per_tok = 2;
  options.config.head_dim = 128;
  Write(options);
  EXPECT_EQ(Error(), "accepted");
}

TEST_F(CheckpointTest, SingleFileWithoutIndexOpens) {
  TestCheckpointOptions options = SmallOptions();
  options.num_shards = 0;
  Write(options);
  EXPECT_EQ(Error(), "accepted");
}

TEST_F(CheckpointTest, FoldersThatHoldNoneAreRefused) {
  EXPECT_EQ(Checkpoint::Open(folder_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Error(), HasSubstr("config.json"));
  WriteFile("config.json", ModelConfigJson(TestModelConfig()));
  EXPECT_THAT(Error(), HasSubstr("neither model.safetensors.index.json nor model.safetensors"));
  WriteFile("model.safetensors.index.json", "{}");
  EXPECT_THAT(Error(), HasSubstr("weight_map is missing"));
  WriteFile("model.safetensors.index.json", R"({"weight_map":{"a":"../x"}})");
  EXPECT_THAT(Error(), HasSubstr("tensor a: shard is no file name"));
  WriteFile("model.safetensors.index.json", R"({"weight_map":{"a":"..\u0000x"}})");
  EXPECT_THAT(Error(), HasSubstr("tensor a: shard is no file name"));
  WriteFile("model.safetensors.index.json", R"({"weight_map":{"a":"x"}})");
  EXPECT_THAT(Error(), HasSubstr("/x: open: No such file"));
}

TEST_F(CheckpointTest, WrongTensorsAreReportedTogether) {
  const std::string error = ErrorAfter([](std::vector<OwnedTensor>& tensors) {
    Named(tensors, "norm.weight").name = "model.norm.weight";
    Named(tensors, "layers.0.attn.kv_norm.weight").shape = {2, 256};
    OwnedTensor& sink = Named(tensors, "layers.0.attn.attn_sink");
    sink.dtype = DType::kI32;
  });
  EXPECT_THAT(error, HasSubstr("4 problems"));
  EXPECT_THAT(error, HasSubstr("norm.weight: missing"));
  EXPECT_THAT(error, HasSubstr("model.norm.weight: no tensor of this model"));
  EXPECT_THAT(error, HasSubstr("layers.0.attn.kv_norm.weight: shape [2, 256], must be [512]"));
  EXPECT_THAT(error, HasSubstr("layers.0.attn.attn_sink: dtype I32, must be F32"));
}

TEST_F(CheckpointTest, LongListsOfProblemsAreCut) {
  const std::string error = ErrorAfter([](std::vector<OwnedTensor>& tensors) {
    for (size_t i = 0; i < 25; ++i) tensors[i].name += "_x";
  });
  EXPECT_THAT(error, HasSubstr("50 problems"));
  EXPECT_THAT(error, HasSubstr("and 30 more"));
}

TEST_F(CheckpointTest, ScaleOfTheOutProjectionFollowsItsWeight) {
  EXPECT_THAT(ErrorAfter([](std::vector<OwnedTensor>& tensors) {
                std::erase_if(tensors, [](const OwnedTensor& tensor) {
                  return tensor.name == "layers.0.attn.wo_a.scale";
                });
              }),
              HasSubstr("layers.0.attn.wo_a.scale: missing"));
  EXPECT_THAT(ErrorAfter([](std::vector<OwnedTensor>& tensors) {
                OwnedTensor& weight = Named(tensors, "layers.0.attn.wo_a.weight");
                weight.dtype = DType::kBf16;
                weight.bytes.resize(2 * weight.bytes.size());
              }),
              HasSubstr("layers.0.attn.wo_a.scale: present beside a BF16 weight"));
}

TEST_F(CheckpointTest, IndexMayNameScalesTheShardsLack) {
  TestCheckpointOptions options = SmallOptions();
  options.has_bf16_wo_a = true;
  Write(options);
  std::ifstream in(folder_ + "/model.safetensors.index.json");
  std::string index((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::string head = R"({"weight_map":{)";
  index.insert(head.size(), R"("layers.0.attn.wo_a.scale":"part-00001-of-00001.safetensors",)");
  WriteFile("model.safetensors.index.json", index);
  EXPECT_EQ(Error(), "accepted");
  index.insert(head.size(), R"("layers.7.attn.wo_a.scale":"part-00001-of-00001.safetensors",)");
  WriteFile("model.safetensors.index.json", index);
  EXPECT_THAT(Error(), HasSubstr("layers.7.attn.wo_a.scale: in the index, no tensor"));
}

TEST_F(CheckpointTest, IndexMustAgreeWithTheShards) {
  TestCheckpointOptions options = SmallOptions();
  options.num_shards = 2;
  Write(options);
  fs::copy_file(folder_ + "/part-00001-of-00002.safetensors",
                folder_ + "/part-00002-of-00002.safetensors", fs::copy_options::overwrite_existing);
  const std::string error = Error();
  EXPECT_THAT(error, HasSubstr("in both part-00001-of-00002.safetensors and part-00002"));
  EXPECT_THAT(error, Not(HasSubstr("accepted")));
}

TEST_F(CheckpointTest, TruncatedShardsAreRefusedByFile) {
  Write(SmallOptions());
  const std::string shard = folder_ + "/part-00001-of-00001.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_THAT(Error(), HasSubstr(shard));
  fs::resize_file(shard, 0);
  EXPECT_THAT(Error(), HasSubstr(shard + ": 0 bytes"));
}

TEST_F(CheckpointTest, WeightsIdIsKeptBesideUntilAFileChanges) {
  Write(SmallOptions());
  const std::string cache = folder_ + "/cache";
  const auto open_id = [&] { return Checkpoint::Open(folder_)->ComputeWeightsId(cache); };
  const auto plain = Checkpoint::Open(folder_)->ComputeWeightsId("");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(*open_id(), *plain);
  ASSERT_EQ(std::distance(fs::directory_iterator(cache), fs::directory_iterator()), 1);
  const fs::path entry = fs::directory_iterator(cache)->path();
  EXPECT_EQ(entry.extension(), ".weights_id");

  WriteFile("cache/" + entry.filename().string(), std::string(32, 'a'));
  EXPECT_EQ(open_id()->Hex(), std::string(32, 'a'));
  WriteFile("cache/" + entry.filename().string(), "half");
  EXPECT_EQ(*open_id(), *plain);

  TestCheckpointOptions other = SmallOptions();
  other.seed = 2;
  Write(other);
  fs::last_write_time(folder_ + "/part-00001-of-00001.safetensors",
                      fs::last_write_time(folder_ + "/config.json") + std::chrono::hours(1));
  EXPECT_NE(*open_id(), *plain);
}

TEST(WeightsId, MatchesItsVector) {
  const float half = 0.5f;
  const float values[] = {1.0f, 2.0f};
  const uint8_t scales[] = {0x7f, 0x80};
  const HostTensor a = {
      "layers.0.a.scale", DType::kF8E8M0, {1, 2}, std::as_bytes(std::span(scales))};
  const HostTensor b = {"layers.0.b.scale", DType::kF32, {}, std::as_bytes(std::span(&half, 1))};
  const HostTensor c = {"layers.0.b.weight", DType::kF32, {2}, std::as_bytes(std::span(values))};
  const HostTensor* tensors[] = {&a, &b, &c};
  EXPECT_EQ(WeightsIdOf(tensors).Hex(), "2c07c750b722fc29b42b8be3fecb78de");
}

TEST(InspectCheckpoint, TellsShapesBytesAndIds) {
  const auto checkpoint = Checkpoint::Open(kGolden);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::string text = InspectCheckpoint(*checkpoint);
  EXPECT_THAT(text, HasSubstr("4 (1 sliding, 2 CSA, 1 HCA; 1 hash-routed) + 1 MTP"));
  EXPECT_THAT(text, HasSubstr("tensors 427, bytes 6169244"));
  EXPECT_THAT(text, HasSubstr("wo_a F8_E4M3, scales F8_E8M0"));
  EXPECT_THAT(text, HasSubstr("82bdcbab59d1e78b"));
  EXPECT_THAT(text, HasSubstr("49568d2f47f8263e"));
  EXPECT_THAT(text, HasSubstr(checkpoint->ComputeWeightsId("")->Hex()));
}

}  // namespace
}  // namespace baton::engine
