// Bit equality on the CPU back end (contracts.md 1.2 L0, 7): pages, tails without section 2, text
// and logprobs must not depend on how a sequence was cut into steps, on its company, on threads,
// instruction set, drafts, page ids or a move.
#include <algorithm>
#include <numeric>

#include "gtest/gtest.h"

#include "common/rng.h"
#include "tests/golden/sequence_runs.h"

namespace baton::golden {
namespace {

constexpr char kFolder[] = "tests/data/golden/tiny-a";
constexpr int kGenerated = 40;

const engine::Checkpoint& TinyCheckpoint() {
  static const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(kFolder);
  return *checkpoint;
}

// Everything at once that may make a choice depend on more than its logits.
SamplingSpec Sampled() {
  SamplingSpec spec;
  spec.inv_temperature = 1.0f;
  spec.seed = 1234;
  spec.top_p = kTopPOff / 10 * 9;
  spec.repetition_penalty = 1.1f;
  spec.frequency_penalty = 0.2f;
  spec.presence_penalty = 0.1f;
  spec.top_logprobs = 3;
  return spec;
}

// A model with sequences on it.
struct Bench {
  explicit Bench(const TestModelOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<TestModel>> loaded = TestModel::Load(TinyCheckpoint(), options);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model = *std::move(loaded);
    runs = std::make_unique<SequenceRuns>(*model, options);
  }
  std::unique_ptr<TestModel> model;
  std::unique_ptr<SequenceRuns> runs;
};

// The reference: alone, in one chunk, no drafts, one thread.
Remains RunPlainly(const std::vector<int32_t>& prompt, const SamplingSpec& sampling, int generated,
                   const TestModelOptions& options = {}) {
  Bench bench(options);
  const SequenceId id = bench.runs->Start(prompt, sampling);
  bench.runs->PrefillAll(id, 768);
  bench.runs->DecodeTo(id, 0, generated);
  return bench.runs->Leave(id);
}

void ExpectEqual(const Remains& got, const Remains& want) {
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_TRUE(got.records == want.records) << "logprobs differ";
  EXPECT_TRUE(got.pages == want.pages) << "pages differ";
  EXPECT_TRUE(got.tail == want.tail) << "tails differ";
}

TEST(Bitwise, ChunkingLeavesNoTrace) {
  for (const bool is_bounded : {true, false}) {
    const TestModelOptions options{.has_bounded_scores = is_bounded};
    const std::vector<int32_t> prompt = Prompt(700, 1);
    const Remains want = RunPlainly(prompt, Greedy(), 1, options);
    for (const int chunk : {63, 256, 512}) {
      Bench bench(options);
      const SequenceId id = bench.runs->Start(prompt, Greedy());
      bench.runs->PrefillAll(id, chunk);
      SCOPED_TRACE(chunk);
      ExpectEqual(bench.runs->Leave(id), want);
    }
  }
}

TEST(Bitwise, CompanyAndPageIdsLeaveNoTrace) {
  const std::vector<std::vector<int32_t>> prompts = {Prompt(300, 2), Prompt(7, 3), Prompt(260, 4)};
  Bench bench;
  std::vector<SequenceId> ids;
  for (const std::vector<int32_t>& prompt : prompts)
    ids.push_back(bench.runs->Start(prompt, Sampled(), /*skipped_pages=*/1));
  const std::vector<int> first_chunks = {256, 7, 100}, last_chunks = {44, 160};
  bench.runs->Prefill(ids, first_chunks);
  const std::vector<SequenceId> unfinished = {ids[0], ids[2]};
  bench.runs->Prefill(unfinished, last_chunks);
  std::reverse(ids.begin(), ids.end());
  for (int step = 0; step < kGenerated; ++step) bench.runs->Decode(ids, 0, kGenerated);
  std::reverse(ids.begin(), ids.end());
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectEqual(bench.runs->Leave(ids[i]), RunPlainly(prompts[i], Sampled(), kGenerated));
  }
}

TEST(Bitwise, ThreadsAndInstructionSetsLeaveNoTrace) {
  const std::vector<int32_t> prompt = Prompt(400, 5);
  const Remains want = RunPlainly(prompt, Sampled(), 5);
  for (const int threads : {2, 5}) {
    SCOPED_TRACE(threads);
    ExpectEqual(RunPlainly(prompt, Sampled(), 5, {.num_threads = threads}), want);
  }
  ExpectEqual(RunPlainly(prompt, Sampled(), 5, {.num_threads = 2, .force_scalar = true}), want);
}

TEST(Bitwise, DraftsLeaveNoTrace) {
  for (const SamplingSpec& sampling : {Greedy(), Sampled()}) {
    const std::vector<int32_t> prompt =
        Prompt(231, 6);  // generation crosses an HCA window's and a page's end
    const Remains want = RunPlainly(prompt, sampling, kGenerated);
    for (const uint64_t seed : {1, 2, 3}) {
      Bench bench;
      const SequenceId id = bench.runs->Start(prompt, sampling);
      bench.runs->PrefillAll(id, 768, 3);
      for (uint64_t step = 0;
           static_cast<int>(bench.runs->Get(id).tokens.size()) < 231 + kGenerated; ++step) {
        constexpr int kDrafts[] = {0, 1, 3};
        bench.runs->Decode({&id, 1}, kDrafts[Mix64(seed * 1000 + step) % 3], kGenerated);
      }
      SCOPED_TRACE(seed);
      ExpectEqual(bench.runs->Leave(id), want);
    }
  }
}

// Wrong drafts on purpose: random weights seldom draft right, a trained model seldom wrong. Some
// runs stop right after a rejection, on rows that would have closed entries.
TEST(Bitwise, RejectedAndAcceptedRowsLeaveNoTrace) {
  constexpr int kLength = 250, kDrafts = 7;
  const std::vector<int32_t> prompt = Prompt(kLength, 7);
  const std::vector<int32_t> truth = RunPlainly(prompt, Greedy(), kGenerated + 2 * kDrafts).tokens;
  for (const int right : {0, 1, 2, 5}) {
    for (const int generated : {3, 6, kGenerated}) {
      Bench bench;
      const SequenceId id = bench.runs->Start(prompt, Greedy());
      bench.runs->PrefillAll(id, 768);
      engine::Sequence& s = bench.runs->Edit(id);
      while (static_cast<int>(s.tokens.size()) < kLength + generated) {
        s.drafts.clear();
        for (size_t i = 0; i < kDrafts; ++i) {
          const int32_t token = truth.at(s.tokens.size() + i);
          s.drafts.push_back(static_cast<int>(i) < right ? token : (token + 1) % 512);
        }
        bench.runs->Decode({&id, 1}, 0, 1000);
      }
      SCOPED_TRACE(right * 1000 + generated);
      const int stopped_at = static_cast<int>(s.tokens.size()) - kLength;
      ExpectEqual(bench.runs->Leave(id), RunPlainly(prompt, Greedy(), stopped_at));
    }
  }
}

TEST(Bitwise, EveryChoiceOfAPromptIsSampledAsIfAlone) {
  Bench bench;
  const std::vector<int32_t> prompt = Prompt(60, 13);
  const SequenceId together = bench.runs->Start(prompt, Sampled());
  bench.runs->Edit(together).choices = {0, 1, 2};
  bench.runs->PrefillAll(together, 768, 3);
  ASSERT_EQ(bench.runs->FirstTokens(together).size(), 3u);
  EXPECT_TRUE(bench.runs->Get(together).drafts.empty());  // the choices part ways here
  for (int choice = 0; choice < 3; ++choice) {
    const SequenceId alone = bench.runs->Start(prompt, Sampled());
    bench.runs->Edit(alone).choices = {choice};
    bench.runs->PrefillAll(alone, 768);
    EXPECT_TRUE(bench.runs->FirstTokens(alone).at(0) ==
                bench.runs->FirstTokens(together)[static_cast<size_t>(choice)]);
  }
}

TEST(Bitwise, ReplayAgreesWithTheRecordAndLeavesNoTrace) {
  constexpr int kRecorded = 90;
  const std::vector<int32_t> prompt = Prompt(200, 8);
  Remains want = RunPlainly(prompt, Sampled(), kRecorded);
  want.records.clear();
  const std::vector<int32_t> record(want.tokens.begin() + 200, want.tokens.end());
  for (const int rows : {1, 2, 4, 64}) {
    Bench bench;
    const SequenceId id = bench.runs->Start(prompt, Sampled());
    bench.runs->PrefillAll(id, 256);
    EXPECT_EQ(bench.runs->Replay(id, record, rows), 0);
    Remains got = bench.runs->Leave(id);
    got.records.clear();
    SCOPED_TRACE(rows);
    ExpectEqual(got, want);
  }
}

TEST(Bitwise, ReplayCountsWhatTheRecordOverrules) {
  const std::vector<int32_t> prompt = Prompt(50, 9);
  std::vector<int32_t> record = RunPlainly(prompt, Greedy(), 12).tokens;
  record.erase(record.begin(), record.begin() + 50);
  record[5] = (record[5] + 1) % 512;
  Bench bench;
  const SequenceId id = bench.runs->Start(prompt, Greedy());
  bench.runs->PrefillAll(id, 256);
  EXPECT_GE(bench.runs->Replay(id, record, 4), 1);
  EXPECT_EQ(bench.runs->Get(id).tokens[55], record[5]);
}

TEST(Bitwise, AMoveLeavesNoTrace) {
  const std::vector<int32_t> prompt = Prompt(130, 10);
  const Remains want = RunPlainly(prompt, Sampled(), kGenerated);
  for (const int moved_at : {1, 2, 13}) {
    Bench bench;
    SequenceId id = bench.runs->Start(prompt, Sampled());
    bench.runs->PrefillAll(id, 768, 3);
    bench.runs->DecodeTo(id, 3, moved_at);
    id = bench.runs->HandOver(id);
    bench.runs->DecodeTo(id, 3, kGenerated);
    SCOPED_TRACE(moved_at);
    ExpectEqual(bench.runs->Leave(id), want);
  }
}

TEST(Bitwise, PackUnpackPackIsTheSame) {
  for (const int ring : {1, 4, 64}) {
    for (const int length : {1, 3, 4, 127, 128, 255, 256, 1000}) {
      SCOPED_TRACE(length);
      Bench bench({.max_draft_rows = ring});
      const SequenceId id = bench.runs->Start(Prompt(length, 11), Greedy());
      bench.runs->PrefillAll(id, 768);
      const std::vector<std::byte> packed = bench.runs->Tail(id);
      const SequenceId moved = bench.runs->HandOver(id);
      EXPECT_TRUE(bench.runs->Tail(moved) == packed) << "ring " << ring;
    }
  }
}

TEST(Bitwise, BothFormsOfAttentionAgreeWithinRounding) {
  const std::vector<int32_t> prompt = Prompt(400, 12);
  const TestModelOptions bounded{.mode = kernels::NumericsMode::kFloat32};
  const TestModelOptions running{.mode = kernels::NumericsMode::kFloat32,
                                 .has_bounded_scores = false};
  const Remains a = RunPlainly(prompt, Greedy(), 1, bounded);
  const Remains b = RunPlainly(prompt, Greedy(), 1, running);
  ASSERT_EQ(a.records.size(), 1u);
  EXPECT_EQ(a.records[0].token, b.records[0].token);
  EXPECT_NEAR(a.records[0].logprob, b.records[0].logprob, 1e-4);
}

}  // namespace
}  // namespace baton::golden
