#include "engine/grammar/grammar_cache.h"

#include <algorithm>
#include <utility>

#include "common/status.h"

namespace baton::engine {
namespace {

// A compiled grammar beside its state: rules and expressions, by byte of the text. 18 for lists of
// values to 139 for schemas of thousands of properties (heap before and after compiling).
constexpr size_t kBytesPerByte = 140;

}  // namespace

GrammarCounters GrammarCache::counters() const {
  MutexLock lock(mutex_);
  GrammarCounters counters = counters_;
  counters.memory_bytes = memory_.used();
  counters.memory_refusals = memory_.refusals();
  return counters;
}

absl::StatusOr<Matcher> GrammarCache::Compile(std::string_view grammar) {
  const absl::Time start = clock_.Now();
  absl::StatusOr<Matcher> compiled = Matcher::CreateWithMask(vocabulary_, grammar);
  const absl::Duration took = clock_.Now() - start;
  MutexLock lock(mutex_);
  counters_.compile_time += took;
  if (compiled.ok())
    ++counters_.compiled;
  else
    ++(absl::IsInvalidArgument(compiled.status()) ? counters_.refused : counters_.failures);
  return compiled;
}

absl::StatusOr<MeteredMatcher> GrammarCache::Get(std::string_view grammar, GrammarCharge room) {
  if (const std::shared_ptr<const MeteredMatcher> known = Find(grammar))
    return known->Clone(std::move(room));
  const size_t rules_bytes = kBytesPerByte * grammar.size();
  auto rules = std::make_shared<GrammarCharge>(room.Split(rules_bytes));
  RETURN_IF_ERROR(rules->Resize(rules_bytes));  // before seconds are spent on it
  ASSIGN_OR_RETURN(Matcher compiled, Compile(grammar));
  ASSIGN_OR_RETURN(MeteredMatcher matcher, MeteredMatcher::Create(std::move(compiled), rules,
                                                                  grammar.size(), std::move(room)));
  const size_t bytes = matcher.bytes() + rules->bytes();
  if (bytes > limits_.cache_bytes || matcher.bytes() > memory_.room()) return matcher;
  absl::StatusOr<MeteredMatcher> kept = matcher.Clone(Room());
  if (kept.ok()) {
    Keep({.grammar = std::string(grammar),
          .matcher = std::make_shared<const MeteredMatcher>(*std::move(kept)),
          .bytes = bytes});
  }
  return matcher;
}

size_t GrammarCache::BytesToCompile(std::string_view grammar) const {
  MutexLock lock(mutex_);
  const bool is_kept = std::ranges::find(entries_, grammar, &Entry::grammar) != entries_.end();
  return is_kept ? 0 : kBytesPerByte * grammar.size();
}

std::shared_ptr<const MeteredMatcher> GrammarCache::Find(std::string_view grammar) {
  MutexLock lock(mutex_);
  const auto found = std::ranges::find(entries_, grammar, &Entry::grammar);
  if (found == entries_.end()) return nullptr;
  ++counters_.reused;
  entries_.splice(entries_.begin(), entries_, found);
  return entries_.front().matcher;
}

void GrammarCache::Keep(Entry entry) {
  MutexLock lock(mutex_);
  const auto known = std::ranges::find(entries_, entry.grammar, &Entry::grammar);
  if (known != entries_.end()) return;  // compiled twice at once
  counters_.cache_bytes += entry.bytes;
  entries_.push_front(std::move(entry));
  while (counters_.cache_bytes > limits_.cache_bytes) {
    counters_.cache_bytes -= entries_.back().bytes;
    entries_.pop_back();
  }
}

}  // namespace baton::engine
