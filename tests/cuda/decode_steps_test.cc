// Decoding on a GPU by the whole engine, on the demo model: drafts, graphs, company and a host one
// step behind change no token and no logprob. Prints what a step takes.
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "common/check.h"
#include "engine/load/checkpoint.h"
#include "engine/loop.h"
#include "engine/model/config.h"
#include "engine/model/model_runner.h"
#include "engine/model/weights.h"
#include "engine/planning/mixed_planner.h"
#include "kernels/cuda/cuda_ops.h"

namespace baton::golden {
namespace {

using engine::Checkpoint;
using engine::Sequence;

constexpr char kFolder[] = "models/demo";
constexpr int kPrompt = 512, kAnswer = 255;
constexpr int kMaxRows = 1024, kPages = 64;
// An odd number of pages, so that arrays of pages have odd sizes.
constexpr int kMaxContext = 5 * kPageTokens;

struct Setting {
  int num_drafts = 0;
  bool has_graphs = false;
  int sequences = 1;  // and there is room for no more
  bool goes_ahead = false;
  bool has_penalties = true;
  int max_head_rows() const { return 4 * sequences; }
};

double Microseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::micro>(now).count();
}

// The runner, and how long the device has nothing to do because of the host: from the end of a step
// with none behind it until the next one's model is queued.
class TimedRunner final : public engine::StepRunner {
 public:
  explicit TimedRunner(StepRunner& runner) : runner_(runner) {}
  absl::Status LaunchForward(const engine::StepPlan& plan,
                             const engine::SequenceTable& sequences) override {
    const absl::Status status = runner_.LaunchForward(plan, sequences);
    if (in_flight_++ == 0 && last_end_ > 0) idle_us += Microseconds() - last_end_;
    return status;
  }
  absl::Status LaunchFinish(const engine::StepPlan& plan,
                            const engine::SequenceTable& sequences) override {
    return runner_.LaunchFinish(plan, sequences);
  }
  absl::StatusOr<engine::Harvest> Await() override {
    absl::StatusOr<engine::Harvest> harvest = runner_.Await();
    --in_flight_;
    last_end_ = Microseconds();
    return harvest;
  }
  bool CanFollow(int num_drafts) const override { return runner_.CanFollow(num_drafts); }
  void ResetTail(int tail_slot) override { runner_.ResetTail(tail_slot); }
  absl::Status PackTail(const kernels::TailArgs& args) override { return runner_.PackTail(args); }
  absl::Status UnpackTail(const kernels::TailArgs& args) override {
    return runner_.UnpackTail(args);
  }
  int num_tail_slots() const override { return runner_.num_tail_slots(); }

  double idle_us = 0;

 private:
  StepRunner& runner_;
  int in_flight_ = 0;
  double last_end_ = 0;
};

// The engine of a worker without the worker.
class Engine final : public engine::LoopObserver {
 public:
  Engine(const Checkpoint& checkpoint, std::unique_ptr<kernels::Device> device,
         const Setting& setting)
      : setting_(setting),
        device_(std::move(device)),
        layout_(engine::LayoutShapeOf(checkpoint.config(), kernels::NumericsMode::kOfficial)),
        planner_({.batch = {.max_sequences = setting.sequences,
                            .max_rows = kMaxRows,
                            .num_drafts = setting.num_drafts},
                  .chunk = {.chunk_tokens = kMaxRows / 2},
                  .max_rows = kMaxRows}) {
    auto weights = engine::LoadWeights(checkpoint, *device_);
    CHECK(weights.ok());
    weights_ = *std::move(weights);
    std::byte* pages = *device_->Allocate(layout_.stride_bytes() * kPages);
    kernels::cuda::CudaOptions options{.config = checkpoint.config(), .layout = layout_};
    options.pages = pages;
    options.num_pages = kPages;
    options.num_tail_slots = options.max_sequences = setting.sequences;
    options.max_rows = kMaxRows;
    options.max_head_rows = setting.max_head_rows();
    options.max_context = kMaxContext;
    options.has_graphs = setting.has_graphs;
    auto ops = kernels::cuda::MakeCudaOps(std::move(options), *device_);
    CHECK(ops.ok());
    ops_ = *std::move(ops);
    pool_ = std::make_unique<engine::PagePool>(pages, kPages, layout_.stride_bytes(),
                                               layout_.payload_bytes());
    pool_->UseDevice(*device_, *device_->MakeMemoryQueue());
    runner_ = std::make_unique<engine::ModelRunner>(
        *ops_, weights_, checkpoint.config(),
        engine::ModelRunnerOptions{.num_tail_slots = setting.sequences,
                                   .max_head_rows = setting.max_head_rows(),
                                   .goes_ahead = setting.goes_ahead});
    timed_ = std::make_unique<TimedRunner>(*runner_);
    loop_ = std::make_unique<engine::EngineLoop>(*pool_, planner_, *timed_, clock_, layout_);
    loop_->SetObserver(this);
  }

