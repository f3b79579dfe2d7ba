#include "router/text/run_cache.h"

#include <cstring>
#include <iterator>
#include <utility>

#include "common/hash.h"

namespace baton::router {
namespace {

constexpr size_t kEntryOverhead = 192;  // list node, map node, control block and vector

}  // namespace

size_t RunCache::BytesOf(const Entry& entry) {
  return kEntryOverhead + sizeof(TokenId) * entry.ids->size();
}

RunCache::Ids RunCache::Find(const Key& key) {
  Shard& shard = ShardOf(key);
  const MutexLock lock(shard.mutex);
  const auto found = shard.by_key.find(key);
  if (found == shard.by_key.end()) {
    ++shard.misses;
    return nullptr;
  }
  ++shard.hits;
  shard.entries.splice(shard.entries.begin(), shard.entries, found->second);
  return found->second->ids;
}

void RunCache::Keep(const Key& key, Ids ids) {
  Entry entry = {.key = key, .ids = std::move(ids)};
  const size_t bytes = BytesOf(entry);
  if (bytes > max_shard_bytes_ / 2) return;  // it would push half of the others out
  Shard& shard = ShardOf(key);
  const MutexLock lock(shard.mutex);
  if (shard.by_key.contains(key)) return;  // another thread was first
  shard.entries.push_front(std::move(entry));
  shard.by_key[key] = shard.entries.begin();
  shard.bytes += bytes;
  while (shard.bytes > max_shard_bytes_) {
    const auto last = std::prev(shard.entries.end());
    shard.bytes -= BytesOf(*last);
    shard.by_key.erase(last->key);
    shard.entries.erase(last);
  }
}

void RunCache::AppendRun(const Tokenizer& tokenizer, const std::string& run,
                         std::vector<TokenId>& out) {
  if (run.size() < kMinRunBytes || max_shard_bytes_ == 0) {
    const std::vector<TokenId> ids = tokenizer.Encode(run, SpecialTokens::kPlain);
    out.insert(out.end(), ids.begin(), ids.end());
    return;
  }
  const Sha256Bytes hash = Sha256Of(run);
  Key key;
  static_assert(sizeof(key) <= sizeof(hash));
  std::memcpy(key.data(), hash.data(), sizeof(key));
  Ids ids = Find(key);
  if (ids == nullptr) {
    ids =
        std::make_shared<const std::vector<TokenId>>(tokenizer.Encode(run, SpecialTokens::kPlain));
    Keep(key, ids);
  }
  out.insert(out.end(), ids->begin(), ids->end());
}

std::vector<TokenId> RunCache::EncodeSegments(const Tokenizer& tokenizer,
                                              std::span<const Segment> segments) {
  std::vector<TokenId> out;
  std::string joined;  // adjacent texts are one run
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].is_special()) {
      out.push_back(segments[i].special);
      continue;
    }
    const bool goes_on = i + 1 < segments.size() && !segments[i + 1].is_special();
    if (joined.empty() && !goes_on) {
      AppendRun(tokenizer, segments[i].text, out);
      continue;
    }
    joined += segments[i].text;
    if (goes_on) continue;
    AppendRun(tokenizer, joined, out);
    joined.clear();
  }
  return out;
}

size_t RunCache::bytes() const {
  size_t sum = 0;
  for (const Shard& shard : shards_) {
    const MutexLock lock(shard.mutex);
    sum += shard.bytes;
  }
  return sum;
}

uint64_t RunCache::hits() const {
  uint64_t sum = 0;
  for (const Shard& shard : shards_) {
    const MutexLock lock(shard.mutex);
    sum += shard.hits;
  }
  return sum;
}

uint64_t RunCache::misses() const {
  uint64_t sum = 0;
  for (const Shard& shard : shards_) {
    const MutexLock lock(shard.mutex);
    sum += shard.misses;
  }
  return sum;
}

}  // namespace baton::router
