#include "engine/grammar/grammar_cache.h"

#include <algorithm>
#include <utility>

namespace baton::engine {
namespace {

// A compiled grammar beside its state: rules and expressions, by byte of the text. 18 for lists of
// values to 139 for schemas of thousands of properties (heap before and after compiling).
constexpr size_t kBytesPerByte = 140;

}  // namespace

GrammarCounters GrammarCache::counters() const {
  MutexLock lock(mutex_);
  return counters_;
}

absl::StatusOr<Matcher> GrammarCache::Get(std::string_view grammar) {
  if (const std::shared_ptr<const Matcher> known = Find(grammar)) return known->Clone();
  const absl::Time start = clock_.Now();
  absl::StatusOr<Matcher> compiled = Matcher::CreateWithMask(vocabulary_, grammar);
  const absl::Duration took = clock_.Now() - start;
  std::shared_ptr<const Matcher> matcher;
  if (compiled.ok()) matcher = std::make_shared<const Matcher>(*std::move(compiled));
  {
    MutexLock lock(mutex_);
    counters_.compile_time += took;
    ++(matcher ? counters_.compiled : counters_.refused);
  }
  if (matcher == nullptr) return compiled.status();
  Keep({.grammar = std::string(grammar),
        .matcher = matcher,
        .bytes = matcher->StateBytes() + kBytesPerByte * grammar.size()});
  return matcher->Clone();
}

std::shared_ptr<const Matcher> GrammarCache::Find(std::string_view grammar) {
  MutexLock lock(mutex_);
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.grammar == grammar; });
  if (found == entries_.end()) return nullptr;
  ++counters_.reused;
  entries_.splice(entries_.begin(), entries_, found);
  return entries_.front().matcher;
}

void GrammarCache::Keep(Entry entry) {
  MutexLock lock(mutex_);
  const bool is_known = std::ranges::any_of(
      entries_, [&](const Entry& known) { return known.grammar == entry.grammar; });
  if (is_known || entry.bytes > max_bytes_) return;  // compiled twice at once, or too large
  counters_.bytes += entry.bytes;
  entries_.push_front(std::move(entry));
  while (counters_.bytes > max_bytes_) {
    counters_.bytes -= entries_.back().bytes;
    entries_.pop_back();
  }
}

}  // namespace baton::engine
