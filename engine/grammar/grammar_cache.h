#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/clock.h"
#include "common/grammar.h"

namespace baton::engine {

struct GrammarCounters {
  uint64_t compiled = 0;
  uint64_t refused = 0;
  absl::Duration compile_time;
};

// The grammars in use, compiled once each: many requests come with the same schema, and a request
// comes twice, to be checked and to be run. Engine thread.
class GrammarCache {
 public:
  // Both outlive it.
  GrammarCache(const Vocabulary& vocabulary, const Clock& clock)
      : vocabulary_(vocabulary), clock_(clock) {}

  // A matcher at the grammar's start. kInvalidArgument: CheckGrammar's words.
  absl::StatusOr<Matcher> Get(std::string_view grammar);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  const GrammarCounters& counters() const { return counters_; }

 private:
  struct Entry {
    std::string grammar;
    Matcher matcher;  // never moved on: what a request's text needs stays with its copy
  };

  const Vocabulary& vocabulary_;
  const Clock& clock_;
  std::list<Entry> entries_;  // the last used first
  GrammarCounters counters_;
};

}  // namespace baton::engine
