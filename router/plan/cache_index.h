#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

#include "common/ids.h"
#include "proto/wire.h"

namespace baton::router {

// Which pages one worker's prefix cache holds, from its CacheEvents (contracts.md 5). Planner
// thread.
class CacheIndex {
 public:
  // Applies a part. A snapshot replaces everything once its last part is in, a delta waits for its
  // last part likewise; a part that continues nothing drops what it interrupts.
  void Apply(const wire::CacheEvents& part);
  void Clear();

  // How many of `names`, from the first on, are held without a gap.
  int Overlap(std::span<const PageName> names) const;
  size_t size() const { return names_.size(); }

 private:
  struct Pending {
    uint64_t generation = 0;
    bool is_snapshot = false;
    uint32_t next_part = 0;
    std::vector<PageName> added, removed;
  };
  void Commit();

  std::unordered_set<PageName> names_;
  std::optional<Pending> pending_;
};

}  // namespace baton::router
