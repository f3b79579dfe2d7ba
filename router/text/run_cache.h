#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/mutex.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// Remembers the ids of text runs, so that the history an agent sends again with every turn is not
// tokenized again. A run is what stands between two special tokens of a prompt: its ids depend on
// nothing else. Any thread; a lock per shard, because lookups move entries to the front.
class RunCache {
 public:
  // Of ids and bookkeeping; the least recently used runs go first. 0: nothing is kept.
  explicit RunCache(size_t max_bytes) : max_shard_bytes_(max_bytes / kShards) {}

  // As Tokenizer::EncodeSegments, with runs of at least kMinRunBytes taken from here if they are
  // known and kept if not.
  std::vector<TokenId> EncodeSegments(const Tokenizer& tokenizer,
                                      std::span<const Segment> segments);

  static constexpr size_t kMinRunBytes = 256;  // below it a look-up costs more than it saves
  size_t bytes() const;
  uint64_t hits() const;
  uint64_t misses() const;

 private:
  static constexpr size_t kShards = 8;
  // SHA-256 of the run, cut: two runs never meet in one.
  using Key = std::array<uint64_t, 2>;
  struct KeyHash {
    size_t operator()(const Key& key) const { return static_cast<size_t>(key[0]); }
  };
  using Ids = std::shared_ptr<const std::vector<TokenId>>;
  struct Entry {
    Key key;
    Ids ids;
  };
  struct Shard {
    mutable Mutex mutex;
    std::list<Entry> entries GUARDED_BY(mutex);  // the most recently used first
    std::unordered_map<Key, std::list<Entry>::iterator, KeyHash> by_key GUARDED_BY(mutex);
    size_t bytes GUARDED_BY(mutex) = 0;
    uint64_t hits GUARDED_BY(mutex) = 0, misses GUARDED_BY(mutex) = 0;
  };
  static size_t BytesOf(const Entry& entry);
  Ids Find(const Key& key);
  void Keep(const Key& key, Ids ids);
  void AppendRun(const Tokenizer& tokenizer, const std::string& run, std::vector<TokenId>& out);
  Shard& ShardOf(const Key& key) { return shards_[key[1] % kShards]; }

  const size_t max_shard_bytes_;
  std::array<Shard, kShards> shards_;
};

}  // namespace baton::router
