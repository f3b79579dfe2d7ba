#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "common/rng.h"
#include "engine/step.h"
#include "tests/sim/hash_model.h"

namespace baton::sim {

// A StepRunner over the hash model: writes a word per row into page memory, reads every page below
// a row back in every step, and packs its state into wire tails of the layout's real size. Drafts
// are right about 7 times in 10. A step is done when it is launched, and may be followed as if it
// were not. One thread.
class HashRunner final : public engine::StepRunner {
 public:
  // `on_step` hears the rows of each step before it runs (the simulator lets time pass).
  HashRunner(engine::PagePool& pool, const kernels::PageLayout& layout, int num_slots,
             std::function<void(int rows)> on_step = {});

  absl::Status LaunchForward(const engine::StepPlan& plan,
                             const engine::SequenceTable& sequences) override;
  absl::Status LaunchFinish(const engine::StepPlan& plan,
                            const engine::SequenceTable& sequences) override;
  absl::StatusOr<engine::Harvest> Await() override;
  bool CanFollow(int num_drafts) const override;
  void ResetTail(int tail_slot) override;
  absl::Status PackTail(const kernels::TailArgs& args) override;
  absl::Status UnpackTail(const kernels::TailArgs& args) override;
  int num_tail_slots() const override { return static_cast<int>(slots_.size()); }

 private:
  struct Row {
    HashState state;  // after it
    VisiblePages visible;
    uint64_t word = 0;
  };
  // A run's input tokens and what they gave.
  struct RunRows {
    std::vector<int32_t> tokens;
    std::vector<Row> rows;  // those that are needed
  };
  VisiblePages ReadPages(std::span<const PageId> pages, int64_t num_tokens) const;
  void WriteRow(std::span<const PageId> pages, int64_t position, uint64_t word);
  RunRows Compute(const engine::SequenceRun& run, const engine::Sequence& sequence,
                  std::vector<int32_t> tokens);
  engine::SequenceTokens FinishRun(const engine::SequenceRun& run, const engine::Sequence& sequence,
                                   const RunRows& forwarded);
  std::vector<int32_t> Draft(const engine::Sequence& sequence, Row row, int32_t next_token,
                             int num_drafts) const;
  TokenRecord ChooseAfter(const engine::Sequence& sequence, const Row& row, int choice) const;

  engine::PagePool& pool_;
  const kernels::PageLayout& layout_;
  const int closing_words_;
  std::function<void(int)> on_step_;
  std::vector<HashState> slots_, before_;  // now, and before each one's last step
  std::vector<RunRows> forwarded_;         // by run of the newest step
  std::deque<engine::Harvest> harvests_;   // of the steps in flight
};

}  // namespace baton::sim
