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

namespace baton::engine {

struct GrammarCounters {
  uint64_t compiled = 0;
  uint64_t reused = 0;
  uint64_t refused = 0;
  absl::Duration compile_time;
  size_t bytes = 0;  // kept
};

// Grammars compiled once each, the last used of them kept: many requests come with the same schema,
// and each request comes to a prefill and to a decode worker. Compiles outside its lock. Any
// thread.
class GrammarCache {
 public:
  static constexpr size_t kMaxBytes = size_t{64} << 20;

  // Both outlive it. What is kept takes about `max_bytes` at most.
  GrammarCache(const Vocabulary& vocabulary, const Clock& clock, size_t max_bytes = kMaxBytes)
      : vocabulary_(vocabulary), clock_(clock), max_bytes_(max_bytes) {}

  // A matcher at the grammar's start, whose first mask costs little. An error:
  // CheckGrammar's.
  absl::StatusOr<Matcher> Get(std::string_view grammar);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  GrammarCounters counters() const;

 private:
  struct Entry {
    std::string grammar;
    std::shared_ptr<const Matcher> matcher;  // what a request's text needs stays with its copy
    size_t bytes = 0;
  };

  std::shared_ptr<const Matcher> Find(std::string_view grammar);
  void Keep(Entry entry);

  const Vocabulary& vocabulary_;
  const Clock& clock_;
  const size_t max_bytes_;
  mutable Mutex mutex_;
  std::list<Entry> entries_ GUARDED_BY(mutex_);  // the last used first
  GrammarCounters counters_ GUARDED_BY(mutex_);
};

}  // namespace baton::engine
