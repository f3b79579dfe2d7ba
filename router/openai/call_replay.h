#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "router/text/chat_encoder.h"
#include "router/text/tool_call_parser.h"

namespace baton::router {

// Keeps sampled tool call blocks, so that a conversation that comes back with the calls as JSON is
// rendered with the very bytes the model saw, and its cached pages are found (protocol.md 2.6). An
// optimisation: a miss renders the JSON. Any thread; a lock, because readers move entries to the
// front and are on every I/O thread.
class CallReplay {
 public:
  struct Limits {
    size_t max_bytes = 256 << 20;
    absl::Duration max_age = absl::Hours(1);
  };
  CallReplay(const Clock& clock, Limits limits) : clock_(clock), limits_(limits) {}

  // `ids` and `calls` in the order of the block. A block above a quarter of the limit is not kept.
  void Keep(const std::vector<std::string>& ids, std::vector<ParsedCall> calls, SampledBlock block);
  // Puts the sampled block into each assistant message whose calls are exactly those of one block:
  // the same ids in order, equal names, arguments equal as JSON.
  void Restore(std::vector<ChatMessage>& messages);

  size_t bytes() const;

 private:
  struct Kept {
    std::vector<std::string> ids;
    std::vector<ParsedCall> calls;
    SampledBlock block;
    absl::Time at;
    size_t bytes = 0;
  };
  using Entries = std::list<std::shared_ptr<const Kept>>;
  static bool Matches(const Kept& kept, const ChatMessage& message);
  std::shared_ptr<const Kept> Find(const std::string& first_id);
  void Drop(Entries::iterator entry) REQUIRES_LOCK(mutex_);
  void Trim() REQUIRES_LOCK(mutex_);

  const Clock& clock_;
  const Limits limits_;
  mutable Mutex mutex_;
  Entries entries_ GUARDED_BY(mutex_);  // the most recently used first
  std::unordered_map<std::string, Entries::iterator> by_id_ GUARDED_BY(mutex_);  // by the first id
  size_t bytes_ GUARDED_BY(mutex_) = 0;
};

}  // namespace baton::router
