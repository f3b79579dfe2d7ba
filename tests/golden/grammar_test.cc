// Constrained answers of the trained demo model: the same tokens for any number of drafts, whether
// the sequence goes on where its prompt was computed or starts anew elsewhere, and after a replay.
#include "common/grammar.h"

#include <optional>
#include <string>
#include <utility>

#include "gtest/gtest.h"

#include "common/clock.h"
#include "common/demo_vocabulary.h"
#include "engine/loop.h"
#include "engine/model/model_runner.h"
#include "engine/planning/mixed_planner.h"
#include "tests/golden/golden_file.h"
#include "tests/golden/test_model.h"

namespace baton::golden {
namespace {

constexpr char kFolder[] = "models/demo";
constexpr char kGrammar[] =
    R"(start: %json {"type":"object","properties":{"name":{"type":"string","maxLength":12},)"
    R"("n":{"type":"integer","minimum":0,"maximum":99999},"tags":{"type":"array",)"
    R"("items":{"enum":["red","green"]},"maxItems":3}},"required":["name","n","tags"],)"
    R"("additionalProperties":false,"x-guidance":{"whitespace_flexible":false}})";
constexpr size_t kPrompt = 300;

// How the answer goes on after the first token.
enum class Way { kGoesOn, kStartsAnew };

// One engine; `num_drafts` a step.
class Engine final : private engine::LoopObserver {
 public:
  Engine(TestModel& model, const TestModelOptions& options, int num_drafts)
      : pool_(model.pages().data(), options.num_pages, model.layout().stride_bytes(),
              model.layout().payload_bytes()),
        planner_({.batch = {.max_sequences = options.max_sequences,
                            .max_rows = 64,
                            .num_drafts = num_drafts},
                  .chunk = {.chunk_tokens = kPageTokens},
                  .max_rows = 64 + kPageTokens}),
        runner_(model.ops(), model.weights(), model.config(),
                {.num_tail_slots = options.num_tail_slots, .max_head_rows = options.max_head_rows}),
        loop_(pool_, planner_, runner_, clock_, model.layout()) {
    loop_.SetObserver(this);
  }
  ~Engine() override { loop_.SetObserver(nullptr); }

  // The tokens after the prompt; those of `received` are replayed.
  std::vector<int32_t> Answer(const std::vector<int32_t>& prompt, const MaskRules& rules,
                              double temperature, Way way, std::vector<int32_t> received = {}) {
    sequence_ = {};
    sequence_.id = SequenceId{1};
    sequence_.tokens = prompt;
    sequence_.prompt_tokens = static_cast<int>(prompt.size());
    sequence_.received = {std::move(received)};
    sequence_.sampling.greedy = temperature == 0;
    sequence_.sampling.seed = 17;
    if (temperature > 0) sequence_.sampling.inv_temperature = static_cast<float>(1 / temperature);
    sequence_.finish = {
        .stop_tokens = {DemoVocabulary().eos()}, .max_tokens = 120, .min_tokens = 0};
    sequence_.masks = *engine::MaskSource::Create(grammars_, rules);
    sequence_.tail_slot = *loop_.TakeTailSlot();
    rules_ = rules;
    way_ = way;
    is_over_ = false;
    loop_.Admit(std::move(sequence_), *pool_.Book(2));
    while (!is_over_) EXPECT_TRUE(*loop_.RunOnce());
    engine::Sequence ended = loop_.Release(SequenceId{1});
    loop_.ReturnTailSlot(ended.tail_slot);
    return {ended.tokens.begin() + ended.prompt_tokens, ended.tokens.end()};
  }
  const engine::LoopCounters& counters() const { return loop_.counters(); }
  int num_mismatches() const { return num_mismatches_; }

