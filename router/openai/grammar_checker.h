#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"

#include "common/cpu_pool.h"
#include "common/hash.h"
#include "common/mutex.h"

namespace baton::router {

// Whether workers can follow a grammar. Each is compiled once, on threads of its own, and the
// verdict kept: a request with a known one waits for nothing, and one that takes long holds up at
// most its like. Other errors than kInvalidArgument are no verdicts on the grammar: the next
// request with it has it compiled again. Any thread.
class GrammarChecker {
 public:
  struct Limits {
    int threads = 2;
    size_t max_waiting = 64;     // requests, for a verdict
    size_t max_verdicts = 4096;  // kept, the last used; about 1 KB each at most
  };
  // CheckGrammar of the model's vocabulary.
  using Check = std::function<absl::Status(std::string_view grammar)>;
  using Done = std::function<void(const absl::Status& verdict)>;

  GrammarChecker(Check check, const Limits& limits);
  ~GrammarChecker();  // Stop

  // Drops what waits and takes nothing more.
  void Stop();

  // None: it is not known.
  std::optional<absl::Status> Find(std::string_view grammar);
  // Calls `done` on another thread, or before it returns. False, and never, where too many wait.
  bool Ask(std::string grammar, Done done);

  size_t waiting() const;
  uint64_t hits() const { return hits_; }
  uint64_t misses() const { return misses_; }

 private:
  struct Verdict {
    Sha256Bytes key;
    absl::Status status;
  };

  const absl::Status* FindLocked(const Sha256Bytes& key) REQUIRES_LOCK(mutex_);
  void KeepLocked(const Sha256Bytes& key, const absl::Status& verdict) REQUIRES_LOCK(mutex_);
  void Run(const Sha256Bytes& key, const std::string& grammar);

  const Check check_;
  const Limits limits_;
  mutable Mutex mutex_;
  std::list<Verdict> verdicts_ GUARDED_BY(mutex_);  // the last used first
  std::map<Sha256Bytes, std::list<Verdict>::iterator> by_key_ GUARDED_BY(mutex_);
  std::map<Sha256Bytes, std::vector<Done>> waiting_ GUARDED_BY(mutex_);  // being compiled
  size_t num_waiting_ GUARDED_BY(mutex_) = 0;
  std::atomic<uint64_t> hits_ = 0, misses_ = 0;
  CpuPool pool_;  // last: its threads use all of it
};

}  // namespace baton::router
