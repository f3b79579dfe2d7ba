#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/grammar.h"
#include "common/sampling_spec.h"
#include "engine/grammar/grammar_cache.h"
#include "engine/grammar/grammar_memory.h"
#include "engine/grammar/metered_matcher.h"

namespace baton::engine {

// Bit v: token v is allowed. Empty: all are.
using TokenMask = std::span<const uint32_t>;

// Memory for the masks of one step, kept from step to step.
class MaskBuffer {
 public:
  std::span<uint32_t> Take(size_t words);
  void Clear() { used_ = 0; }  // ends all spans taken

 private:
  std::deque<std::vector<uint32_t>> rows_;
  size_t used_ = 0;
};

// Whether masks failed by an error of ours: the client is not at fault, and memory does not lack.
bool IsMaskFailure(const absl::Status& status);

// Says which tokens of one sequence may come next: reasoning up to and with </think>, the forced
// prefix, the grammar, then eos alone (MaskRules). A pure function of the rules and of the tokens
// taken since the prompt, so a replay makes the same masks. One thread at a time.
class MaskSource {
 public:
  // kInvalidArgument names the field that a worker with this vocabulary cannot follow, but for the
  // grammar's text.
  static absl::Status Check(const Vocabulary& vocabulary, const MaskRules& rules);
  // `rules` are not empty; `grammars` outlives it; `room` is its. Errors: as Check, and the
  // grammar's own.
  static absl::StatusOr<MaskSource> Create(GrammarCache& grammars, const MaskRules& rules,
                                           GrammarCharge room);
  static absl::StatusOr<MaskSource> Create(GrammarCache& grammars, const MaskRules& rules) {
    return Create(grammars, rules, grammars.Room());
  }
  // Another one of the same rules that has taken the same tokens. kResourceExhausted: there is no
  // memory for it.
  absl::StatusOr<MaskSource> Clone(GrammarCharge room) const;

  // The next generated token. An error is final: kInternal if the rules do not allow the token,
  // kInvalidArgument if the grammar is beyond a limit, kResourceExhausted if the worker has no more
  // memory for it.
  absl::Status Take(int32_t token);
  int num_taken() const { return state_.num_taken; }

  // Appends drafts.size() + 1 masks: row i for the token after the first i drafts. Rows behind a
  // draft that is not allowed are void and allow all, since no such draft is ever accepted. Takes
  // none of the drafts. The masks live until `buffer` is cleared, and as long as this. Errors: as
  // Take.
  absl::Status AppendMasks(std::span<const int32_t> drafts, MaskBuffer& buffer,
                           std::vector<TokenMask>& masks);

 private:
  enum class Phase : uint8_t { kReasoning, kPrefix, kGrammar, kEnd, kFree };
  struct State {
    Phase phase = Phase::kFree;
    int num_taken = 0;
    int64_t num_reasoned = 0;
    size_t num_forced = 0;
    int num_matched = 0;  // tokens the matcher has consumed
  };

  explicit MaskSource(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}
  Phase PhaseAfterReasoning() const;
  Phase PhaseAfterPrefix() const { return matcher_ ? Phase::kGrammar : Phase::kFree; }
  absl::Status TakeMatched(int32_t token);
  absl::Status NotAllowed(int32_t token) const;
  absl::StatusOr<TokenMask> Mask(MaskBuffer& buffer);
  TokenMask OnlyToken(int32_t token, MaskBuffer& buffer) const;

  const Vocabulary* vocabulary_;
  std::optional<MeteredMatcher> matcher_;
  std::vector<int32_t> forced_prefix_;
  std::optional<int64_t> thinking_budget_;
  std::vector<uint32_t> reasoning_mask_;  // empty: no bans
  int32_t end_of_thinking_ = -1;
  State state_;
};

}  // namespace baton::engine
