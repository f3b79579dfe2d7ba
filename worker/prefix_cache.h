#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "common/digest.h"
#include "common/ids.h"
#include "engine/pages/page_pool.h"
#include "proto/wire.h"

namespace baton::worker {

// What a prompt finds: its first `pages` and the tail taken at their end. Empty: nothing usable.
struct PrefixMatch {
  engine::PageLease pages;
  std::shared_ptr<const std::vector<std::byte>> tail;
  int tokens() const { return pages.size() * kPageTokens; }
};

// Full pages by name (contracts.md 1.5), and boundary tails in host memory by the name of the page
// they follow. Both are evicted least recently used first; within one prompt the last page goes
// first, so that what is left is always a prefix: the parent of a cached page is cached. A page
// carries the sealed digest of its payload (contracts.md 3.5). Engine thread.
class PrefixCache {
 public:
  // `secret` is the pool's own, drawn at start.
  PrefixCache(engine::PagePool& pool, const LayoutId& layout, const Secret& secret,
              uint64_t max_tail_bytes);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest run of pages from the start that ends at a kept tail, `max_pages` at most (a prompt
  // needs one token to compute).
  PrefixMatch Lookup(std::span<const PageName> names, int max_pages);
  // Takes the digests of a match's pages [begin, end) again, before they are computed upon or sent.
  // False: a page no longer holds what was put into it; that page and all that hangs on it are gone
  // from the cache, and the prompt has to look again. About 0.2 ms a real page on one core.
  bool Check(std::span<const PageName> names, const PrefixMatch& match, size_t begin = 0,
             size_t end = SIZE_MAX);
  // Pages that Check found rotten since the last call; others may still hold them.
  std::vector<PageId> TakeRotten() { return std::exchange(rotten_pages_, {}); }
  // A prompt starts with this match: a hit or a miss.
  void Count(const PrefixMatch& match);
  // The full pages of one sequence from its start, with their names. Those from `first_new` on have
  // just been closed and are sealed as they are; those before it are only marked as used: one that
  // was dropped as rotten must not come back under a new seal. A name that is here already keeps
  // its older page; a page whose parent is not here is not taken.
  void AddPages(std::span<const PageName> names, std::span<const PageId> pages,
                size_t first_new = 0);
  bool HasPage(const PageName& name) const { return pages_.contains(name); }
  bool HasTail(const PageName& name) const { return tails_.contains(name); }
  // Kept only beside its page and within the byte limit.
  void AddTail(const PageName& name, std::vector<std::byte> tail);
  // Gives back pages that only the cache holds until the pool has `free_pages` free; false when it
  // cannot.
  bool MakeRoom(int free_pages);

  // Forgets all pages and tails; sequences keep those that they hold.
  void Clear();

  // Everything, for a new session: parts of at most kMaxCacheNames, the last one marked. Never
  // empty.
  std::vector<wire::CacheEvents> Snapshot() const;
  // What changed since the last call, for every session; empty when nothing did.
  std::vector<wire::CacheEvents> TakeDelta();

  size_t num_pages() const { return pages_.size(); }
  size_t num_tails() const { return tails_.size(); }
  uint64_t tail_bytes() const { return tail_bytes_; }
  uint64_t hits() const { return hits_; }
  uint64_t misses() const { return misses_; }
  uint64_t rotten() const { return rotten_; }

 private:
  struct PageEntry {
    PageId page = 0;
    PageName parent;       // of the page before it; zero: it is the first
    int num_children = 0;  // cached pages that follow it
    Digest128 sealed;
    std::list<PageName>::iterator used;
  };
  struct TailEntry {
    std::shared_ptr<const std::vector<std::byte>> bytes;
    std::list<PageName>::iterator used;
  };
  void Touch(PageEntry& entry);
  void AddPage(const PageName& name, const PageName& parent, PageId page, const Digest128& seal);
  absl::StatusOr<std::vector<Digest128>> Seals(std::span<const PageName> names,
                                               std::span<const PageId> pages) const;
  void DropWithDescendants(const PageName& name);
  void DropTail(const PageName& name);
  void Forget(const PageName& name);
  void LimitTails();
  static std::vector<wire::CacheEvents> Parts(std::span<const PageName> added,
                                              std::span<const PageName> removed);

  engine::PagePool& pool_;
  const LayoutId layout_;
  const Secret secret_;
  const uint64_t max_tail_bytes_;
  std::unordered_map<PageName, PageEntry> pages_;
  std::unordered_map<PageName, TailEntry> tails_;
  std::list<PageName> page_order_, tail_order_;  // most recently used first
  uint64_t tail_bytes_ = 0;
  uint64_t generation_ = 0;
  uint64_t hits_ = 0, misses_ = 0, rotten_ = 0;
  std::vector<PageId> rotten_pages_;
  std::unordered_set<PageName> added_, removed_;  // since the last delta
};

}  // namespace baton::worker
