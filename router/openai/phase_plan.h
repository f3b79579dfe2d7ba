#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "router/plan/request.h"
#include "router/text/choice_output.h"

namespace baton::router {

// What a request wants the sampler to be made to emit (protocol.md 3.5, 4).
struct ForcedOutput {
  std::vector<int32_t> call_prefix;        // where the content begins; empty: nothing
  std::optional<int64_t> thinking_budget;  // reasoning tokens, then </think>
  bool is_any() const { return !call_prefix.empty() || thinking_budget.has_value(); }
};

// Forced output without masks in the engine: what is forced is appended to the prompt, and what
// follows is sampled by a further request. Noise depends on seed and position only (contracts.md
// 2.1), so the sampled tokens are those of one run. At most two requests per choice. Pure; one
// thread.
class PhasePlan {
 public:
  // `max_tokens`: of the whole choice, forced ones included.
  PhasePlan(ForcedOutput forced, const MarkupIds& markup, bool starts_in_reasoning,
            int64_t max_tokens);

  // Tokens of the answer that stand at the end of the present request's prompt.
  const std::vector<int32_t>& forced() const { return forced_now_; }
  // Whether a further request may follow the present one.
  bool may_advance() const { return phase_ == Phase::kReasoning; }
  // Limits, stop tokens and bans of the present request; `num_done` tokens of the choice came
  // before forced().
  void Apply(int64_t num_done, GenerateRequest& request) const;
  // The present request ended after `num_done` tokens of the choice. True: another one follows.
  bool Advance(const ChoiceFinished& end, bool is_in_reasoning, int64_t num_done);
  // What forced() may still show, given the limit; below zero: forced() must be cut.
  int64_t NumLeft(int64_t num_done) const {
    return max_tokens_ - num_done - static_cast<int64_t>(forced_now_.size());
  }

 private:
  enum class Phase : uint8_t { kReasoning, kAnswer };
  void Force(bool ends_reasoning);

  const ForcedOutput wanted_;
  const MarkupIds markup_;
  const int64_t max_tokens_;
  Phase phase_ = Phase::kAnswer;
  std::vector<int32_t> forced_now_;
};

}  // namespace baton::router
