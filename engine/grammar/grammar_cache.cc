#include "engine/grammar/grammar_cache.h"

#include <algorithm>
#include <utility>

namespace baton::engine {
namespace {

constexpr size_t kMaxEntries = 64;

}  // namespace

absl::StatusOr<Matcher> GrammarCache::Get(std::string_view grammar) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.grammar == grammar; });
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front().matcher.Clone();
  }
  const absl::Time start = clock_.Now();
  absl::StatusOr<Matcher> matcher = Matcher::Create(vocabulary_, grammar);
  counters_.compile_time += clock_.Now() - start;
  if (!matcher.ok()) {
    ++counters_.refused;
    return matcher.status();
  }
  ++counters_.compiled;
  if (entries_.size() == kMaxEntries) entries_.pop_back();
  entries_.push_front({.grammar = std::string(grammar), .matcher = *std::move(matcher)});
  return entries_.front().matcher.Clone();
}

}  // namespace baton::engine
