#include "router/openai/phase_plan.h"

#include <algorithm>
#include <utility>

namespace baton::router {
namespace {

void Ban(int32_t token, SamplingSpec& sampling) {
  std::vector<int32_t> word = {token};
  auto& words = sampling.bad_words;
  if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(std::move(word));
}

}  // namespace

PhasePlan::PhasePlan(ForcedOutput forced, const MarkupIds& markup, bool starts_in_reasoning,
                     int64_t max_tokens)
    : wanted_(std::move(forced)), markup_(markup), max_tokens_(max_tokens) {
  if (!wanted_.is_any()) return;
  const bool has_budget = wanted_.thinking_budget.value_or(1) > 0;
  if (starts_in_reasoning && has_budget) {
    phase_ = Phase::kReasoning;
  } else {
    Force(/*ends_reasoning=*/starts_in_reasoning);
  }
}

void PhasePlan::Force(bool ends_reasoning) {
  forced_now_.clear();
  if (ends_reasoning) forced_now_.push_back(markup_.think_close);
  forced_now_.insert(forced_now_.end(), wanted_.call_prefix.begin(), wanted_.call_prefix.end());
}

void PhasePlan::Apply(int64_t num_done, GenerateRequest& request) const {
  FinishRules& finish = request.finish;
  finish.max_tokens = NumLeft(num_done);
  finish.min_tokens =
      std::max<int64_t>(0, finish.min_tokens - num_done - static_cast<int64_t>(forced_now_.size()));
  if (phase_ == Phase::kReasoning && wanted_.thinking_budget)
    finish.max_tokens = std::min(finish.max_tokens, *wanted_.thinking_budget);
  finish.min_tokens = std::min(finish.min_tokens, finish.max_tokens);
  if (wanted_.call_prefix.empty()) return;
  // A call must come: no end before it. The router ends the choice where the block is closed.
  std::erase(finish.stop_tokens, markup_.eos);
  Ban(markup_.eos, request.sampling);
  if (phase_ != Phase::kReasoning) return;
  Ban(markup_.dsml, request.sampling);
  auto& stops = finish.stop_tokens;
  const auto place = std::lower_bound(stops.begin(), stops.end(), markup_.think_close);
  if (place == stops.end() || *place != markup_.think_close)
    stops.insert(place, markup_.think_close);
  finish.min_tokens = 0;  // it would ban </think>
}

bool PhasePlan::Advance(const ChoiceFinished& end, bool is_in_reasoning, int64_t num_done) {
  if (phase_ != Phase::kReasoning || num_done >= max_tokens_) return false;
  const bool ended_reasoning =
      end.reason == FinishReason::kStop && end.stop_token == markup_.think_close;
  const bool is_spent = end.reason == FinishReason::kLength;
  if (!is_spent && (!ended_reasoning || wanted_.call_prefix.empty())) return false;
  phase_ = Phase::kAnswer;
  Force(/*ends_reasoning=*/is_spent && is_in_reasoning);
  return true;
}

}  // namespace baton::router
