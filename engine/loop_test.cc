#include "engine/loop.h"

#include <cstring>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "engine/planning/mixed_planner.h"

namespace baton::engine {
namespace {

using testing::ElementsAre;

constexpr int kPages = 16;
constexpr uint64_t kPayload = 256;

// The token at position p is p itself, or what `tokens` says. Every row leaves one byte in its page
// and expects all earlier ones there; a slot holds the number of tokens computed.
class FakeRunner final : public StepRunner {
 public:
  FakeRunner(PagePool& pool, int slots) : pool_(pool), slots_(static_cast<size_t>(slots), -1) {}

  absl::Status LaunchForward(const StepPlan& plan, const SequenceTable& sequences) override {
    Harvest harvest;
    harvest.step = plan.step;
    for (const SequenceRun& run : plan.runs)
      harvest.sequences.push_back(RunSequence(run, sequences.Get(run.sequence), plan.num_drafts));
    harvest_ = std::move(harvest);
    return absl::OkStatus();
  }
  absl::Status LaunchFinish(const StepPlan&, const SequenceTable&) override {
    return absl::OkStatus();
  }
  std::optional<Harvest> Poll() override { return std::exchange(harvest_, std::nullopt); }

  void ResetTail(int slot) override { slots_[static_cast<size_t>(slot)] = 0; }
  absl::Status PackTail(const kernels::TailArgs& args) override {
    const int64_t value = slots_[static_cast<size_t>(args.tail_slot)];
    EXPECT_EQ(value, static_cast<int64_t>(args.num_tokens));
    std::memcpy(args.wire.data() + kernels::TailHeader::kBytes, &value, sizeof(value));
    return absl::OkStatus();
  }
  absl::Status UnpackTail(const kernels::TailArgs& args) override {
    EXPECT_EQ(slots_[static_cast<size_t>(args.tail_slot)], 0);
    std::memcpy(&slots_[static_cast<size_t>(args.tail_slot)],
                args.wire.data() + kernels::TailHeader::kBytes, sizeof(int64_t));
    return absl::OkStatus();
  }
  int num_tail_slots() const override { return static_cast<int>(slots_.size()); }

  std::map<int, int32_t> tokens;     // by position
  std::map<uint64_t, int> fails_at;  // sequence -> position whose token cannot be chosen
  int32_t wrong_draft_at = -1;

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

  SequenceTokens RunSequence(const SequenceRun& run, const Sequence& s, int num_drafts) {
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
      while (out.accepted_rows < run.rows && s.drafts[static_cast<size_t>(out.accepted_rows - 1)] ==
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
  std::optional<Harvest> harvest_;
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

class EngineLoopTest : public testing::Test {
 protected:
  EngineLoopTest() { loop_.SetObserver(&recorder_); }
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

TEST_F(EngineLoopTest, PrefillsInChunksAndStopsAtTheFirstTokens) {
  Sequence s = MakeSequence(1, 600, 10);
  s.choices = {0, 1};
  s.received = {{}, {}};
  loop_.Admit(std::move(s), *pool_.Book(3));
  RunAll();
  EXPECT_THAT(recorder_.notes, ElementsAre("1: chunk 512", "1: chunk 600", "1: first 600 600"));
  EXPECT_EQ(loop_.counters().prefill_tokens, 600u);
  EXPECT_EQ(pool_.Counts().booked, 0);
  EXPECT_EQ(loop_.Release({1}).pages.size(), 3);
}

TEST_F(EngineLoopTest, ReceivedFirstTokenWins) {
  Sequence s = MakeSequence(1, 100, 10);
  s.received = {{77}};
  loop_.Admit(std::move(s), Booking());
  RunAll();
  EXPECT_THAT(recorder_.notes, ElementsAre("1: chunk 100", "1: mismatch", "1: first 77"));
}

TEST_F(EngineLoopTest, ContinuesToLength) {
  Prefill(1, 100, 6);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102, 103, 104, 105));
  EXPECT_EQ(recorder_.notes.back(), "1: length");
  EXPECT_EQ(recorder_.released[0].tokens.size(), 106u);
  EXPECT_GT(loop_.counters().accepted_drafts, 0u);
}

TEST_F(EngineLoopTest, StopTokenEndsTheSequenceEvenInMidStep) {
  Sequence s = MakeSequence(1, 100, 50);
  s.finish.stop_tokens = {102};
  loop_.Admit(std::move(s), Booking());
  RunAll();
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102));  // the step also verified 103
  EXPECT_EQ(recorder_.notes.back(), "1: stop 102");
}

TEST_F(EngineLoopTest, ASequenceFinishedByItsFirstTokenRunsNoStep) {
  Prefill(1, 100, 1);
  const uint64_t steps = loop_.counters().steps;
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_EQ(recorder_.notes.back(), "1: length");
  EXPECT_EQ(loop_.counters().steps, steps);
}

TEST_F(EngineLoopTest, WrongDraftsChangeNothingButSpeed) {
  runner_.wrong_draft_at = 103;
  Prefill(1, 100, 6);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(101, 102, 103, 104, 105));
}

TEST_F(EngineLoopTest, ReplaysTheRecordSilentlyThenDecodes) {
  Sequence s = MakeSequence(1, 100, 103);
  s.received = {{}};
  for (int i = 0; i < 100; ++i) s.received[0].push_back(i == 40 ? 7 : 100 + i);
  loop_.Admit(std::move(s), Booking());
  RunAll();
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.emitted[1], ElementsAre(200, 201, 202));
  EXPECT_THAT(recorder_.notes, testing::Contains("1: mismatch").Times(1));
  EXPECT_EQ(loop_.counters().replayed_tokens, 99u);
  EXPECT_EQ(recorder_.released[0].tokens[140], 7);
}

