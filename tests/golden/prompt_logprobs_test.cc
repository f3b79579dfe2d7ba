// Logprobs of a prompt's own tokens (contracts.md 2.5, 5): right against the golden float32 logits,
// and the same bits for every way a prompt is cut into steps.
#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"

#include "tests/golden/golden_file.h"
#include "tests/golden/sequence_runs.h"

namespace baton::golden {
namespace {

constexpr char kDemo[] = "models/demo";
constexpr char kTiny[] = "tests/data/golden/tiny-a";
constexpr int kTop = 5;
constexpr double kLogprobError = 4e-3;  // two logits' errors of golden_check

std::vector<GoldenSequence> Goldens(const std::string& folder) {
  const auto goldens = ReadGoldens(folder + "/golden.safetensors");
  EXPECT_TRUE(goldens.ok()) << goldens.status();
  return *goldens;
}

std::unique_ptr<TestModel> Load(const std::string& folder, const TestModelOptions& options) {
  const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load(*checkpoint, options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<TokenRecord> Report(TestModel& model, const std::vector<int32_t>& prompt, int chunk,
                                const TestModelOptions& options) {
  SequenceRuns runs(model, options);
  SamplingSpec sampling;
  sampling.inv_temperature = 0.5f;  // of what follows the prompt: nothing of it may show
  sampling.allowed_tokens = {7};
  const SequenceId id = runs.Start(prompt, sampling);
  runs.Edit(id).prompt_logprobs = kTop;
  runs.PrefillAll(id, chunk);
  return runs.PromptLogprobs(id);
}

double LogSum(std::span<const float> logits) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return std::log(sum);
}

// How many rows of `golden` were compared.
int ExpectGolden(const std::vector<TokenRecord>& report, const GoldenSequence& golden) {
  const size_t vocabulary = golden.logits.values.size() / golden.logits.positions.size();
  int compared = 0;
  for (size_t i = 0; i < golden.logits.positions.size(); ++i) {
    const auto row = static_cast<size_t>(golden.logits.positions[i]);
    if (row >= report.size()) continue;  // the prompt's end: nothing of it follows
    const auto logits = std::span(golden.logits.values).subspan(i * vocabulary, vocabulary);
    const double log_sum = LogSum(logits);
    const TokenRecord& got = report[row];
    SCOPED_TRACE(row);
    EXPECT_EQ(got.token, golden.tokens[row + 1]);
    EXPECT_NEAR(got.logprob, logits[static_cast<size_t>(got.token)] - log_sum, kLogprobError);
    EXPECT_EQ(got.top.size(), static_cast<size_t>(kTop));
    for (const TokenLogprob& top : got.top)
      EXPECT_NEAR(top.logprob, logits[static_cast<size_t>(top.token)] - log_sum, kLogprobError);
    EXPECT_NEAR(got.top.at(0).logprob, *std::max_element(logits.begin(), logits.end()) - log_sum,
                kLogprobError);
    ++compared;
  }
  return compared;
}

TEST(PromptLogprobs, AreThoseOfTheGoldenLogits) {
  const TestModelOptions options{.mode = kernels::NumericsMode::kFloat32, .num_threads = 2};
  for (const char* folder : {kDemo, kTiny}) {
    SCOPED_TRACE(folder);
    int compared = 0;
    for (const GoldenSequence& golden : Goldens(folder)) {
      if (golden.logits.values.empty() || golden.tokens.size() > 1000) continue;
      const std::unique_ptr<TestModel> model = Load(folder, options);
      const std::vector<TokenRecord> report = Report(*model, golden.tokens, 256, options);
      ASSERT_EQ(report.size(), golden.tokens.size() - 1);
      compared += ExpectGolden(report, golden);
    }
    EXPECT_GT(compared, 3);
  }
}

TEST(PromptLogprobs, HaveTheSameBitsForEveryChunking) {
  std::vector<int32_t> prompt;
  for (const GoldenSequence& golden : Goldens(kDemo))
    if (golden.tokens.size() > prompt.size() && golden.tokens.size() < 600) prompt = golden.tokens;
  ASSERT_GT(prompt.size(), 300u);
  const TestModelOptions options;
  const std::vector<TokenRecord> want = Report(*Load(kDemo, options), prompt, 768, options);
  ASSERT_EQ(want.size(), prompt.size() - 1);
  for (const int chunk : {17, 63, 256}) {
    SCOPED_TRACE(chunk);
    EXPECT_TRUE(Report(*Load(kDemo, options), prompt, chunk, options) == want);
  }
  const TestModelOptions small{.max_head_rows = 7};  // smaller groups of logits
  EXPECT_TRUE(Report(*Load(kDemo, small), prompt, 100, small) == want);
}

TEST(PromptLogprobs, APromptOfOneTokenHasNone) {
  const TestModelOptions options;
  const std::unique_ptr<TestModel> model = Load(kTiny, options);
  SequenceRuns runs(*model, options);
  const SequenceId one = runs.Start({5}, {});
  const SequenceId two = runs.Start({5, 6}, {});
  runs.Edit(one).prompt_logprobs = 0;
  runs.Edit(two).prompt_logprobs = 0;
  const std::vector<SequenceId> both = {one, two};
  const std::vector<int> rows = {1, 2};
  runs.Prefill(both, rows);
  EXPECT_TRUE(runs.PromptLogprobs(one).empty());
  ASSERT_EQ(runs.PromptLogprobs(two).size(), 1u);
  EXPECT_EQ(runs.PromptLogprobs(two)[0].token, 6);
  EXPECT_TRUE(runs.PromptLogprobs(two)[0].top.empty());
  EXPECT_LT(runs.PromptLogprobs(two)[0].logprob, 0);
}

}  // namespace
}  // namespace baton::golden
