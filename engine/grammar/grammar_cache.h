#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/clock.h"
#include "common/grammar.h"
#include "common/mutex.h"
#include "engine/grammar/grammar_memory.h"
#include "engine/grammar/metered_matcher.h"

namespace baton::engine {

struct GrammarLimits {
  size_t memory_bytes = size_t{2} << 30;  // of all grammars and matchers, kept ones included
  size_t cache_bytes = size_t{64} << 20;  // kept
};

struct GrammarCounters {
  uint64_t compiled = 0;
  uint64_t reused = 0;
  uint64_t refused = 0;   // the grammar's fault
  uint64_t failures = 0;  // ours
  absl::Duration compile_time;
  size_t cache_bytes = 0;
  size_t memory_bytes = 0;       // of all, kept ones included
  uint64_t memory_refusals = 0;  // matchers that had no room, or no more
};

// Grammars compiled once each, the last used of them kept: many requests come with the same schema,
// and each request comes to a prefill and to a decode worker. Bounds what they and their matchers
// take together. Compiles outside its lock. Any thread.
class GrammarCache {
 public:
  // Both outlive it, and it outlives its matchers.
  GrammarCache(const Vocabulary& vocabulary, const Clock& clock, const GrammarLimits& limits = {})
      : vocabulary_(vocabulary), clock_(clock), limits_(limits), memory_(limits.memory_bytes) {}

  // A matcher at the grammar's start, whose first mask costs little; `room`, of Room, is used
  // first. Errors: CheckGrammar's; kResourceExhausted: there is no memory for it.
  absl::StatusOr<MeteredMatcher> Get(std::string_view grammar, GrammarCharge room);
  absl::StatusOr<MeteredMatcher> Get(std::string_view grammar) { return Get(grammar, Room()); }
  GrammarCharge Room() { return GrammarCharge(memory_); }
  // What Get takes beside its matcher: 0 for a grammar that is kept.
  size_t BytesToCompile(std::string_view grammar) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  GrammarCounters counters() const;

 private:
  struct Entry {
    std::string grammar;
    std::shared_ptr<const MeteredMatcher> matcher;  // a text's own needs stay with its copy
    size_t bytes = 0;
  };

  absl::StatusOr<Matcher> Compile(std::string_view grammar);
  std::shared_ptr<const MeteredMatcher> Find(std::string_view grammar);
  void Keep(Entry entry);

  const Vocabulary& vocabulary_;
  const Clock& clock_;
  const GrammarLimits limits_;
  GrammarMemory memory_;
  mutable Mutex mutex_;
  std::list<Entry> entries_ GUARDED_BY(mutex_);  // the last used first
  GrammarCounters counters_ GUARDED_BY(mutex_);
};

}  // namespace baton::engine
