#pragma once

#include <algorithm>
#include <gtest/gtest.h>
#include <optional>
#include <vector>

#include "kernels/tail_header.h"
#include "worker/landing_table.h"
#include "worker/prefill_job.h"
#include "worker/test_worker.h"

// A landing table alone, with the transfer thread's part played by hand.
namespace baton::worker {

inline constexpr SessionId kSession{1};
inline constexpr int kPages = 40;
inline constexpr int kTails = 3;

class LandingTableTest : public testing::Test {
 protected:
  LandingTableTest() {
    setup_.tail_stride = kernels::MaxTailBytes(setup_.layout, 4);
    setup_.weights.bytes[0] = 7;
    setup_.prompt_class.bytes[0] = setup_.decode_class.bytes[0] = 9;
    setup_.limits.max_context = 4096;
    setup_.limits.window = 4;
    tail_memory_.resize(kTails * setup_.tail_stride);
    tails_.emplace(tail_memory_, setup_.tail_stride);
    table_.emplace(setup_, pool_, *tails_, rng_, [](int) {});
  }

  wire::Reserve MakeReserve(int tokens, int choices = 1) const {
    wire::Reserve reserve;
    reserve.transfer = transfer_;
    reserve.prompt_tokens = static_cast<uint32_t>(tokens);
    reserve.num_pages = static_cast<uint32_t>(PagesFor(tokens));
    for (int i = 0; i < choices; ++i)
      reserve.sequences.push_back({.handle = {first_handle_ + static_cast<uint32_t>(i)},
                                   .choice = static_cast<uint32_t>(i),
                                   .received = {}});
    reserve.finish.max_tokens = 2000;
    reserve.prompt_class = setup_.prompt_class;
    return reserve;
  }
  void Reserve(int tokens, int choices = 1) {
    request_ = MakeReserve(tokens, choices);
    table_->Reserve(kSession, request_, out_);
  }
  void SendPrompt() {
    const wire::PromptChunk chunk{.transfer = transfer_,
                                  .offset = 0,
                                  .tokens = std::vector<int32_t>(request_.prompt_tokens, 5),
                                  .is_last = true};
    ASSERT_TRUE(table_->AddPrompt(kSession, chunk, clock_.Now(), out_).ok());
  }
  // Pages and tail buffers the transfer thread was given and has neither landed in nor returned.
  std::vector<kvtransfer::BlockMemory> TakeCredit(bool is_tail) {
    std::vector<kvtransfer::BlockMemory> credit;
    for (const auto& command : out_.commands) {
      const auto* added = std::get_if<kvtransfer::AddCredit>(&command);
      if (added == nullptr) continue;
      for (const auto& memory : added->memory)
        if ((memory.block == kTailBlock) == is_tail) credit.push_back(memory);
    }
    return credit;
  }
  void Land(kvtransfer::BlockMemory memory, uint32_t block) {
    memory.block = block;
    table_->On(kvtransfer::BlockLanded{.transfer = transfer_, .memory = memory, .name = {}},
               clock_.Now(), out_);
  }
  void WriteTail(int buffer, uint64_t tokens, uint32_t choices) {
    const uint64_t bytes = kernels::MakeTailLayout(setup_.layout, tokens, choices).total_bytes;
    const std::span<std::byte> tail = tails_->Data(buffer, bytes);
    WriteTailHeader(setup_, tokens, choices, {}, tail);
    for (uint32_t i = 0; i < choices; ++i) {
      const uint64_t at = bytes - (choices - i) * kernels::kFirstTokenBytes;
      kernels::EncodeFirstToken({.token = static_cast<int32_t>(100 + i), .logprob = 0, .top = {}},
                                tail.subspan(at, kernels::kFirstTokenBytes));
    }
  }
  void LandEverything() {
    for (uint32_t block = 0; block < request_.num_pages; ++block) {
      const auto credit = TakeCredit(false);
      ASSERT_GT(credit.size(), block);
      Land(credit[block], block);
    }
    const int buffer = TakeCredit(true).at(0).memory;
    WriteTail(buffer, request_.prompt_tokens, static_cast<uint32_t>(request_.sequences.size()));
    Land(TakeCredit(true)[0], kTailBlock);
  }
  bool HasClose() const {
    return std::ranges::any_of(out_.commands, [](const auto& c) {
      return std::holds_alternative<kvtransfer::CloseLanding>(c);
    });
  }
  void CloseAgent() { table_->On(kvtransfer::LandingClosed{transfer_}); }
  std::vector<SequenceId> CancelAll() {
    return table_->Cancel(kSession, {.transfer = transfer_, .sequence = {}, .reason = ""},
                          clock_.Now(), out_);
  }
  void ExpectNothingHeld() {
    EXPECT_EQ(pool_.Counts().free, kPages);
    EXPECT_EQ(tails_->num_free(), kTails);
    EXPECT_TRUE(table_->IsEmpty());
    EXPECT_TRUE(pool_.CheckCounts().ok());
  }

  ManualClock clock_;
  SeededRng rng_{1};
  WorkerSetup setup_{.worker_id = "d",
                     .incarnation = {5},
                     .serves_decode = true,
                     .weights = {},
                     .layout_id = TestLayout().Id(),
                     .prompt_class = {},
                     .decode_class = {},
                     .kv_address = "d",
                     .layout = TestLayout(),
                     .pages_region = {},
                     .tails_region = {},
                     .tail_memory = {},
                     .limits = {}};
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * TestLayout().stride_bytes());
  engine::PagePool pool_{memory_.data(), kPages, TestLayout().stride_bytes(),
                         TestLayout().payload_bytes()};
  std::vector<std::byte> tail_memory_;
  std::optional<TailBuffers> tails_;
  std::optional<LandingTable> table_;
  Effects out_;
  TransferId transfer_{{1, 2, 3}};
  uint8_t first_handle_ = 0;
  wire::Reserve request_;
};

}  // namespace baton::worker