  // Prompts first, all of them, then the answers.
  void Run(int sequences, int prompt = kPrompt, int answer = kAnswer) {
    StartAll(sequences, prompt, answer);
    const engine::LoopCounters before = loop_->counters();
    const double start = Microseconds();
    timed_->idle_us = 0;
    while (loop_->num_sequences() > 0) Step();
    const auto steps = static_cast<double>(loop_->counters().steps - before.steps);
    step_us = (Microseconds() - start) / steps;
    idle_us = timed_->idle_us / steps;
    tokens_a_step = static_cast<double>(loop_->counters().decode_tokens) / steps;
    accepted_drafts = loop_->counters().accepted_drafts - before.accepted_drafts;
    share_ahead = static_cast<double>(loop_->counters().steps_ahead - before.steps_ahead) / steps;
  }

  // All but the first `finishing` are held once they have said so many tokens; what they leave
  // then.
  std::map<uint64_t, std::vector<std::byte>> RunAndHold(int sequences, int finishing, int said) {
    held_at_ = said;
    num_finishing_ = finishing;
    StartAll(sequences, kPrompt, kAnswer);
    while (loop_->HasWork()) Step();
    std::map<uint64_t, std::vector<std::byte>> left;
    for (int i = finishing; i < sequences; ++i) {
      const SequenceId id{static_cast<uint64_t>(i) + 1};
      const Sequence& s = loop_->Get(id);
      std::vector<std::byte>& bytes = left[id.value];
      const auto n = static_cast<uint64_t>(s.computed);
      bytes.resize(kernels::MakeTailLayout(layout_, n, 0).total_bytes);
      CHECK(loop_->PackTail(id, bytes).ok());
      for (const PageId page : s.pages.ids()) {
        const size_t end = bytes.size(), size = pool_->payload_bytes();
        bytes.resize(end + size);
        CHECK(pool_->Read(page, std::span(bytes).subspan(end, size)).ok());
      }
      loop_->ReturnTailSlot(loop_->Release(id).tail_slot);
    }
    held_at_ = 0;
    return left;
  }

  std::map<uint64_t, std::vector<TokenRecord>> records;  // by sequence
  double step_us = 0, idle_us = 0, tokens_a_step = 0, share_ahead = 0;
  uint64_t accepted_drafts = 0;

 private:
  void StartAll(int sequences, int prompt, int answer) {
    records.clear();
    num_first_ = 0;
    for (int i = 0; i < sequences; ++i) Admit(i, prompt, answer + 1);
    while (num_first_ < sequences) Step();
    for (int i = 0; i < sequences; ++i) {
      const SequenceId id{static_cast<uint64_t>(i) + 1};
      loop_->Continue(id, records[id.value].back().token);
    }
  }

  void Step() {
    const absl::StatusOr<bool> has_run = loop_->RunOnce();
    CHECK(has_run.ok() && *has_run);
  }

  void Admit(int number, int prompt, int max_tokens) {
    Sequence s;
    s.id = {static_cast<uint64_t>(number) + 1};
    s.prompt_tokens = prompt;
    for (int i = 0; i < prompt; ++i) s.tokens.push_back(300 + (7 * number + 13 * i + i * i) % 3000);
    s.finish.max_tokens = max_tokens;
    s.tail_slot = *loop_->TakeTailSlot();
    s.sampling.seed = static_cast<uint64_t>(number);
    s.sampling.greedy = number % 2 == 0;
    s.sampling.top_logprobs = number % 4 - 1;
    if (number == 3 && setting_.has_penalties) s.sampling.repetition_penalty = 1.1f;
    if (number == 5) s.sampling.top_k = 20;
    loop_->Admit(std::move(s), engine::Booking());
  }

  void OnChunk(SequenceId, int) override {}
  void OnPromptLogprobs(SequenceId, int, std::vector<TokenRecord>) override {}
  void OnFirstTokens(SequenceId s, std::vector<TokenRecord> tokens) override {
    records[s.value].push_back(tokens.at(0));
    ++num_first_;
  }
  void OnTokens(SequenceId s, int, std::vector<TokenRecord> tokens) override {
    records[s.value].insert(records[s.value].end(), tokens.begin(), tokens.end());
    if (held_at_ == 0 || s.value <= static_cast<uint64_t>(num_finishing_)) return;
    if (records[s.value].size() >= static_cast<size_t>(held_at_)) loop_->Hold(s);
  }
  void OnFinished(SequenceId s, FinishReason, int32_t) override {
    loop_->ReturnTailSlot(loop_->Release(s).tail_slot);
  }
  void OnFailed(SequenceId, const absl::Status& status) override { FAIL() << status; }
  void OnParked(SequenceId) override {}
  void OnResumed(SequenceId) override {}
  void OnReplayMismatch(SequenceId) override {}

