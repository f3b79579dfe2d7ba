#include <algorithm>
#include <cstring>

#include "common/digest.h"
#include "kernels/cpu/sample.h"
#include "kernels/cuda/gpu_test_model.h"

// Operators that must equal the CPU back end's bit for bit: sampler, digests; top-k:
// select_test.cc.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;

constexpr int kRows = 72;  // so many that a row is cut into few slices

std::unique_ptr<Ops> MakeOps(Device& device, int vocabulary) {
  testing::TestShape shape;
  shape.vocabulary = vocabulary;
  CudaOptions options{.config = testing::ConfigOf(shape),
                      .layout = PageLayout(testing::LayoutOf(shape))};
  options.num_pages = 1;
  options.pages = *device.Allocate(options.layout.stride_bytes());
  options.num_tail_slots = 1;
  options.max_rows = 8;
  options.max_sequences = 1;
  options.max_head_rows = kRows;
  options.max_context = 256;
  auto ops = MakeCudaOps(std::move(options), device);
  CHECK(ops.ok());
  return *std::move(ops);
}

// Logits of several characters: smooth, peaked, full of ties, with -inf, huge, infinite values.
std::vector<float> MakeLogits(int vocabulary, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> logits(Count(kRows, vocabulary));
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto row = static_cast<int>(i / static_cast<size_t>(vocabulary));
    const float u = static_cast<float>(random() >> 8) * 0x1p-24f;
    float x = 12.0f * u - 6.0f;
    if (row % 4 == 1) x = 40.0f * u * u * u;
    if (row % 4 == 2) x = static_cast<float>(static_cast<int>(8.0f * u));
    if (row % 4 == 3) x = u < 0.3f ? -1e30f : 3e3f * u;
    if (row % 12 == 6 && u > 0.995f) x = __builtin_inff();
    if (row % 12 == 9 && u > 0.98f) x = row % 24 == 9 ? -__builtin_inff() : __builtin_nanf("");
    logits[i] = x;
  }
  return logits;
}

// Parameters and token lists of one generated row.
struct RowCase {
  SamplingSpec spec;
  FinishRules finish;
  std::vector<int32_t> prompt, generated;
  std::vector<uint32_t> mask;

  RowCase(int vocabulary, std::mt19937& random) {
    const auto below = [&random](int n) {
      return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
    };
    const auto chance = [&](int one_in) { return below(one_in) == 0; };
    spec.greedy = chance(6);
    spec.inv_temperature = 0.3f + 0.1f * static_cast<float>(below(30));
    if (chance(3)) spec.top_k = 1 + below(chance(2) ? 50 : 2 * vocabulary);
    if (chance(3)) spec.top_p = static_cast<uint64_t>(random());
    if (chance(3)) spec.min_p = static_cast<uint64_t>(random()) / 8;
    if (chance(3)) spec.repetition_penalty = 1.0f + 0.1f * static_cast<float>(below(10));
    if (chance(3)) spec.frequency_penalty = 0.25f * static_cast<float>(below(8));
    if (chance(3)) spec.presence_penalty = 0.25f * static_cast<float>(below(8)) - 1.0f;
    if (chance(2)) spec.top_logprobs = below(21);
    for (int i = 0; i < 200; ++i) prompt.push_back(below(vocabulary + 5));
    for (int i = 0; i < 60; ++i) generated.push_back(below(chance(2) ? 20 : vocabulary));
    if (chance(3)) {
      for (int token = 3; token < 3 + 10 * 7; token += 7) {
        spec.logit_bias.push_back({token, static_cast<float>(below(20)) - 10.0f});
      }
    }
    if (chance(4)) {
      for (int token = below(9); token < vocabulary; token += 1 + below(40)) {
        spec.allowed_tokens.push_back(token);
      }
    }
    if (chance(4)) spec.bad_words = {{generated[58], generated[59], 5}, {9}, {1, 2}};
    finish.stop_tokens = {1, 2, 3};
    finish.min_tokens = chance(2) ? 100 : 0;
    if (chance(4)) {
      mask.resize(Count((vocabulary + 31) / 32, 1));
      for (uint32_t& word : mask) word = static_cast<uint32_t>(random() & random());
      if (chance(3)) std::fill(mask.begin(), mask.end(), 0u);
    }
  }

  SampleRow Row(int logits_row, std::mt19937& random) const {
    SampleRow row;
    row.spec = &spec;
    row.finish = &finish;
    row.key = (uint64_t{random()} << 32) | random();
    row.position = static_cast<int64_t>(random());
    row.logits_row = logits_row;
    row.prompt = prompt;
    row.generated = generated;
    row.token_mask = mask;
    row.is_draft = random() % 5 == 0;
    return row;
  }
};

class CudaSample : public ::testing::Test {
 protected:
  void SetUp() override { device_ = testing::DeviceOrSkip(); }

  // Rows of one call against the CPU's.
  void ExpectTheCpus(Ops& ops, int vocabulary, const std::vector<float>& logits,
                     std::span<const SampleRow> rows, const char* what) {
    std::vector<TokenRecord> chosen(rows.size());
    std::vector<uint8_t> is_empty(rows.size());
    ASSERT_TRUE(ops.Sample({.rows = rows, .chosen = chosen, .is_empty = is_empty}).ok());
    cpu::SampleScratch scratch;
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto first = Count(rows[i].logits_row, vocabulary);
      TokenRecord expected;
      bool expects_empty = false;
      cpu::SampleRowOnCpu(rows[i], {&logits[first], Count(vocabulary, 1)}, expected, expects_empty,
                          scratch);
      ASSERT_EQ(is_empty[i] != 0, expects_empty) << what << " " << vocabulary << " " << i;
      ASSERT_EQ(chosen[i], expected) << what << " " << vocabulary << " " << i << " token "
                                     << chosen[i].token << " expected " << expected.token;
    }
  }

  std::unique_ptr<Device> device_;
};

