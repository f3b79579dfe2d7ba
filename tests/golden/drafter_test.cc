// The drafter on the trained demo model: its state (MTP window, H) must survive chunks, steps and
// moves, which shows in the share of drafts that are accepted (models/demo/README.md: 0.997 of the
// first drafts on its own answers).
#include "gtest/gtest.h"

#include "tests/golden/golden_file.h"
#include "tests/golden/sequence_runs.h"

namespace baton::golden {
namespace {

constexpr char kFolder[] = "models/demo";
constexpr int kSequence =
    3;  // of its goldens: an answer of some length after a prompt of several hundred tokens
constexpr int kAnswer = 16;

class DrafterTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(kFolder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const TestModelOptions options{.num_threads = 2};
    absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load(*checkpoint, options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    runs_ = std::make_unique<SequenceRuns>(*model_, options);
    const auto goldens = ReadGoldens(std::string(kFolder) + "/golden.safetensors");
    ASSERT_TRUE(goldens.ok()) << goldens.status();
    for (const GoldenSequence& s : *goldens) {
      if (s.number == kSequence) golden_ = s.tokens;
    }
    ASSERT_GT(golden_.size(), 400u);
  }

  // Starts before the last kAnswer golden tokens, which the model then says by itself.
  SequenceId Start(int chunk, int num_drafts) {
    SamplingSpec sampling;
    sampling.greedy = true;
    const SequenceId id = runs_->Start({golden_.begin(), golden_.end() - kAnswer}, sampling);
    runs_->PrefillAll(id, chunk, num_drafts);
    return id;
  }

  // Steps until the answer is complete, each a row and its drafts.
  int StepsToAnswer(SequenceId id, int num_drafts) {
    int steps = 0;
    while (runs_->Get(id).tokens.size() < golden_.size()) {
      runs_->Decode({&id, 1}, num_drafts, kAnswer);
      ++steps;
    }
    return steps;
  }

  std::unique_ptr<TestModel> model_;
  std::unique_ptr<SequenceRuns> runs_;
  std::vector<int32_t> golden_;
};

TEST_F(DrafterTest, DraftsAreRightAfterAnyChunking) {
  for (const int chunk : {768, 200, 64}) {
    const SequenceId id = Start(chunk, 1);
    SCOPED_TRACE(chunk);
    EXPECT_LE(StepsToAnswer(id, 1), kAnswer / 2 + 1);  // nearly two tokens a step
    EXPECT_EQ(runs_->Get(id).tokens, golden_);
  }
}

TEST_F(DrafterTest, DraftsAreRightAfterAMove) {
  const SequenceId id = runs_->HandOver(Start(256, 0));
  EXPECT_LE(StepsToAnswer(id, 1), kAnswer / 2 + 2);  // the first step has none
  EXPECT_EQ(runs_->Get(id).tokens, golden_);
}

TEST_F(DrafterTest, SeveralDraftsSaveMoreSteps) {
  const SequenceId id = Start(768, 3);
  EXPECT_LE(StepsToAnswer(id, 3), kAnswer / 2);
  EXPECT_EQ(runs_->Get(id).tokens, golden_);
}

}  // namespace
}  // namespace baton::golden