 private:
  void OnFirstTokens(SequenceId id, std::vector<TokenRecord> tokens) override {
    if (way_ == Way::kGoesOn) return loop_.Continue(id, tokens[0].token);
    engine::Sequence sequence = loop_.Release(id);
    sequence.tokens.push_back(tokens[0].token);
    sequence.masks = *engine::MaskSource::Create(grammars_, rules_);
    sequence.drafts.clear();
    loop_.Admit(std::move(sequence), *pool_.Book(1));
  }
  void OnFinished(SequenceId, FinishReason, int32_t) override { is_over_ = true; }
  void OnFailed(SequenceId, const absl::Status& status) override {
    ADD_FAILURE() << status;
    is_over_ = true;
  }
  void OnReplayMismatch(SequenceId) override { ++num_mismatches_; }
  void OnChunk(SequenceId, int) override {}
  void OnPromptLogprobs(SequenceId, int, std::vector<TokenRecord>) override {}
  void OnTokens(SequenceId, int, std::vector<TokenRecord>) override {}
  void OnParked(SequenceId) override {}
  void OnResumed(SequenceId) override {}

  SteadyClock clock_;
  engine::GrammarCache grammars_{DemoVocabulary(), clock_};
  engine::PagePool pool_;
  engine::MixedPlanner planner_;
  engine::ModelRunner runner_;
  engine::EngineLoop loop_;
  engine::Sequence sequence_;
  MaskRules rules_;
  Way way_ = Way::kGoesOn;
  bool is_over_ = false;
  int num_mismatches_ = 0;
};

class GrammarGolden : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(kFolder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load(*checkpoint, options_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    const auto goldens = ReadGoldens(std::string(kFolder) + "/golden.safetensors");
    ASSERT_TRUE(goldens.ok()) << goldens.status();
    for (const GoldenSequence& s : *goldens)
      if (s.tokens.size() > kPrompt && prompt_.empty())
        prompt_.assign(s.tokens.begin(), s.tokens.begin() + kPrompt);
    ASSERT_EQ(prompt_.size(), kPrompt);
    rules_.grammar = kGrammar;
  }
  // Complete JSON by the schema, then eos.
  static void ExpectFollows(const std::vector<int32_t>& answer) {
    Matcher matcher = *Matcher::Create(DemoVocabulary(), kGrammar);
    ASSERT_FALSE(answer.empty());
    for (size_t i = 0; i + 1 < answer.size(); ++i) ASSERT_TRUE(matcher.Consume(answer[i]).ok());
    EXPECT_TRUE(matcher.IsAccepting());
    EXPECT_EQ(answer.back(), DemoVocabulary().eos());
  }

  const TestModelOptions options_{.num_threads = 2};
  std::unique_ptr<TestModel> model_;
  std::vector<int32_t> prompt_;
  MaskRules rules_;
};

TEST_F(GrammarGolden, AnswersAlikeForAnyDraftsAndPlaces) {
  for (const double temperature : {0.0, 1.0}) {
    std::optional<std::vector<int32_t>> expected;
    for (const int num_drafts : {0, 1, 3}) {
      for (const Way way : {Way::kGoesOn, Way::kStartsAnew}) {
        Engine engine(*model_, options_, num_drafts);
        const std::vector<int32_t> answer = engine.Answer(prompt_, rules_, temperature, way);
        ExpectFollows(answer);
        if (!expected) expected = answer;
        EXPECT_EQ(answer, *expected) << "k = " << num_drafts << " at " << temperature;
        EXPECT_GE(engine.counters().masks, answer.size());
      }
    }
  }
}

TEST_F(GrammarGolden, AReplayedAnswerGoesOnAlike) {
  Engine first(*model_, options_, 0);
  const std::vector<int32_t> answer = first.Answer(prompt_, rules_, 1, Way::kGoesOn);
  for (const int num_drafts : {0, 3}) {
    for (const size_t cut : {size_t{1}, answer.size() / 2, answer.size() - 1}) {
      Engine engine(*model_, options_, num_drafts);
      const std::vector<int32_t> received(answer.begin(), answer.begin() + static_cast<long>(cut));
      EXPECT_EQ(engine.Answer(prompt_, rules_, 1, Way::kStartsAnew, received), answer) << cut;
      EXPECT_EQ(engine.num_mismatches(), 0);
    }
  }
}

}  // namespace
}  // namespace baton::golden
