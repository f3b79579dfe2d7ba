#include "engine/load/tensor_table.h"

#include <map>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

#include "engine/load/inspect.h"
#include "engine/load/test_checkpoint.h"

// Figures of model.md 9.2, 9.4 and 9.5 for the real model.
namespace baton::engine {
namespace {

ModelConfig FlashConfig() {
  ModelConfig c = TestModelConfig();
  c.vocab_size = 129'280;
  c.hidden_size = 4'096;
  c.num_hidden_layers = 43;
  c.num_attention_heads = 64;
  c.q_lora_rank = 1'024;
  c.o_groups = 8;
  c.o_lora_rank = 1'024;
  c.n_routed_experts = 256;
  c.moe_intermediate_size = 2'048;
  c.num_hash_layers = 3;
  c.index_n_heads = 64;
  c.index_topk = 512;
  c.compress_ratios = {0, 0};
  for (int layer = 2; layer < 43; ++layer) c.compress_ratios.push_back(layer % 2 == 0 ? 4 : 128);
  return c;
}

uint64_t BytesOf(const ExpectedTensor& tensor) {
  uint64_t bytes = 1;
  for (int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
  switch (tensor.kind) {
    case TensorKind::kBf16:
      return 2 * bytes;
    case TensorKind::kF32:
      return 4 * bytes;
    case TensorKind::kIndices:
      return 8 * bytes;
    case TensorKind::kF8:
    case TensorKind::kF8OrBf16:
    case TensorKind::kPackedFp4:
    case TensorKind::kScale:
    case TensorKind::kOptionalScale:
      return bytes;
  }
  return 0;
}

TEST(TensorTable, OfTheRealModelHasThePublishedCountAndBytes) {
  const auto table = ExpectedTensors(FlashConfig());
  EXPECT_EQ(table.size(), 69'187u);
  uint64_t bytes = 0;
  for (const ExpectedTensor& tensor : table) bytes += BytesOf(tensor);
  EXPECT_EQ(bytes, 159'609'485'896u);
}

TEST(TensorTable, OfTheRealModelHasThePublishedBytesByCategory) {
  std::map<std::string_view, uint64_t> bytes;
  for (const ExpectedTensor& tensor : ExpectedTensors(FlashConfig()))
    bytes[CategoryOf(tensor.name)] += BytesOf(tensor);
  const std::map<std::string_view, uint64_t> published = {{"expert weights", 138'512'695'296},
                                                          {"expert scales", 8'657'043'456},
                                                          {"attention", 4'599'346'048},
                                                          {"shared experts", 1'082'196'480},
                                                          {"embed", 1'059'061'760},
                                                          {"head", 1'059'061'760},
                                                          {"compressors", 525'722'624},
                                                          {"indexers", 275'353'344},
                                                          {"mHC", 135'537'756},
                                                          {"gates", 90'218'496},
                                                          {"tid2eid", 18'616'320},
                                                          {"norms", 844'800},
                                                          {"MTP", 3'593'787'756}};
  EXPECT_EQ(bytes, published);
}

TEST(TensorTable, OfTheFp8RereleaseHasItsBytes) {
  ModelConfig config = FlashConfig();
  config.expert_dtype = "fp8";
  uint64_t with_fp8_wo_a = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) with_fp8_wo_a += BytesOf(tensor);
  EXPECT_EQ((with_fp8_wo_a + 5'000'000) / 10'000'000, 29'250u);  // 292.50 GB
}

}  // namespace
}  // namespace baton::engine