  const Setting setting_;
  std::unique_ptr<kernels::Device> device_;
  const kernels::PageLayout layout_;
  ManualClock clock_;
  engine::MixedPlanner planner_;
  kernels::ModelWeights weights_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<engine::PagePool> pool_;
  std::unique_ptr<engine::ModelRunner> runner_;
  std::unique_ptr<TimedRunner> timed_;
  std::unique_ptr<engine::EngineLoop> loop_;
  int num_first_ = 0;
  int held_at_ = 0, num_finishing_ = 0;
};

TEST(CudaSteps, DraftsGraphsAndCompanyChangeNoToken) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(kFolder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::map<uint64_t, std::vector<TokenRecord>> expected;
  std::map<std::pair<int, int>, uint64_t> accepted;  // by drafts and sequences
  for (const int sequences : {8, 1}) {
    for (const int num_drafts : {0, 1, 3}) {
      for (const bool has_graphs : {false, true}) {
        auto device = kernels::cuda::MakeCudaDevice(0);
        if (!device.ok()) GTEST_SKIP() << device.status();
        Engine engine(*checkpoint, *std::move(device), {num_drafts, has_graphs, sequences});
        engine.Run(sequences);
        std::printf(
            "  %d sequences, %d drafts, graphs %d: %.1f us a step (%.1f idle), %.2f tokens\n",
            sequences, num_drafts, has_graphs, engine.step_us, engine.idle_us,
            engine.tokens_a_step);
        if (expected.empty()) expected = engine.records;
        for (const auto& [id, records] : engine.records) {
          ASSERT_EQ(records.size(), size_t{kAnswer} + 1);
          EXPECT_EQ(records, expected[id]) << "sequence " << id;
        }
        const auto [seen, is_new] =
            accepted.emplace(std::pair(num_drafts, sequences), engine.accepted_drafts);
        EXPECT_EQ(engine.accepted_drafts, seen->second);
        EXPECT_GT(engine.tokens_a_step, num_drafts > 0 ? 1.5 : 0.9);
      }
    }
  }
}

// The host one step behind the device: the same tokens, logprobs, pages and tails.
TEST(CudaSteps, AStepBehindLeavesNoTrace) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(kFolder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const int sequences : {8, 1}) {
    for (const int num_drafts : {0, 1, 3}) {
      std::map<uint64_t, std::vector<TokenRecord>> records, held_records;
      std::map<uint64_t, std::vector<std::byte>> left;
      for (const bool goes_ahead : {false, true}) {
        auto device = kernels::cuda::MakeCudaDevice(0);
        if (!device.ok()) GTEST_SKIP() << device.status();
        Engine engine(*checkpoint, *std::move(device),
                      {.num_drafts = num_drafts,
                       .has_graphs = true,
                       .sequences = sequences,
                       .goes_ahead = goes_ahead,
                       .has_penalties = false});
        engine.Run(sequences);
        std::printf(
            "  %d sequences, %d drafts, %s: %.1f us a step (%.1f idle), %.2f tokens, %.2f ahead\n",
            sequences, num_drafts, goes_ahead ? "behind" : "in step", engine.step_us,
            engine.idle_us, engine.tokens_a_step, engine.share_ahead);
        if (!goes_ahead) records = engine.records;
        EXPECT_TRUE(engine.records == records);
        EXPECT_EQ(engine.share_ahead > 0.6, goes_ahead);
        const auto bytes = engine.RunAndHold(sequences, sequences / 2, kAnswer / 2);
        if (!goes_ahead) {
          left = bytes;
          held_records = engine.records;
        }
        EXPECT_EQ(bytes.size(), static_cast<size_t>(sequences - sequences / 2));
        EXPECT_TRUE(engine.records == held_records);
        EXPECT_TRUE(bytes == left) << "pages or tails differ";
      }
    }
  }
}

// A short prompt's only step has no drafter row but the one it drafts from, and looks like a step
// that has some: a record of it left them out.
TEST(CudaSteps, ARecordServesStepsWithTheSameRowsOnly) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(kFolder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::map<bool, uint64_t> accepted;
  for (const bool has_graphs : {false, true}) {
    auto device = kernels::cuda::MakeCudaDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status();
    Engine engine(*checkpoint, *std::move(device), {.num_drafts = 1, .has_graphs = has_graphs});
    for (int i = 0; i < 3; ++i) engine.Run(1, /*prompt=*/4, /*answer=*/1);
    engine.Run(1);
    accepted[has_graphs] = engine.accepted_drafts;
  }
  EXPECT_EQ(accepted[true], accepted[false]);
}

}  // namespace
}  // namespace baton::golden
