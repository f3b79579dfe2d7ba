#include "tests/sim/hash_runner.h"

#include <gtest/gtest.h>
#include <map>
#include <vector>

#include "engine/loop.h"
#include "engine/planning/mixed_planner.h"

// The loop, planners and pool over the hash model: text must not depend on chunks, drafts, batch,
// pages or parking (contracts.md 1.2, L0).
namespace baton::sim {
namespace {

struct EngineConfig {
  int pages = 64;
  int chunk_tokens = 768;
  int num_drafts = 1;
};

// One engine that prefills and decodes; sequences go on after their first token.
class Engine final : public engine::LoopObserver {
 public:
  explicit Engine(const EngineConfig& config)
      : memory_(static_cast<size_t>(config.pages) * layout_.payload_bytes(), std::byte{0x55}),
        pool_(memory_.data(), config.pages, layout_.payload_bytes(), layout_.payload_bytes()),
        planner_({.batch = {.max_sequences = 8, .max_rows = 512, .num_drafts = config.num_drafts},
                  .chunk = {.chunk_tokens = config.chunk_tokens},
                  .max_rows = 16'384}),
        runner_(pool_, layout_, 8),
        loop_(pool_, planner_, runner_, clock_, layout_) {
    loop_.SetObserver(this);
  }

  void Add(uint64_t id, std::vector<int32_t> prompt, const SamplingSpec& spec,
           const FinishRules& finish, std::vector<int32_t> received = {}) {
    engine::Sequence s;
    s.id = {id};
    s.prompt_tokens = static_cast<int>(prompt.size());
    s.tokens = std::move(prompt);
    s.sampling = spec;
    s.finish = finish;
    s.received = {std::move(received)};
    s.tail_slot = *loop_.TakeTailSlot();
    loop_.Admit(std::move(s), engine::Booking());
  }
  void RunAll(Rng* drafts = nullptr) {
    while (*loop_.RunOnce())
      if (drafts != nullptr) planner_.SetNumDrafts(static_cast<int>(drafts->Below(4)));
    EXPECT_EQ(loop_.num_sequences(), 0);
    EXPECT_EQ(pool_.Counts().free, pool_.Counts().total);
    EXPECT_TRUE(pool_.CheckCounts().ok());
  }

  void OnChunk(SequenceId, int) override {}
  void OnPromptLogprobs(SequenceId, int, std::vector<TokenRecord>) override {}
  void OnFirstTokens(SequenceId s, std::vector<TokenRecord> tokens) override {
    text[s.value].push_back(tokens[0]);
    loop_.Continue(s, tokens[0].token);
  }
  void OnTokens(SequenceId s, int, std::vector<TokenRecord> tokens) override {
    text[s.value].insert(text[s.value].end(), tokens.begin(), tokens.end());
  }
  void OnFinished(SequenceId s, FinishReason reason, int32_t) override {
    reasons[s.value] = reason;
    loop_.ReturnTailSlot(loop_.Release(s).tail_slot);
  }
  void OnFailed(SequenceId, const absl::Status& status) override { ADD_FAILURE() << status; }
  void OnParked(SequenceId) override { ++parked; }
  void OnResumed(SequenceId) override { ++resumed; }
  void OnReplayMismatch(SequenceId) override { ++mismatches; }

  const engine::LoopCounters& counters() const { return loop_.counters(); }
  std::map<uint64_t, std::vector<TokenRecord>> text;
  std::map<uint64_t, FinishReason> reasons;
  int parked = 0, resumed = 0, mismatches = 0;

 private:
  kernels::PageLayout layout_{HashLayoutShape()};
  std::vector<std::byte> memory_;
  engine::PagePool pool_;
  engine::MixedPlanner planner_;
  HashRunner runner_;
  ManualClock clock_;
  engine::EngineLoop loop_;
};

std::vector<int32_t> MakePrompt(uint64_t seed, int tokens) {
  SeededRng rng(seed);
  std::vector<int32_t> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(static_cast<int32_t>(rng.Below(kHashVocab)));
  return prompt;
}

SamplingSpec Seeded(uint64_t seed) {
  SamplingSpec spec;
  spec.seed = seed;
  spec.top_logprobs = 2;
  return spec;
}

FinishRules Length(int64_t max_tokens) {
  FinishRules rules;
  rules.stop_tokens = {kHashEos};
  rules.max_tokens = max_tokens;
  rules.min_tokens = max_tokens / 2;
  return rules;
}

TEST(HashRunner, TextIsTheSameForAllChunksAndDrafts) {
  const std::vector<int32_t> prompt = MakePrompt(1, 1300);
  const HashText expected = FaultFreeText(prompt, Seeded(9), Length(300), 0);
  ASSERT_GE(expected.tokens.size(), 150u);
  for (const int chunk : {256, 768, 8192}) {
    for (const int drafts : {0, 1, 3}) {
      Engine engine({.chunk_tokens = chunk, .num_drafts = drafts});
      engine.Add(1, prompt, Seeded(9), Length(300));
      engine.RunAll();
      EXPECT_EQ(engine.text[1], expected.tokens) << chunk << " " << drafts;
      EXPECT_EQ(engine.reasons[1], expected.reason);
      EXPECT_GT(engine.counters().steps_ahead, 0u);
    }
  }
}

TEST(HashRunner, TextIsTheSameInABatchWithDraftsChangingAtEveryStep) {
  SeededRng rng(5);
  Engine engine({});
  for (uint64_t id = 1; id <= 8; ++id)
    engine.Add(id, MakePrompt(id, static_cast<int>(id) * 97), Seeded(id), Length(120));
  engine.RunAll(&rng);
  for (uint64_t id = 1; id <= 8; ++id) {
    const auto prompt = MakePrompt(id, static_cast<int>(id) * 97);
    EXPECT_EQ(engine.text[id], FaultFreeText(prompt, Seeded(id), Length(120), 0).tokens) << id;
  }
  EXPECT_GT(engine.counters().accepted_drafts, 0u);
  EXPECT_LT(engine.counters().accepted_drafts, engine.counters().drafted);
}

TEST(HashRunner, ReplayAfterEveryThirteenthTokenGivesTheSameText) {
  const std::vector<int32_t> prompt = MakePrompt(3, 500);
  const HashText expected = FaultFreeText(prompt, Seeded(4), Length(200), 0);
  for (size_t known = 1; known < expected.tokens.size(); known += 13) {
    Engine engine({.num_drafts = 3});
    std::vector<int32_t> received;
    for (size_t i = 0; i < known; ++i) received.push_back(expected.tokens[i].token);
    engine.Add(1, prompt, Seeded(4), Length(200), received);
    engine.RunAll();
    const std::vector<TokenRecord> rest(expected.tokens.begin() + static_cast<long>(known),
                                        expected.tokens.end());
    std::vector<TokenRecord> fresh = engine.text[1];
    fresh.erase(fresh.begin());  // the first token comes with the prefill
    EXPECT_EQ(fresh, rest) << known;
    EXPECT_EQ(engine.mismatches, 0);
  }
}

TEST(HashRunner, ParkedSequencesGoOnBitEqual) {
  Engine engine({.pages = 20, .num_drafts = 2});
  for (uint64_t id = 1; id <= 4; ++id)
    engine.Add(id, MakePrompt(id, 1100), Seeded(id), Length(500));
  engine.RunAll();
  for (uint64_t id = 1; id <= 4; ++id) {
    const HashText expected = FaultFreeText(MakePrompt(id, 1100), Seeded(id), Length(500), 0);
    EXPECT_EQ(engine.text[id], expected.tokens) << id;
  }
  EXPECT_GT(engine.parked, 0);
  EXPECT_EQ(engine.parked, engine.resumed);
}

TEST(HashRunner, OneWrongByteInAPageChangesTheText) {
  const kernels::PageLayout layout(HashLayoutShape());
  for (const uint64_t offset : {uint64_t{0}, layout.payload_bytes() - 1}) {
    std::vector<std::byte> memory(2 * layout.payload_bytes());
    engine::PagePool pool(memory.data(), 2, layout.payload_bytes(), layout.payload_bytes());
    engine::MixedPlanner planner({});
    HashRunner runner(pool, layout, 1);
    ManualClock clock;
    engine::EngineLoop loop(pool, planner, runner, clock, layout);
    engine::Sequence s;
    s.id = {1};
    s.tokens = MakePrompt(1, 300);
    s.prompt_tokens = 300;
    s.tail_slot = *loop.TakeTailSlot();
    loop.Admit(std::move(s), engine::Booking());
    ASSERT_TRUE(*loop.RunOnce());
    pool.Data(loop.Get({1}).pages.ids()[0])[offset] ^= std::byte{1};
    struct First final : engine::LoopObserver {
      void OnChunk(SequenceId, int) override {}
      void OnPromptLogprobs(SequenceId, int, std::vector<TokenRecord>) override {}
      void OnFirstTokens(SequenceId, std::vector<TokenRecord> t) override { tokens = std::move(t); }
      void OnTokens(SequenceId, int, std::vector<TokenRecord>) override {}
      void OnFinished(SequenceId, FinishReason, int32_t) override {}
      void OnFailed(SequenceId, const absl::Status&) override {}
      void OnParked(SequenceId) override {}
      void OnResumed(SequenceId) override {}
      void OnReplayMismatch(SequenceId) override {}
      std::vector<TokenRecord> tokens;
    } first;
    loop.SetObserver(&first);
    ASSERT_TRUE(*loop.RunOnce());
    FinishRules one;
    ASSERT_EQ(first.tokens.size(), 1u);
    EXPECT_NE(first.tokens[0], FaultFreeText(MakePrompt(1, 300), {}, one, 0).tokens[0]);
  }
}

TEST(HashRunner, ATailWithOneWrongByteUnpacksToAnotherState) {
  const kernels::PageLayout layout(HashLayoutShape());
  std::vector<std::byte> memory(2 * layout.payload_bytes());
  engine::PagePool pool(memory.data(), 2, layout.payload_bytes(), layout.payload_bytes());
  HashRunner runner(pool, layout, 2);
  for (const int tokens : {1, 3, 16, 127, 128, 300}) {
    const auto n = static_cast<uint64_t>(tokens);
    const kernels::TailLayout tail = kernels::MakeTailLayout(layout, n, 0);
    std::vector<std::byte> wire(tail.total_bytes), again(tail.total_bytes);
    ASSERT_TRUE(runner.UnpackTail({.tail_slot = 0, .num_tokens = n, .wire = wire}).ok());
    ASSERT_TRUE(runner.PackTail({.tail_slot = 0, .num_tokens = n, .wire = wire}).ok());
    ASSERT_TRUE(runner.UnpackTail({.tail_slot = 1, .num_tokens = n, .wire = wire}).ok());
    ASSERT_TRUE(runner.PackTail({.tail_slot = 1, .num_tokens = n, .wire = again}).ok());
    EXPECT_EQ(wire, again) << tokens;
    for (size_t at = kernels::TailHeader::kBytes; at < wire.size(); at += 997) {
      std::vector<std::byte> spoilt = wire;
      spoilt[at] ^= std::byte{0x10};
      ASSERT_TRUE(runner.UnpackTail({.tail_slot = 1, .num_tokens = n, .wire = spoilt}).ok());
      ASSERT_TRUE(runner.PackTail({.tail_slot = 1, .num_tokens = n, .wire = again}).ok());
      EXPECT_NE(wire, again) << tokens << " " << at;
    }
  }
}

}  // namespace
}  // namespace baton::sim
