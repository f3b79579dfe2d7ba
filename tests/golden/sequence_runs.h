#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/model_runner.h"
#include "engine/pages/page_pool.h"
#include "engine/pages/sequence.h"
#include "tests/golden/test_model.h"

namespace baton::golden {

// What a sequence has left behind: equal for any way it was run (contracts.md 1.2, L0).
struct Remains {
  std::vector<int32_t> tokens;
  std::vector<TokenRecord> records;  // of the generated tokens
  std::vector<std::byte> pages;      // payloads, in sequence order
  std::vector<std::byte> tail;       // sections 1 to 6, without section 2 (drafter state)
  bool operator==(const Remains&) const = default;
};

// One prompt's run through a TestModel, by hand: tests choose chunks, rows, drafts and company.
// CHECKs instead of errors. One thread.
class SequenceRuns final : public engine::SequenceTable {
 public:
  explicit SequenceRuns(TestModel& model, const TestModelOptions& options);

  // A new sequence in a slot of its own; takes `skipped_pages` pages out of circulation first, so
  // that page ids differ.
  SequenceId Start(std::vector<int32_t> prompt, const SamplingSpec& sampling,
                   int skipped_pages = 0);
  // One step: the next `rows[i]` tokens of ids[i]'s prompt, at most to its end. The last chunk
  // samples and appends the first token.
  void Prefill(std::span<const SequenceId> ids, std::span<const int> rows, int num_drafts = 0);
  // The whole prompt in chunks.
  void PrefillAll(SequenceId id, int chunk, int num_drafts = 0);
  // One verify step for each: the last token and all its drafts, never past `max_generated` tokens;
  // then num_drafts new ones.
  void Decode(std::span<const SequenceId> ids, int num_drafts, int max_generated);
  void DecodeTo(SequenceId id, int num_drafts, int max_generated);
  // Replays `record` after the prompt, `rows` rows a step. Returns the mismatches.
  int Replay(SequenceId id, std::span<const int32_t> record, int rows);

  // Packs the tail at `computed`.
  std::vector<std::byte> Tail(SequenceId id);
  Remains Leave(SequenceId id);
  // The same sequence in another slot and other pages, by way of its tail and page bytes.
  SequenceId HandOver(SequenceId id);

  // The first tokens of a prompt with several choices, one record each.
  const std::vector<TokenRecord>& FirstTokens(SequenceId id) const {
    return first_tokens_.at(id.value);
  }

  // What the prompt's steps reported, from position 1 on (Sequence::prompt_logprobs).
  std::vector<TokenRecord> PromptLogprobs(SequenceId id) const {
    const auto found = prompt_logprobs_.find(id.value);
    return found == prompt_logprobs_.end() ? std::vector<TokenRecord>() : found->second;
  }

  const engine::Sequence& Get(SequenceId id) const override { return *sequences_.at(id.value); }
  engine::Sequence& Edit(SequenceId id) { return *sequences_.at(id.value); }
  engine::ModelRunner& runner() { return runner_; }

 private:
  engine::Harvest Run(const engine::StepPlan& plan);

  TestModel& model_;
  engine::PagePool pool_;
  engine::ModelRunner runner_;
  std::map<uint64_t, std::unique_ptr<engine::Sequence>> sequences_;
  std::map<uint64_t, std::vector<TokenRecord>> records_;
  std::map<uint64_t, std::vector<TokenRecord>> first_tokens_;
  std::map<uint64_t, std::vector<TokenRecord>> prompt_logprobs_;
  std::vector<engine::PageLease> skipped_;
  uint64_t next_id_ = 1;
};

}  // namespace baton::golden
