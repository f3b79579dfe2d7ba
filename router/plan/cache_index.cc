#include "router/plan/cache_index.h"

#include <utility>

namespace baton::router {

void CacheIndex::Apply(const wire::CacheEvents& part) {
  const bool continues = pending_ && pending_->generation == part.generation &&
                         pending_->is_snapshot == part.is_snapshot &&
                         pending_->next_part == part.part;
  if (!continues) {
    pending_.reset();
    if (part.part != 0) return;
    pending_.emplace();
    pending_->generation = part.generation;
    pending_->is_snapshot = part.is_snapshot;
  }
  pending_->next_part = part.part + 1;
  pending_->added.insert(pending_->added.end(), part.added.begin(), part.added.end());
  pending_->removed.insert(pending_->removed.end(), part.removed.begin(), part.removed.end());
  if (part.is_last) Commit();
}

void CacheIndex::Commit() {
  const Pending batch = std::move(*pending_);
  pending_.reset();
  if (batch.is_snapshot) names_.clear();
  names_.insert(batch.added.begin(), batch.added.end());
  for (const PageName& name : batch.removed) names_.erase(name);
}

void CacheIndex::Clear() {
  names_.clear();
  pending_.reset();
}

int CacheIndex::Overlap(std::span<const PageName> names) const {
  int held = 0;
  for (const PageName& name : names) {
    if (!names_.contains(name)) break;
    ++held;
  }
  return held;
}

}  // namespace baton::router
