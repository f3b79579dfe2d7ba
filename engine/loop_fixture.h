#pragma once

#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "engine/fake_runner.h"
#include "engine/loop.h"
#include "engine/planning/mixed_planner.h"

// For tests of the loop: an observer that remembers, and a loop over a runner without a model.
namespace baton::engine::test {

inline constexpr int kPages = 16;
inline constexpr uint64_t kPayload = 256;

// Writes down what it hears; releases sequences named in `release_on`.
class Recorder final : public LoopObserver {
 public:
  explicit Recorder(EngineLoop& loop) : loop_(loop) {}
  void OnChunk(SequenceId s, int computed) override {
    Note(s, absl::StrFormat("chunk %d", computed));
  }
  void OnPromptLogprobs(SequenceId s, int first_position,
                        std::vector<TokenRecord> tokens) override {
    Note(s, absl::StrFormat("logprobs %d+%d", first_position, tokens.size()));
  }
  void OnFirstTokens(SequenceId s, std::vector<TokenRecord> tokens) override {
    std::string text = "first";
    for (const TokenRecord& record : tokens) text += absl::StrFormat(" %d", record.token);
    Note(s, text);
  }
  void OnTokens(SequenceId s, int first_position, std::vector<TokenRecord> tokens) override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(next_position_.try_emplace(s.value, first_position).first->second++,
                first_position + static_cast<int>(i));
      emitted[s.value].push_back(tokens[i].token);
    }
    if (release_on_tokens) Keep(s);
  }
  void OnFinished(SequenceId s, FinishReason reason, int32_t stop) override {
    Note(s, reason == FinishReason::kStop ? absl::StrFormat("stop %d", stop) : "length");
    Keep(s);
  }
  void OnFailed(SequenceId s, const absl::Status&) override { Note(s, "failed"); }
  void OnParked(SequenceId s) override { Note(s, "parked"); }
  void OnResumed(SequenceId s) override { Note(s, "resumed"); }
  void OnReplayMismatch(SequenceId s) override { Note(s, "mismatch"); }

  void Forget(SequenceId s) { next_position_.erase(s.value); }

  std::vector<std::string> notes;
  std::map<uint64_t, std::vector<int32_t>> emitted;
  std::vector<Sequence> released;
  bool release_on_tokens = false;

 private:
  void Keep(SequenceId s) {
    Sequence sequence = loop_.Release(s);
    if (sequence.tail_slot >= 0) loop_.ReturnTailSlot(sequence.tail_slot);
    sequence.pages = PageLease();
    released.push_back(std::move(sequence));
  }
  void Note(SequenceId s, const std::string& text) {
    notes.push_back(absl::StrFormat("%d: %s", s.value, text));
  }
  EngineLoop& loop_;
  std::map<uint64_t, int> next_position_;
};

// Whatever the loop does, it does alike when it is a step behind.
class EngineLoopTest : public testing::TestWithParam<bool> {
 protected:
  EngineLoopTest() {
    runner_.goes_ahead = GetParam();
    loop_.SetObserver(&recorder_);
  }
  ~EngineLoopTest() override { EXPECT_TRUE(pool_.CheckCounts().ok()) << pool_.CheckCounts(); }

  Sequence MakeSequence(uint64_t id, int prompt, int64_t max_tokens) {
    Sequence s;
    s.id = {id};
    s.prompt_tokens = prompt;
    s.finish.max_tokens = max_tokens;
    for (int p = 0; p < prompt; ++p) s.tokens.push_back(p);
    s.tail_slot = *loop_.TakeTailSlot();
    return s;
  }
  void Prefill(uint64_t id, int prompt, int64_t max_tokens) {
    loop_.Admit(MakeSequence(id, prompt, max_tokens), Booking());
    while (loop_.Get({id}).IsPrefilling()) ASSERT_TRUE(*loop_.RunOnce());
  }
  void RunAll() {
    for (int i = 0; i < 1000; ++i)
      if (!*loop_.RunOnce()) return;
    FAIL() << "the loop never comes to rest";
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kPayload);
  PagePool pool_{memory_.data(), kPages, kPayload, kPayload};
  MixedPlanner planner_{{.batch = {.max_sequences = 8, .max_rows = 256, .num_drafts = 2},
                         .chunk = {.chunk_tokens = 512},
                         .max_rows = 1024}};
  FakeRunner runner_{pool_, 4};
  ManualClock clock_;
  kernels::PageLayout layout_{{.head_dim = 128,
                               .rope_dim = 64,
                               .index_head_dim = 32,
                               .window = 8,
                               .hc_mult = 2,
                               .hidden_size = 8,
                               .num_layers = 1,
                               .csa_layers = {},
                               .hca_layers = {0}}};
  EngineLoop loop_{pool_, planner_, runner_, clock_, layout_};
  Recorder recorder_{loop_};
};

}  // namespace baton::engine::test
