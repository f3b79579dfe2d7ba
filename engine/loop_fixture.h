#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "engine/loop.h"
#include "engine/planning/mixed_planner.h"

// For tests of the loop: a runner without a model, and an observer that remembers.
namespace baton::engine::test {

inline constexpr int kPages = 16;
inline constexpr uint64_t kPayload = 256;

// The token at position p is p itself, or what `tokens` says. Every row leaves one byte in its page
// and expects all earlier ones there; a slot holds the number of tokens computed. A step is done
// when it is launched; whether another may follow it before it is awaited, a test says.
class FakeRunner final : public StepRunner {
 public:
  FakeRunner(PagePool& pool, int slots) : pool_(pool), slots_(static_cast<size_t>(slots), -1) {}

  absl::Status LaunchForward(const StepPlan& plan, const SequenceTable& sequences) override {
    EXPECT_EQ(harvests_.size(), plan.follows ? 1u : 0u);
    Harvest harvest;
    harvest.step = plan.step;
    for (size_t i = 0; i < plan.runs.size(); ++i) {
      SequenceRun run = plan.runs[i];
      const Sequence& s = sequences.Get(run.sequence);
      if (!plan.follows) {
        harvest.sequences.push_back(RunSequence(run, s, s.drafts, plan.num_drafts));
        continue;
      }
      const SequenceTokens& last = harvests_.front().sequences[i];
      EXPECT_EQ(last.sequence, run.sequence);
      EXPECT_EQ(run.rows, 1 + static_cast<int>(last.next_drafts.size()));
      EXPECT_GE(s.pages.size() * kPageTokens, run.first_position + run.rows);
      const auto first = static_cast<int>(slots_[static_cast<size_t>(s.tail_slot)]);
      EXPECT_LE(first, std::exchange(run.first_position, first));
      harvest.sequences.push_back(RunSequence(run, s, last.next_drafts, plan.num_drafts));
    }
    harvests_.push_back(std::move(harvest));
    return absl::OkStatus();
  }
  absl::Status LaunchFinish(const StepPlan&, const SequenceTable&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<Harvest> Await() override {
    Harvest harvest = std::move(harvests_.front());
    harvests_.pop_front();
    return harvest;
  }
  bool CanFollow(int) const override { return goes_ahead; }
  size_t num_in_flight() const { return harvests_.size(); }

  void ResetTail(int slot) override {
    EXPECT_EQ(num_in_flight(), 0u);
    slots_[static_cast<size_t>(slot)] = 0;
  }
  absl::Status PackTail(const kernels::TailArgs& args) override {
    EXPECT_EQ(num_in_flight(), 0u);
    // The last step's rows may not count.
    const auto value = static_cast<int64_t>(args.num_tokens);
    EXPECT_GE(slots_[static_cast<size_t>(args.tail_slot)], value);
    std::memcpy(args.wire.data() + kernels::TailHeader::kBytes, &value, sizeof(value));
    return absl::OkStatus();
  }
  absl::Status UnpackTail(const kernels::TailArgs& args) override {
    EXPECT_EQ(num_in_flight(), 0u);
    EXPECT_EQ(slots_[static_cast<size_t>(args.tail_slot)], 0);
    std::memcpy(&slots_[static_cast<size_t>(args.tail_slot)],
                args.wire.data() + kernels::TailHeader::kBytes, sizeof(int64_t));
    return absl::OkStatus();
  }
  int num_tail_slots() const override { return static_cast<int>(slots_.size()); }

  std::map<int, int32_t> tokens;     // by position
  std::map<uint64_t, int> fails_at;  // sequence -> position whose token cannot be chosen
  int32_t wrong_draft_at = -1;
  bool goes_ahead = false;

 private:
  int32_t TokenAt(int position) const {
    const auto found = tokens.find(position);
    return found == tokens.end() ? position : found->second;
  }

  TokenRecord RecordOf(int position) const {
    TokenRecord record;
    record.token = TokenAt(position);
    return record;
  }

  SequenceTokens RunSequence(const SequenceRun& run, const Sequence& s,
                             const std::vector<int32_t>& drafts, int num_drafts) {
    SequenceTokens out;
    out.sequence = run.sequence;
    out.accepted_rows = run.rows;
    int64_t& slot = slots_[static_cast<size_t>(s.tail_slot)];
    EXPECT_EQ(slot, run.first_position);
    const int end = run.first_position + run.rows;
    for (int p = 0; p < end; ++p) {
      std::byte& row = pool_.Data(s.pages.ids()[static_cast<size_t>(p / kPageTokens)])[p % 256];
      if (p < run.first_position)
        EXPECT_EQ(row, static_cast<std::byte>(p % 251));
      else
        row = static_cast<std::byte>(p % 251);
    }
    if (run.kind == RowKind::kVerify) {
      out.accepted_rows = 1;
      while (out.accepted_rows < run.rows && drafts[static_cast<size_t>(out.accepted_rows - 1)] ==
                                                 TokenAt(run.first_position + out.accepted_rows))
        ++out.accepted_rows;
      out.tokens.resize(1);
      for (int i = 1; i <= out.accepted_rows; ++i)
        out.tokens[0].push_back(RecordOf(run.first_position + i));
    }
    if (run.kind == RowKind::kReplay)
      for (int p = run.first_position; p < end; ++p)
        out.replay_mismatches += TokenAt(p + 1) != s.tokens[static_cast<size_t>(p) + 1];
    if (run.samples_first_token)
      for (size_t i = 0; i < s.choices.size(); ++i) out.tokens.push_back({RecordOf(end)});
    slot += out.accepted_rows;
    for (int i = 1; i <= num_drafts; ++i) {
      const int position = static_cast<int>(slot) + i;
      out.next_drafts.push_back(position == wrong_draft_at ? -1 : TokenAt(position));
    }
    const auto fail = fails_at.find(s.id.value);
    if (fail != fails_at.end() && slot >= fail->second)
      out.status = absl::InternalError("no token left");
    return out;
  }

  PagePool& pool_;
  std::vector<int64_t> slots_;
  std::deque<Harvest> harvests_;
};

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