TEST_F(EngineLoopTest, AFailedSequenceFailsAlone) {
  runner_.fails_at = {{1, 103}};
  Prefill(1, 100, 50);
  Prefill(2, 100, 8);
  loop_.Continue({1}, 100);
  loop_.Continue({2}, 100);
  RunAll();
  EXPECT_THAT(recorder_.notes, testing::Contains("1: failed"));
  EXPECT_THAT(recorder_.notes, testing::Contains("2: length"));
  loop_.Release({1});
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_F(EngineLoopTest, ParksTheYoungestAndResumesItBitEqual) {
  Prefill(1, 1500, 400);  // grows to 8 pages
  Prefill(2, 2000, 300);  // grows to 9 pages
  Prefill(3, 256, 200);   // the 2 pages that are left, until the others want them
  for (const uint64_t id : {1, 2, 3})
    loop_.Continue({id}, static_cast<int32_t>(loop_.Get({id}).tokens.size()));
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), 399u);
  EXPECT_EQ(recorder_.emitted[2].size(), 299u);
  EXPECT_EQ(recorder_.emitted[3].size(), 199u);
  EXPECT_THAT(recorder_.notes, testing::Contains("3: parked"));
  EXPECT_THAT(recorder_.notes, testing::Contains("3: resumed"));
  EXPECT_EQ(loop_.num_parked(), 0);
  EXPECT_EQ(loop_.host_pages(), 0);
}

TEST_F(EngineLoopTest, ParkedSequencesKeepTheirSlotBackAndCanBeReleased) {
  Prefill(1, 256 * 13 - 6, 300);
  Prefill(2, 256 * 3 - 20, 300);
  for (const uint64_t id : {1, 2})
    loop_.Continue({id}, static_cast<int32_t>(loop_.Get({id}).tokens.size()));
  while (!loop_.IsParked({2})) ASSERT_TRUE(*loop_.RunOnce());
  EXPECT_GT(loop_.host_pages(), 0);
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
  EXPECT_FALSE(loop_.TakeTailSlot().has_value());  // 4 slots: one runs, one is kept back
  const Sequence parked = loop_.Release({2});
  EXPECT_EQ(parked.pages.size(), 0);
  EXPECT_EQ(parked.tail_slot, -1);
  EXPECT_EQ(loop_.host_pages(), 0);
  EXPECT_TRUE(loop_.TakeTailSlot().has_value());
}

TEST_F(EngineLoopTest, ReclaimsCachedPagesBeforeItParks) {
  std::vector<PageId> cached;
  {
    absl::StatusOr<Booking> booking = pool_.Book(14);
    const PageLease lease = pool_.Take(*booking, 14);
    for (const PageId page : lease.ids()) {
      pool_.Cache(page);
      cached.push_back(page);
    }
  }
  loop_.SetReclaimer([&](int pages) {
    for (; pages > 0; --pages) {
      pool_.Uncache(cached.back());
      cached.pop_back();
    }
  });
  Prefill(1, 600, 300);
  loop_.Continue({1}, 600);
  RunAll();
  EXPECT_EQ(recorder_.emitted[1].size(), 299u);
  EXPECT_EQ(cached.size(), 12u);  // 4 pages were needed, 2 were free
}

TEST_F(EngineLoopTest, ReleaseInsideACallbackSkipsWhatIsLeftOfThatSequence) {
  recorder_.release_on_tokens = true;
  Prefill(1, 100, 2);
  loop_.Continue({1}, 100);
  RunAll();
  EXPECT_THAT(recorder_.notes, testing::Not(testing::Contains("1: length")));
  EXPECT_FALSE(loop_.Has({1}));
}

}  // namespace
}  // namespace baton::engine
