#include "engine/planning/sequence_book.h"

#include <algorithm>
#include <type_traits>

#include "common/check.h"

namespace baton::engine {

SequenceBook::Item& SequenceBook::Find(SequenceId id) {
  const auto found = std::find_if(items_.begin(), items_.end(),
                                  [id](const Item& item) { return item.facts.id == id; });
  CHECK(found != items_.end());
  return *found;
}

void SequenceBook::Apply(const EngineEvent& event) {
  std::visit(
      [this](const auto& e) {
        using E = std::decay_t<decltype(e)>;
        if constexpr (std::is_same_v<E, Admitted>) {
          CHECK(std::none_of(items_.begin(), items_.end(),
                             [&](const Item& item) { return item.facts.id == e.facts.id; }));
          items_.push_back({.facts = e.facts});
        } else if constexpr (std::is_same_v<E, Released>) {
          items_.erase(items_.begin() + (&Find(e.sequence) - items_.data()));
        } else if constexpr (std::is_same_v<E, Paused>) {
          Find(e.sequence).is_paused = true;
        } else {
          Item& item = Find(e.facts.id);
          item.facts = e.facts;
          if constexpr (std::is_same_v<E, Harvested>) item.is_paused = false;
          if constexpr (std::is_same_v<E, Parked>) item.is_parked = true;
          if constexpr (std::is_same_v<E, Resumed>) item.is_parked = false;
        }
      },
      event);
}

bool GrantPages(const SequenceFacts& facts, int pages, StepBudget& budget, StepPlan& plan) {
  const int lacking = pages - facts.pages;
  if (lacking <= 0) return true;
  const int from_pool = std::max(0, lacking - facts.booked);
  if (from_pool > budget.free_pages) return false;
  budget.free_pages -= from_pool;
  plan.grants.push_back({.sequence = facts.id, .pages = lacking});
  return true;
}

}  // namespace baton::engine
