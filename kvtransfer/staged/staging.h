#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace baton::kvtransfer {

// Host memory that blocks of device memory pass through, cut into slots of one block each. Offers
// and pulls have slots of their own: neither can wait for the other.
struct StagingArea {
  std::span<std::byte> memory;  // pinned, where a device is to copy fast
  uint64_t slot_bytes = 0;      // room for the largest block
  size_t num_offer_slots = 0;
  size_t num_pull_slots = 0;

  // kInvalidArgument: no bytes, no slots, or less memory than the slots need.
  absl::Status Validate() const;
};

// Written by the transfer thread, read by any: each value is exact, the set is not one instant.
struct StagingStats {
  std::atomic<int64_t> offer_slots_in_use = 0;  // now
  std::atomic<int64_t> pull_slots_in_use = 0;   // now
  std::atomic<int64_t> offers_waiting = 0;      // for a slot, now
  std::atomic<int64_t> pulls_waiting = 0;       // for a slot, now
  std::atomic<uint64_t> offers_waited = 0;      // found no slot free when they came
  std::atomic<uint64_t> pulls_waited = 0;
  std::atomic<uint64_t> bytes_to_host = 0;  // of copies that ended well
  std::atomic<uint64_t> bytes_to_device = 0;
  std::atomic<uint64_t> copy_failures = 0;
};

// One share of the slots, each named by its offset in the staging memory. One thread.
class SlotShare {
 public:
  SlotShare(uint64_t first_offset, uint64_t slot_bytes, size_t count);

  // The slot used last comes first: its lines may still be cached.
  std::optional<uint64_t> Take();
  void Return(uint64_t slot);
  bool HasFree() const { return !free_.empty(); }
  size_t NumInUse() const { return count_ - free_.size(); }

 private:
  const size_t count_;
  std::vector<uint64_t> free_;
};

}  // namespace baton::kvtransfer
