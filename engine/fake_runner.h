#pragma once

#include <cstring>
#include <deque>
#include <gtest/gtest.h>
#include <map>
#include <utility>
#include <vector>

#include "common/status.h"
#include "engine/step.h"

namespace baton::engine::test {

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
      EXPECT_GE(run.rows, last_rows_[i]);  // what was rejected is written again
      EXPECT_GE(s.pages.size() * kPageTokens, run.first_position + run.rows);
      const auto first = static_cast<int>(slots_[static_cast<size_t>(s.tail_slot)]);
      EXPECT_LE(first, std::exchange(run.first_position, first));
      harvest.sequences.push_back(RunSequence(run, s, last.next_drafts, plan.num_drafts));
    }
    harvests_.push_back(std::move(harvest));
    last_rows_.clear();
    for (const SequenceRun& run : plan.runs) last_rows_.push_back(run.rows);
    return absl::OkStatus();
  }
  absl::Status LaunchFinish(const StepPlan&, const SequenceTable&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<Harvest> Await() override {
    Harvest harvest = std::move(harvests_.front());
    harvests_.pop_front();
    RETURN_IF_ERROR(step_status);
    return harvest;
  }
  bool CanFollow(int) const override { return goes_ahead; }
  size_t num_in_flight() const { return harvests_.size(); }

  void ResetTail(int slot) override {
    EXPECT_TRUE(step_status.ok()) << "nothing is asked of a device that failed";
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
  absl::Status step_status;  // of each step

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
  std::vector<int> last_rows_;  // of the newest step, by run
};

}  // namespace baton::engine::test
