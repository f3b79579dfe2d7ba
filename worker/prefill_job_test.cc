#include "worker/prefill_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <vector>

#include "kernels/tail_header.h"
#include "worker/test_worker.h"

namespace baton::worker {
namespace {

constexpr SessionId kSession{1};
constexpr int kPages = 16;

class PrefillJobTest : public testing::Test {
 protected:
  PrefillJobTest() {
    setup_.serves_prefill = true;
    setup_.limits.max_context = 4096;
    setup_.tail_stride = kernels::MaxTailBytes(setup_.layout, 4);
    run_.transfer.bytes[0] = 1;
    run_.landing = {.attempt = 1,
                    .secret = {},
                    .incarnation = {99},
                    .kv_address = "d",
                    .num_ranks = 1,
                    .window = 64};
    run_.sequences.resize(1);
    SetTokens(700);
  }
  void SetTokens(int tokens) {
    run_.prompt_tokens = static_cast<uint32_t>(tokens);
    engine::Booking booking = pool_.Book(PagesFor(tokens)).value();
    lease_ = pool_.Take(booking, PagesFor(tokens));
    page_ids_.assign(lease_.ids().begin(), lease_.ids().end());
  }
  PrefillJob Make() { return PrefillJob(setup_, kSession, run_, false, clock_.Now()); }
  void SendPrompt(PrefillJob& job) {
    const wire::PromptChunk chunk{.transfer = run_.transfer,
                                  .offset = 0,
                                  .tokens = std::vector<int32_t>(run_.prompt_tokens, 3),
                                  .is_last = true};
    ASSERT_TRUE(job.AddPrompt(chunk, clock_.Now()).ok());
  }
  void Finish(PrefillJob& job) {
    tail_.assign(job.tail_bytes(), std::byte{0});
    job.OnFirstTokens(std::move(lease_), tail_, {{.token = 42, .logprob = -1, .top = {}}},
                      clock_.Now(), out_);
  }
  std::vector<uint32_t> Offered() const {
    std::vector<uint32_t> blocks;
    for (const auto& command : out_.commands)
      if (const auto* offer = std::get_if<kvtransfer::OfferBlock>(&command))
        blocks.push_back(offer->memory.block);
    return blocks;
  }
  bool HasClose() const {
    return std::holds_alternative<kvtransfer::CloseSend>(out_.commands.back());
  }

  ManualClock clock_;
  WorkerSetup setup_{.worker_id = "p",
                     .incarnation = {5},
                     .weights = {},
                     .layout_id = TestLayout().Id(),
                     .prompt_class = {},
                     .decode_class = {},
                     .kv_address = "p",
                     .layout = TestLayout(),
                     .pages_region = {},
                     .tails_region = {},
                     .tail_memory = {},
                     .limits = {}};
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * TestLayout().stride_bytes());
  engine::PagePool pool_{memory_.data(), kPages, TestLayout().stride_bytes(),
                         TestLayout().payload_bytes()};
  engine::PageLease lease_;
  std::vector<PageId> page_ids_;
  wire::Run run_;
  Effects out_;
  std::vector<std::byte> tail_;
};

TEST_F(PrefillJobTest, RunsWhenItsLastChunkIsIn) {
  PrefillJob job = Make();
  EXPECT_FALSE(job.IsRunnable());
  EXPECT_EQ(job.num_left(), 700);
  const wire::PromptChunk gap{
      .transfer = run_.transfer, .offset = 5, .tokens = {1}, .is_last = false};
  EXPECT_EQ(job.AddPrompt(gap, clock_.Now()).code(), absl::StatusCode::kInvalidArgument);
  SendPrompt(job);
  EXPECT_TRUE(job.IsRunnable());
  EXPECT_EQ(job.names().size(), 2u);
}

TEST_F(PrefillJobTest, OffersSealedPagesAsChunksEndAndTheTailLast) {
  PrefillJob job = Make();
  SendPrompt(job);
  clock_.Advance(absl::Milliseconds(2));
  job.Start(SequenceId{1}, {}, 0, clock_.Now(), out_);
  ASSERT_TRUE(std::holds_alternative<kvtransfer::OpenSend>(out_.commands[0]));
  job.OnChunk(page_ids_, 256, out_);
  EXPECT_THAT(Offered(), testing::ElementsAre(0u));
  job.OnChunk(page_ids_, 512, out_);
  job.OnChunk(page_ids_, 700, out_);
  EXPECT_THAT(Offered(), testing::ElementsAre(0u, 1u));  // the partial page may still change
  clock_.Advance(absl::Milliseconds(5));
  Finish(job);
  EXPECT_THAT(Offered(), testing::ElementsAre(0u, 1u, 2u, kTailBlock));
  const wire::FirstToken& first = out_.To(kSession).first_tokens.at(0);
  EXPECT_EQ(first.queue_us, 2000u);
  EXPECT_EQ(first.prefill_us, 5000u);
  const auto header = kernels::DecodeTailHeader(tail_);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->num_tokens, 700u);
  EXPECT_EQ(header->last_full_page, job.names().back());
  EXPECT_EQ(kernels::DecodeFirstTokens(*header, tail_)->at(0).token, 42);
}

