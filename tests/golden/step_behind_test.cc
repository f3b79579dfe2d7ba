// The engine one step behind its back end leaves what it leaves step by step, bit by bit: tokens,
// logprobs, pages and whole tails, of sequences that end, are held or come while a step is in
// flight.
#include <algorithm>
#include <map>

#include "gtest/gtest.h"

#include "common/check.h"
#include "engine/loop.h"
#include "engine/model/model_runner.h"
#include "engine/planning/mixed_planner.h"
#include "tests/golden/test_model.h"

namespace baton::golden {
namespace {

using engine::Sequence;

constexpr int kNever = 1 << 20;

// What a sequence has said and, if it was held, left.
struct Left {
  std::vector<TokenRecord> records;
  std::vector<std::byte> pages, tail;
  bool operator==(const Left&) const = default;
};

struct Order {
  uint64_t id = 0;
  std::vector<int32_t> prompt;
  SamplingSpec sampling;
  int max_tokens = 60;
  std::vector<int32_t> stop_tokens = {};
  int arrives_at = 0;    // step
  int held_at = kNever;  // once so many tokens are said
};

class Decoding final : public engine::LoopObserver {
 public:
  Decoding(const engine::Checkpoint& checkpoint, bool goes_ahead, int num_drafts)
      : planner_({.batch = {.max_sequences = 4, .max_rows = 256, .num_drafts = num_drafts},
                  .chunk = {.chunk_tokens = 512},
                  .max_rows = 768}) {
    const TestModelOptions options{.num_threads = 2};
    auto loaded = TestModel::Load(checkpoint, options);
    CHECK(loaded.ok());
    model_ = *std::move(loaded);
    pool_ = std::make_unique<engine::PagePool>(model_->pages().data(), options.num_pages,
                                               model_->layout().stride_bytes(),
                                               model_->layout().payload_bytes());
    runner_ = std::make_unique<engine::ModelRunner>(
        model_->ops(), model_->weights(), model_->config(),
        engine::ModelRunnerOptions{.num_tail_slots = options.num_tail_slots,
                                   .max_head_rows = options.max_head_rows,
                                   .goes_ahead = goes_ahead});
    loop_ =
        std::make_unique<engine::EngineLoop>(*pool_, planner_, *runner_, clock_, model_->layout());
    loop_->SetObserver(this);
  }

  std::map<uint64_t, Left> Run(const std::vector<Order>& orders) {
    bool has_more = true;
    for (int step = 0; has_more; ++step) {
      has_more = false;
      for (const Order& order : orders) {
        if (order.arrives_at == step) Admit(order);
        has_more = has_more || order.arrives_at > step;
      }
      has_more = *loop_->RunOnce() || has_more;
    }
    for (const Order& order : orders) {
      if (order.held_at != kNever) Leave({order.id});
    }
    EXPECT_EQ(loop_->num_sequences(), 0);
    EXPECT_EQ(pool_->Counts().free, pool_->Counts().total);
    return std::move(left_);
  }
  const engine::LoopCounters& counters() const { return loop_->counters(); }

 private:
  void Admit(const Order& order) {
    Sequence s;
    s.id = {order.id};
    s.tokens = order.prompt;
    s.prompt_tokens = static_cast<int>(order.prompt.size());
    s.sampling = order.sampling;
    s.finish = {.stop_tokens = order.stop_tokens, .max_tokens = order.max_tokens};
    s.tail_slot = *loop_->TakeTailSlot();
    held_at_[order.id] = order.held_at;
    loop_->Admit(std::move(s), engine::Booking());
  }

  void Leave(SequenceId id) {
    const Sequence& s = loop_->Get(id);
    Left& left = left_[id.value];
    const auto n = static_cast<uint64_t>(s.computed);
    left.tail.resize(kernels::MakeTailLayout(model_->layout(), n, 0).total_bytes);
    CHECK(loop_->PackTail(id, left.tail).ok());
    for (const PageId page : s.pages.ids()) {
      const std::span<const std::byte> bytes = model_->Page(page);
      left.pages.insert(left.pages.end(), bytes.begin(), bytes.end());
    }
    loop_->ReturnTailSlot(loop_->Release(id).tail_slot);
  }