TEST_F(CudaSample, EqualsTheCpuBitForBit) {
  if (device_ == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device_);
  for (const int vocabulary : {37, 1000, 129280}) {
    const auto ops = MakeOps(*device_, vocabulary);
    for (uint32_t seed = 1; seed <= 8; ++seed) {
      std::mt19937 random(seed);
      const std::vector<float> logits = MakeLogits(vocabulary, seed);
      testing::WriteTo(cuda, static_cast<CudaOps&>(*ops).activations().logits, logits);
      std::vector<RowCase> cases;
      constexpr int kCases = 50;
      for (int i = 0; i < kCases; ++i) cases.emplace_back(vocabulary, random);
      std::vector<SampleRow> rows;
      for (int i = 0; i < kCases; ++i) {
        const auto row = static_cast<int>((static_cast<uint32_t>(i) + 24 * seed) % kRows);
        rows.push_back(cases[static_cast<size_t>(i)].Row(row, random));
      }
      ExpectTheCpus(*ops, vocabulary, logits, rows, "any");
    }
  }
}

// Without edits scores are not kept, and rows are cut by their number.
TEST_F(CudaSample, HowARowIsCutChangesNoBit) {
  if (device_ == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device_);
  for (const int vocabulary : {37, 1001, 129280}) {
    const auto ops = MakeOps(*device_, vocabulary);
    for (uint32_t seed = 1; seed <= 4; ++seed) {
      std::mt19937 random(100 + seed);
      const std::vector<float> logits = MakeLogits(vocabulary, seed);
      testing::WriteTo(cuda, static_cast<CudaOps&>(*ops).activations().logits, logits);
      std::vector<RowCase> cases;
      for (int i = 0; i < kRows; ++i) {
        RowCase& one = cases.emplace_back(vocabulary, random);
        const SamplingSpec all = one.spec;
        one.spec = SamplingSpec{};
        one.spec.greedy = all.greedy;
        one.spec.inv_temperature = i % 5 == 0 ? 1e30f : all.inv_temperature;
        one.spec.top_logprobs = i % 9 == 0 ? all.top_logprobs : -1;
        if (i % 3 != 0) one.spec.top_k = 1 + static_cast<int>(random() % 150);
        if (i % 2 == 0) one.spec.top_p = i % 3 != 0 ? uint64_t{random()} : one.spec.top_p;
        one.spec.min_p = all.min_p;
        one.finish.min_tokens = 0;
      }
      std::vector<SampleRow> rows;
      for (int i = 0; i < kRows; ++i) {
        rows.push_back(cases[static_cast<size_t>(i)].Row(i, random));
      }
      for (const size_t count : {3, 20, 40, kRows}) {
        ExpectTheCpus(*ops, vocabulary, logits, {rows.data(), count}, "cut");
      }
    }
  }
}

TEST(CudaDigest, EqualsTheHostsForEverySizeAndAlignment) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  const auto ops = MakeOps(*device, 37);
  std::mt19937 random(3);
  std::vector<uint8_t> bytes(3'000'000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  std::byte* memory = *device->Allocate(bytes.size());
  testing::WriteTo(cuda, memory, bytes);
  const auto* host = reinterpret_cast<const std::byte*>(bytes.data());
  Secret secret;
  for (uint8_t& byte : secret.bytes) byte = static_cast<uint8_t>(random());
  const size_t sizes[] = {0, 1, 3, 4, 1023, 1024, 1025, 3000, 65536, 995'328, 2'900'001};
  std::vector<DigestItem> items;
  std::vector<Digest128> expected;
  for (const size_t size : sizes) {
    for (const size_t offset : {0, 1, 4, 6}) {
      const std::span<const std::byte> header(host + 7, size % 1000);
      items.push_back({header, {memory + offset, size}});
      items.push_back({header, {host + offset, size}});
      for (int i = 0; i < 2; ++i) {
        expected.push_back(
            NhDigest(secret, NhDigest::Path::kScalar).Of(header, {host + offset, size}));
      }
    }
  }
  std::vector<Digest128> digests(items.size());
  ASSERT_TRUE(ops->Digest({.secret = secret, .items = items, .digests = digests}).ok());
  for (size_t i = 0; i < items.size(); ++i) EXPECT_EQ(digests[i], expected[i]) << i;
}

TEST(CudaDevice, NamesWhatIsMissingWhereThereIsNoSuchGpu) {
  const auto device = MakeCudaDevice(1000);
  ASSERT_FALSE(device.ok());
  const bool has_some = MakeCudaDevice(0).ok();
  EXPECT_EQ(device.status().code(),
            has_some ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(device.status().message()).find("GPU"), std::string::npos);
}

TEST(MakeCudaOps, RefusesSizesByName) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  testing::TestShape shape;
  CudaOptions options{.config = testing::ConfigOf(shape),
                      .layout = PageLayout(testing::LayoutOf(shape))};
  options.config.hidden_size = 192;
  const auto ops = MakeCudaOps(options, *device);
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(ops.status().message()).find("hidden_size is 192"), std::string::npos);
}

}  // namespace
}  // namespace baton::kernels::cuda
