#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/digest.h"
#include "common/ids.h"
#include "kernels/device.h"

namespace baton::engine {

class PagePool;

struct PoolCounts {
  int total = 0;
  int free = 0;         // neither booked, leased, cached nor quarantined
  int booked = 0;       // promised as a count, not yet taken
  int leased = 0;       // held by at least one lease
  int cached = 0;       // held by the prefix cache alone
  int quarantined = 0;  // under a posted receive
};

// Pages promised as a count. Move-only; what is left returns when destroyed. Engine thread.
class Booking {
 public:
  Booking() = default;
  Booking(Booking&& other) noexcept;
  Booking& operator=(Booking&& other) noexcept;
  ~Booking();
  int remaining() const { return remaining_; }
  void Add(Booking more);  // of the same pool

 private:
  friend class PagePool;
  Booking(PagePool* pool, int pages) : pool_(pool), remaining_(pages) {}
  PagePool* pool_ = nullptr;
  int remaining_ = 0;
};

// Pages held, in sequence order. Move-only; releases its references when destroyed. Engine thread.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept;
  PageLease& operator=(PageLease&& other) noexcept;
  ~PageLease();
  std::span<const PageId> ids() const { return ids_; }
  int size() const { return static_cast<int>(ids_.size()); }
  void Append(PageLease more);  // of the same pool
  PageLease Split(int keep);    // keeps the first `keep`, returns the rest

 private:
  friend class PagePool;
  PageLease(PagePool* pool, std::vector<PageId> ids) : pool_(pool), ids_(std::move(ids)) {}
  PagePool* pool_ = nullptr;
  std::vector<PageId> ids_;
};

// One pool for all ranks and tiers of a worker: ids, not pointers (contracts.md 6). Engine thread.
class PagePool {
 public:
  // `base` is page 0, pages are `stride_bytes` apart; only the first `payload_bytes` of a page are
  // ever written. Host memory, unless UseDevice says otherwise.
  PagePool(std::byte* base, int num_pages, uint64_t stride_bytes, uint64_t payload_bytes);
  // Before any page is taken: the memory is `device`'s, which outlives the pool; `digests` is a
  // queue of it.
  void UseDevice(kernels::Device& device, std::unique_ptr<kernels::MemoryQueue> digests);

  // kResourceExhausted, naming pages asked and free, when the count cannot be promised.
  absl::StatusOr<Booking> Book(int pages);
  // Pages out of a booking, for what is written whole before it is read: a landing's block, a copy.
  // Any thread may write them at once. CHECKs that the booking has them.
  PageLease Take(Booking& booking, int pages);
  // Zeroed for whatever the device is given later by this thread; no transfer may land in them.
  PageLease TakeForSteps(Booking& booking, int pages);
  // How often pages were zeroed for steps, and that the first `count` of these times are over:
  // those before a step that has ended.
  uint64_t num_zeroings() const { return num_zeroings_; }
  void NoteZeroed(uint64_t count) { num_zeroed_ = std::max(num_zeroed_, count); }
  // Another reference to the first `pages` full pages of a lease.
  PageLease Share(const PageLease& lease, int pages);
  PageLease ShareIds(std::span<const PageId> ids);
  // The cache's reference: counted as cached while nobody else holds the page.
  void Cache(PageId page);
  void Uncache(PageId page);
  bool IsCached(PageId page) const;
  // Takes the pages out of circulation until ReturnQuarantined is called for each (its receive has
  // completed locally).
  void Quarantine(PageLease pages);
  void ReturnQuarantined(PageId page);

  PoolCounts Counts() const;
  // Recounts every page: kInternal, with all numbers, when the counts are not what the pages say.
  // For tests and the simulator.
  absl::Status CheckCounts() const;
  int leases(PageId page) const { return states_[static_cast<size_t>(page)].leases; }
  bool IsQuarantined(PageId page) const {
    return states_[static_cast<size_t>(page)].is_quarantined;
  }
  // The payload of one page to or from host memory.
  absl::Status Read(PageId page, std::span<std::byte> to) const;
  absl::Status Write(PageId page, std::span<const std::byte> from);
  absl::Status Copy(PageId to, PageId from);
  // Digests (contracts.md 3.5) of payloads, each after a header of its own, in the order of
  // `pages`.
  absl::StatusOr<std::vector<Digest128>> Digests(const Secret& secret,
                                                 std::span<const PageId> pages,
                                                 std::span<const std::vector<std::byte>> headers);

  // The device's first failure in any of these, or in Take: the end of the worker, whatever comes
  // after it.
  const absl::Status& device_status() const { return device_status_; }

  // In the memory the pool was given: of a device, nothing the CPU may touch.
  std::byte* Data(PageId page) const { return base_ + static_cast<uint64_t>(page) * stride_bytes_; }
  uint64_t stride_bytes() const { return stride_bytes_; }
  uint64_t payload_bytes() const { return payload_bytes_; }

 private:
  friend class Booking;
  friend class PageLease;
  struct PageState {
    int leases = 0;
    bool is_cached = false;
    bool is_quarantined = false;
    uint64_t zeroing = 0;  // the number of its last one
  };
  std::vector<PageId> Lease(Booking& booking, int pages);
  void Unbook(int pages);
  void Release(std::span<const PageId> ids);
  void AddReference(PageId page);
  void QueueZeroing(std::span<const PageId> pages);
  absl::Status CopyBytes(std::byte* to, const std::byte* from) const;
  absl::Status Note(absl::Status status) const;  // keeps the first failure

  std::byte* base_;
  uint64_t stride_bytes_, payload_bytes_;
  kernels::Device* device_ = nullptr;  // null: host memory
  std::unique_ptr<kernels::MemoryQueue> digesting_;
  mutable absl::Status device_status_;
  std::vector<PageState> states_;
  std::vector<PageId> free_;
  PoolCounts counts_;
  uint64_t num_zeroings_ = 0, num_zeroed_ = 0;
};

}  // namespace baton::engine