  void OnChunk(SequenceId, int) override {}
  void OnPromptLogprobs(SequenceId, int, std::vector<TokenRecord>) override {}
  void OnFirstTokens(SequenceId s, std::vector<TokenRecord> tokens) override {
    left_[s.value].records = tokens;
    loop_->Continue(s, tokens.at(0).token);
  }
  void OnTokens(SequenceId s, int, std::vector<TokenRecord> tokens) override {
    std::vector<TokenRecord>& records = left_[s.value].records;
    records.insert(records.end(), tokens.begin(), tokens.end());
    if (static_cast<int>(records.size()) >= held_at_[s.value]) loop_->Hold(s);
  }
  void OnFinished(SequenceId s, FinishReason, int32_t) override {
    loop_->ReturnTailSlot(loop_->Release(s).tail_slot);
  }
  void OnFailed(SequenceId, const absl::Status& status) override { ADD_FAILURE() << status; }
  void OnParked(SequenceId) override {}
  void OnResumed(SequenceId) override {}
  void OnReplayMismatch(SequenceId) override {}

  std::unique_ptr<TestModel> model_;
  std::unique_ptr<engine::PagePool> pool_;
  std::unique_ptr<engine::ModelRunner> runner_;
  ManualClock clock_;
  engine::MixedPlanner planner_;
  std::unique_ptr<engine::EngineLoop> loop_;
  std::map<uint64_t, int> held_at_;
  std::map<uint64_t, Left> left_;
};

SamplingSpec Sampled(uint64_t seed) {
  SamplingSpec spec;
  spec.seed = seed;
  spec.top_k = 50;
  spec.top_logprobs = 2;
  spec.logit_bias = {{7, 1.5f}};
  return spec;
}

// Answers cross the ends of an HCA window and of a page.
std::vector<Order> Orders() {
  return {{.id = 1, .prompt = Prompt(231, 1), .sampling = Greedy()},
          {.id = 2, .prompt = Prompt(100, 2), .sampling = Sampled(5), .max_tokens = 33},
          {.id = 3, .prompt = Prompt(239, 3), .sampling = Sampled(6), .held_at = 30},
          {.id = 4, .prompt = Prompt(9, 4), .sampling = Greedy(), .arrives_at = 12, .held_at = 25}};
}

void ExpectTheSame(const std::string& folder, std::vector<Order> orders, int num_drafts) {
  SCOPED_TRACE(num_drafts);
  const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  Decoding plainly(*checkpoint, /*goes_ahead=*/false, num_drafts);
  std::map<uint64_t, Left> want = plainly.Run(orders);
  // A stop token in mid-answer: what is in flight then is thrown away.
  orders[0].stop_tokens = {want[1].records[20].token};
  Decoding stopping(*checkpoint, /*goes_ahead=*/false, num_drafts);
  want = stopping.Run(orders);
  Decoding ahead(*checkpoint, /*goes_ahead=*/true, num_drafts);
  const std::map<uint64_t, Left> got = ahead.Run(orders);
  EXPECT_EQ(stopping.counters().steps_ahead, 0u);
  EXPECT_GT(ahead.counters().steps_ahead, ahead.counters().steps / 3);
  EXPECT_EQ(ahead.counters().decode_tokens, stopping.counters().decode_tokens);
  EXPECT_EQ(ahead.counters().accepted_drafts, stopping.counters().accepted_drafts);
  for (const auto& [id, left] : want) {
    SCOPED_TRACE(id);
    EXPECT_TRUE(got.at(id).records == left.records) << "tokens or logprobs differ";
    EXPECT_TRUE(got.at(id).pages == left.pages) << "pages differ";
    EXPECT_TRUE(got.at(id).tail == left.tail) << "tails differ";
  }
}

TEST(StepBehind, LeavesNoTrace) {
  for (const int num_drafts : {0, 1, 3}) {
    ExpectTheSame("tests/data/golden/tiny-a", Orders(), num_drafts);
  }
}

// Whose drafts are mostly right.
TEST(StepBehind, LeavesNoTraceOnTheDemoModel) { ExpectTheSame("models/demo", Orders(), 3); }

}  // namespace
}  // namespace baton::golden
