#include "worker/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace baton::worker {

PrefixCache::PrefixCache(engine::PagePool& pool, const LayoutId& layout, const Secret& secret,
                         uint64_t max_tail_bytes)
    : pool_(pool), layout_(layout), secret_(secret), max_tail_bytes_(max_tail_bytes) {}

PrefixCache::~PrefixCache() {
  for (const auto& [name, entry] : pages_) pool_.Uncache(entry.page);
}

void PrefixCache::Touch(PageEntry& entry) {
  page_order_.splice(page_order_.begin(), page_order_, entry.used);
}

PrefixMatch PrefixCache::Lookup(std::span<const PageName> names, int max_pages) {
  const size_t limit = std::min(names.size(), static_cast<size_t>(std::max(max_pages, 0)));
  size_t held = 0;
  while (held < limit && pages_.contains(names[held])) ++held;
  while (held > 0 && !tails_.contains(names[held - 1])) --held;
  if (held == 0) return {};
  std::vector<PageId> ids;
  for (size_t i = 0; i < held; ++i) ids.push_back(pages_.at(names[i]).page);
  for (size_t i = held; i-- > 0;) Touch(pages_.at(names[i]));
  TailEntry& tail = tails_.at(names[held - 1]);
  tail_order_.splice(tail_order_.begin(), tail_order_, tail.used);
  return {.pages = pool_.ShareIds(ids), .tail = tail.bytes};
}

// contracts.md 3.5: chunk 0 is `u64 bytes | name 16 | layout_id 8`.
absl::StatusOr<std::vector<Digest128>> PrefixCache::Seals(std::span<const PageName> names,
                                                          std::span<const PageId> pages) const {
  const uint64_t bytes = pool_.payload_bytes();
  std::vector<std::vector<std::byte>> headers;
  for (const PageName& name : names) {
    std::vector<std::byte>& header =
        headers.emplace_back(sizeof(bytes) + sizeof(name.bytes) + sizeof(layout_.bytes));
    std::memcpy(header.data(), &bytes, sizeof(bytes));
    std::memcpy(header.data() + sizeof(bytes), name.bytes.data(), sizeof(name.bytes));
    std::memcpy(header.data() + sizeof(bytes) + sizeof(name.bytes), layout_.bytes.data(),
                sizeof(layout_.bytes));
  }
  return pool_.Digests(secret_, pages, headers);
}

bool PrefixCache::Check(std::span<const PageName> names, const PrefixMatch& match, size_t begin,
                        size_t end) {
  end = std::min(end, static_cast<size_t>(match.pages.size()));
  if (begin >= end) return true;
  const std::span<const PageName> checked = names.subspan(begin, end - begin);
  const std::span<const PageId> pages = match.pages.ids().subspan(begin, end - begin);
  const absl::StatusOr<std::vector<Digest128>> seals = Seals(checked, pages);
  if (!seals.ok()) return false;  // the pool keeps it, and the worker ends
  for (size_t i = 0; i < checked.size(); ++i) {
    const auto it = pages_.find(checked[i]);
    if (it == pages_.end() || it->second.page != pages[i]) return false;  // replaced meanwhile
    if ((*seals)[i] == it->second.sealed) continue;
    ++rotten_;
    rotten_pages_.push_back(pages[i]);
    DropWithDescendants(checked[i]);  // with it the rest of the match
    return false;
  }
  return true;
}

// What was computed upon a rotten page may be wrong as well, whichever prompt it was for.
void PrefixCache::DropWithDescendants(const PageName& name) {
  std::unordered_multimap<PageName, PageName> children;
  for (const auto& [child, entry] : pages_) children.emplace(entry.parent, child);
  std::vector<PageName> doomed = {name};
  for (size_t i = 0; i < doomed.size(); ++i) {
    const auto [begin, end] = children.equal_range(doomed[i]);
    for (auto it = begin; it != end; ++it) doomed.push_back(it->second);
  }
  for (size_t i = doomed.size(); i-- > 0;) {
    pool_.Uncache(pages_.at(doomed[i]).page);
    Forget(doomed[i]);
  }
}

void PrefixCache::Count(const PrefixMatch& match) { ++(match.pages.size() > 0 ? hits_ : misses_); }

void PrefixCache::AddPages(std::span<const PageName> names, std::span<const PageId> pages,
                           size_t first_new) {
  const size_t end = std::min(names.size(), pages.size());
  // One page has one name, and the older page of a name stays.
  std::vector<size_t> added;
  std::vector<PageName> new_names;
  std::vector<PageId> new_pages;
  for (size_t i = first_new; i < end; ++i) {
    if (pages_.contains(names[i]) || pool_.IsCached(pages[i])) continue;
    added.push_back(i);
    new_names.push_back(names[i]);
    new_pages.push_back(pages[i]);
  }
  const absl::StatusOr<std::vector<Digest128>> seals = Seals(new_names, new_pages);
  for (size_t n = 0; seals.ok() && n < added.size(); ++n) {
    const size_t i = added[n];
    AddPage(names[i], i > 0 ? names[i - 1] : PageName{}, pages[i], (*seals)[n]);
  }
  for (size_t i = end; i-- > 0;)
    if (const auto it = pages_.find(names[i]); it != pages_.end()) Touch(it->second);
}