TEST_F(PrefillJobTest, NamesGoWithFullPagesOnly) {
  PrefillJob job = Make();
  SendPrompt(job);
  job.Start(SequenceId{1}, {}, 0, clock_.Now(), out_);
  Finish(job);
  std::vector<bool> named;
  for (const auto& command : out_.commands)
    if (const auto* offer = std::get_if<kvtransfer::OfferBlock>(&command))
      named.push_back(!offer->name.IsZero());
  EXPECT_THAT(named, testing::ElementsAre(true, true, false, false));
}

TEST_F(PrefillJobTest, SkipsVerifiedPagesAndOffersCachedOnesAtOnce) {
  run_.verified_pages = {true, false, true};
  PrefillJob job = Make();
  SendPrompt(job);
  job.Start(SequenceId{1}, std::span(page_ids_).first(2), 0, clock_.Now(), out_);
  EXPECT_THAT(Offered(), testing::ElementsAre(1u));
  Finish(job);
  EXPECT_THAT(Offered(), testing::ElementsAre(1u, kTailBlock));
  EXPECT_EQ(out_.To(kSession).first_tokens.at(0).cached_tokens, 512u);
  job.OnAcked(1, out_);
  EXPECT_TRUE(out_.To(kSession).prefilled.empty());
  job.OnAcked(kTailBlock, out_);
  EXPECT_EQ(out_.To(kSession).prefilled.size(), 1u);
}

TEST_F(PrefillJobTest, PagesStayUntilTheTransportHasLetGo) {
  PrefillJob job = Make();
  SendPrompt(job);
  job.Start(SequenceId{1}, {}, 0, clock_.Now(), out_);
  Finish(job);
  for (const uint32_t block : {0u, 1u, 2u, kTailBlock}) job.OnAcked(block, out_);
  EXPECT_EQ(job.state(), JobState::kDraining);
  EXPECT_TRUE(HasClose());
  EXPECT_EQ(pool_.Counts().leased, 3);
  job.OnSendReleased();
  EXPECT_EQ(job.state(), JobState::kReleased);
  EXPECT_EQ(pool_.Counts().leased, 0);
}

TEST_F(PrefillJobTest, StoppedAtAnyStateItKeepsWhatIsBeingRead) {
  for (int state = 0; state < 3; ++state) {
    SCOPED_TRACE(state);
    PrefillJob job = Make();
    if (state >= 1) {
      SendPrompt(job);
      job.Start(SequenceId{1}, {}, 0, clock_.Now(), out_);
      job.OnChunk(page_ids_, 256, out_);
    }
    if (state == 2) Finish(job);
    job.Fail(absl::UnavailableError("peer down"), std::move(lease_), out_);
    job.Stop({}, out_);  // idempotent
    EXPECT_EQ(out_.To(kSession).failed.size(), 1u);
    EXPECT_EQ(job.state(), state == 0 ? JobState::kReleased : JobState::kDraining);
    EXPECT_EQ(pool_.Counts().leased, state == 0 ? 0 : 3);
    job.OnSendReleased();
    EXPECT_EQ(pool_.Counts().leased, 0);
    EXPECT_EQ(job.state(), JobState::kReleased);
    out_ = {};
    SetTokens(700);
  }
}

TEST_F(PrefillJobTest, EndsWhenTheLastChoiceIsDropped) {
  run_.sequences.resize(2);
  PrefillJob job = Make();
  EXPECT_FALSE(job.DropChoice(1));
  EXPECT_FALSE(job.DropChoice(1));
  EXPECT_TRUE(job.DropChoice(0));
  EXPECT_TRUE(job.DropChoice(std::nullopt));
}

TEST_F(PrefillJobTest, ChecksNameFieldValueAndLimit) {
  EXPECT_TRUE(CheckRun(setup_, run_, kPages).ok());
  EXPECT_EQ(CheckRun(setup_, run_, 2).code(), absl::StatusCode::kResourceExhausted);
  wire::Run run = run_;
  run.prompt_tokens = 5000;
  EXPECT_THAT(std::string(CheckRun(setup_, run, 99).message()),
              testing::HasSubstr("prompt_tokens is 5000"));
  run = run_;
  run.verified_pages = {true};
  EXPECT_EQ(CheckRun(setup_, run, 99).code(), absl::StatusCode::kInvalidArgument);
  run = run_;
  run.prompt_class.bytes[0] = 3;
  EXPECT_EQ(CheckRun(setup_, run, 99).code(), absl::StatusCode::kFailedPrecondition);
  run = run_;
  run.masks.forced_prefix = {1};
  EXPECT_THAT(std::string(CheckRun(setup_, run, 99).message()),
              testing::HasSubstr("masks are set"));
}

}  // namespace
}  // namespace baton::worker
