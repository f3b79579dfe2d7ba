#pragma once

#include <vector>

#include "engine/planning/step_planner.h"

namespace baton::engine {

// The sequences a planner was told of, in order of arrival. Value type; engine thread.
class SequenceBook {
 public:
  struct Item {
    SequenceFacts facts;
    bool is_paused = false;
    bool is_parked = false;
  };

  // CHECKs that a named sequence exists, and that an admitted one does not.
  void Apply(const EngineEvent& event);
  const std::vector<Item>& items() const { return items_; }

 private:
  Item& Find(SequenceId id);
  std::vector<Item> items_;
};

// Pages that hold `tokens` tokens.
constexpr int PagesFor(int64_t tokens) {
  return static_cast<int>((tokens + kPageTokens - 1) / kPageTokens);
}

// Grants `facts` what it lacks to own `pages` pages, from its booking and then from the budget;
// false (and nothing changed) when that is not there.
bool GrantPages(const SequenceFacts& facts, int pages, StepBudget& budget, StepPlan& plan);

}  // namespace baton::engine