void PrefixCache::AddPage(const PageName& name, const PageName& parent, PageId page,
                          const Digest128& seal) {
  if (parent != PageName{}) {
    const auto before = pages_.find(parent);
    if (before == pages_.end()) return;
    ++before->second.num_children;
  }
  pool_.Cache(page);
  page_order_.push_front(name);
  pages_.emplace(name, PageEntry{.page = page,
                                 .parent = parent,
                                 .num_children = 0,
                                 .sealed = seal,
                                 .used = page_order_.begin()});
  if (removed_.erase(name) == 0) added_.insert(name);
}

void PrefixCache::AddTail(const PageName& name, std::vector<std::byte> tail) {
  if (!pages_.contains(name) || tail.size() > max_tail_bytes_) return;
  DropTail(name);
  tail_bytes_ += tail.size();
  tail_order_.push_front(name);
  tails_[name] = {.bytes = std::make_shared<const std::vector<std::byte>>(std::move(tail)),
                  .used = tail_order_.begin()};
  LimitTails();
}

void PrefixCache::DropTail(const PageName& name) {
  auto it = tails_.find(name);
  if (it == tails_.end()) return;
  tail_bytes_ -= it->second.bytes->size();
  tail_order_.erase(it->second.used);
  tails_.erase(it);
}

void PrefixCache::LimitTails() {
  while (tail_bytes_ > max_tail_bytes_) {
    const PageName oldest = tail_order_.back();
    DropTail(oldest);
  }
}

void PrefixCache::Forget(const PageName& name) {
  auto it = pages_.find(name);
  if (const auto parent = pages_.find(it->second.parent); parent != pages_.end())
    --parent->second.num_children;
  page_order_.erase(it->second.used);
  pages_.erase(it);
  DropTail(name);
  if (added_.erase(name) == 0) removed_.insert(name);
}

bool PrefixCache::MakeRoom(int free_pages) {
  const engine::PoolCounts now = pool_.Counts();
  if (now.free + now.cached < free_pages) return false;  // nothing is forgotten for nothing
  auto it = page_order_.end();
  while (pool_.Counts().free < free_pages && pool_.Counts().cached > 0 &&
         it != page_order_.begin()) {
    --it;
    const PageName name = *it;
    const PageEntry& entry = pages_.at(name);
    if (pool_.leases(entry.page) > 0) continue;  // a sequence holds it: no room gained
    if (entry.num_children > 0) {  // held by one that has a copy of this page to itself
      DropWithDescendants(name);
      it = page_order_.end();
      continue;
    }
    pool_.Uncache(entry.page);
    ++it;
    Forget(name);
  }
  return pool_.Counts().free >= free_pages;
}

void PrefixCache::Clear() {
  while (!page_order_.empty()) DropWithDescendants(page_order_.back());
}

std::vector<wire::CacheEvents> PrefixCache::Parts(std::span<const PageName> added,
                                                  std::span<const PageName> removed) {
  std::vector<wire::CacheEvents> parts;
  do {
    wire::CacheEvents part;
    part.part = static_cast<uint32_t>(parts.size());
    const size_t num_added = std::min(added.size(), static_cast<size_t>(wire::kMaxCacheNames));
    part.added.assign(added.begin(), added.begin() + static_cast<std::ptrdiff_t>(num_added));
    added = added.subspan(num_added);
    const size_t num_removed =
        std::min(removed.size(), static_cast<size_t>(wire::kMaxCacheNames) - num_added);
    part.removed.assign(removed.begin(),
                        removed.begin() + static_cast<std::ptrdiff_t>(num_removed));
    removed = removed.subspan(num_removed);
    parts.push_back(std::move(part));
  } while (!added.empty() || !removed.empty());
  parts.back().is_last = true;
  return parts;
}

std::vector<wire::CacheEvents> PrefixCache::Snapshot() const {
  std::vector<PageName> names;
  names.reserve(pages_.size());
  for (const auto& [name, entry] : pages_) names.push_back(name);
  std::vector<wire::CacheEvents> parts = Parts(names, {});
  for (wire::CacheEvents& part : parts) {
    part.generation = generation_;
    part.is_snapshot = true;
  }
  return parts;
}

std::vector<wire::CacheEvents> PrefixCache::TakeDelta() {
  if (added_.empty() && removed_.empty()) return {};
  const std::vector<PageName> added(added_.begin(), added_.end());
  const std::vector<PageName> removed(removed_.begin(), removed_.end());
  added_.clear();
  removed_.clear();
  ++generation_;
  std::vector<wire::CacheEvents> parts = Parts(added, removed);
  for (wire::CacheEvents& part : parts) part.generation = generation_;
  return parts;
}

}  // namespace baton::worker
