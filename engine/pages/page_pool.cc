#include "engine/pages/page_pool.h"

#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"

namespace baton::engine {

Booking::Booking(Booking&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), remaining_(std::exchange(other.remaining_, 0)) {}

Booking& Booking::operator=(Booking&& other) noexcept {
  if (this == &other) return *this;
  if (pool_ != nullptr) pool_->Unbook(remaining_);
  pool_ = std::exchange(other.pool_, nullptr);
  remaining_ = std::exchange(other.remaining_, 0);
  return *this;
}

Booking::~Booking() {
  if (pool_ != nullptr) pool_->Unbook(remaining_);
}

void Booking::Add(Booking more) {
  if (more.pool_ == nullptr) return;
  CHECK(pool_ == nullptr || pool_ == more.pool_);
  pool_ = more.pool_;
  remaining_ += std::exchange(more.remaining_, 0);
}

PageLease::PageLease(PageLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), ids_(std::exchange(other.ids_, {})) {}

PageLease& PageLease::operator=(PageLease&& other) noexcept {
  if (this == &other) return *this;
  if (pool_ != nullptr) pool_->Release(ids_);
  pool_ = std::exchange(other.pool_, nullptr);
  ids_ = std::exchange(other.ids_, {});
  return *this;
}

PageLease::~PageLease() {
  if (pool_ != nullptr) pool_->Release(ids_);
}

void PageLease::Append(PageLease more) {
  if (more.pool_ == nullptr) return;
  CHECK(pool_ == nullptr || pool_ == more.pool_);
  pool_ = more.pool_;
  ids_.insert(ids_.end(), more.ids_.begin(), more.ids_.end());
  more.ids_.clear();
}

PageLease PageLease::Split(int keep) {
  CHECK(keep >= 0 && keep <= size());
  std::vector<PageId> rest(ids_.begin() + keep, ids_.end());
  ids_.resize(static_cast<size_t>(keep));
  return PageLease(pool_, std::move(rest));
}

PagePool::PagePool(std::byte* base, int num_pages, uint64_t stride_bytes, uint64_t payload_bytes)
    : base_(base),
      stride_bytes_(stride_bytes),
      payload_bytes_(payload_bytes),
      states_(static_cast<size_t>(num_pages)) {
  CHECK(num_pages >= 0 && payload_bytes <= stride_bytes);
  counts_.total = counts_.free = num_pages;
  free_.reserve(static_cast<size_t>(num_pages));
  for (PageId page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

void PagePool::UseDevice(kernels::Device& device, std::unique_ptr<kernels::MemoryQueue> digests) {
  CHECK(digests != nullptr && counts_.free == counts_.total);
  device_ = &device;
  digesting_ = std::move(digests);
}

absl::Status PagePool::Note(absl::Status status) const {
  if (device_status_.ok()) device_status_ = status;
  return status;
}

absl::StatusOr<Booking> PagePool::Book(int pages) {
  CHECK(pages >= 0);
  if (pages > counts_.free)
    return absl::ResourceExhaustedError(absl::StrFormat("page pool: %d pages asked, %d free of %d",
                                                        pages, counts_.free, counts_.total));
  counts_.free -= pages;
  counts_.booked += pages;
  return Booking(this, pages);
}

void PagePool::Unbook(int pages) {
  counts_.booked -= pages;
  counts_.free += pages;
}

std::vector<PageId> PagePool::Lease(Booking& booking, int pages) {
  CHECK(pages >= 0 && pages <= booking.remaining_ && (pages == 0 || booking.pool_ == this));
  std::vector<PageId> ids;
  ids.reserve(static_cast<size_t>(pages));
  for (int i = 0; i < pages; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    states_[static_cast<size_t>(page)].leases = 1;
    ids.push_back(page);
  }
  booking.remaining_ -= pages;
  counts_.booked -= pages;
  counts_.leased += pages;
  return ids;
}

PageLease PagePool::TakeForSteps(Booking& booking, int pages) {
  std::vector<PageId> ids = Lease(booking, pages);
  QueueZeroing(ids);
  return PageLease(this, std::move(ids));
}

// Waits only for pages that went back before a step zeroed them.
PageLease PagePool::Take(Booking& booking, int pages) {
  std::vector<PageId> ids = Lease(booking, pages);
  const auto may_be_zeroed = [this](PageId page) {
    return states_[static_cast<size_t>(page)].zeroing > num_zeroed_;
  };
  if (device_ != nullptr && std::ranges::any_of(ids, may_be_zeroed)) {
    Note(device_->Synchronize()).IgnoreError();
    num_zeroed_ = num_zeroings_;
  }
  return PageLease(this, std::move(ids));
}

void PagePool::QueueZeroing(std::span<const PageId> pages) {
  ++num_zeroings_;
  for (const PageId page : pages) {
    states_[static_cast<size_t>(page)].zeroing = num_zeroings_;
    if (device_ != nullptr) {
      device_->Zero(Data(page), payload_bytes_);
    } else {
      std::memset(Data(page), 0, payload_bytes_);
    }
  }
}

absl::Status PagePool::CopyBytes(std::byte* to, const std::byte* from) const {
  if (device_ != nullptr) return Note(device_->Copy(to, from, payload_bytes_));
  std::memcpy(to, from, payload_bytes_);
  return absl::OkStatus();
}

absl::Status PagePool::Read(PageId page, std::span<std::byte> to) const {
  CHECK(to.size() == payload_bytes_);
  return CopyBytes(to.data(), Data(page));
}

absl::Status PagePool::Write(PageId page, std::span<const std::byte> from) {
  CHECK(from.size() == payload_bytes_);
  return CopyBytes(Data(page), from.data());
}

absl::Status PagePool::Copy(PageId to, PageId from) { return CopyBytes(Data(to), Data(from)); }

absl::StatusOr<std::vector<Digest128>> PagePool::Digests(
    const Secret& secret, std::span<const PageId> pages,
    std::span<const std::vector<std::byte>> headers) {
  CHECK(pages.size() == headers.size());
  std::vector<Digest128> digests(pages.size());
  const auto payload = [&](size_t i) {
    return std::span<const std::byte>(Data(pages[i]), payload_bytes_);
  };
  if (device_ == nullptr) {
    const NhDigest digest(secret);
    for (size_t i = 0; i < pages.size(); ++i) digests[i] = digest.Of(headers[i], payload(i));
    return digests;
  }
  for (size_t i = 0; i < pages.size(); ++i) digesting_->Digest(i, secret, headers[i], payload(i));
  std::vector<kernels::MemoryQueue::Done> done;
  while (done.size() < pages.size()) digesting_->Poll(done);
  for (const kernels::MemoryQueue::Done& one : done) {
    RETURN_IF_ERROR(Note(one.status));
    digests[one.job] = one.digest;
  }
  return digests;
}

PageLease PagePool::Share(const PageLease& lease, int pages) {
  CHECK(pages >= 0 && pages <= lease.size());
  return ShareIds(lease.ids().first(static_cast<size_t>(pages)));
}

PageLease PagePool::ShareIds(std::span<const PageId> ids) {
  for (const PageId page : ids) AddReference(page);
  return PageLease(this, {ids.begin(), ids.end()});
}

void PagePool::AddReference(PageId page) {
  PageState& state = states_[static_cast<size_t>(page)];
  CHECK(!state.is_quarantined && (state.leases > 0 || state.is_cached));
  if (state.leases++ > 0) return;
  --counts_.cached;
  ++counts_.leased;
}

void PagePool::Release(std::span<const PageId> ids) {
  for (const PageId page : ids) {
    PageState& state = states_[static_cast<size_t>(page)];
    CHECK(state.leases > 0);
    if (--state.leases > 0) continue;
    --counts_.leased;
    if (state.is_cached) {
      ++counts_.cached;
      continue;
    }
    ++counts_.free;
    free_.push_back(page);
  }
}

void PagePool::Cache(PageId page) {
  PageState& state = states_[static_cast<size_t>(page)];
  CHECK(state.leases > 0 && !state.is_cached);
  state.is_cached = true;
}

void PagePool::Uncache(PageId page) {
  PageState& state = states_[static_cast<size_t>(page)];
  CHECK(state.is_cached);
  state.is_cached = false;
  if (state.leases > 0) return;
  --counts_.cached;
  ++counts_.free;
  free_.push_back(page);
}

bool PagePool::IsCached(PageId page) const { return states_[static_cast<size_t>(page)].is_cached; }

void PagePool::Quarantine(PageLease pages) {
  for (const PageId page : pages.ids_) {
    PageState& state = states_[static_cast<size_t>(page)];
    CHECK(state.leases == 1 && !state.is_cached && !state.is_quarantined);
    state.leases = 0;
    state.is_quarantined = true;
    --counts_.leased;
    ++counts_.quarantined;
  }
  pages.ids_.clear();
}

void PagePool::ReturnQuarantined(PageId page) {
  PageState& state = states_[static_cast<size_t>(page)];
  CHECK(state.is_quarantined);
  state.is_quarantined = false;
  --counts_.quarantined;
  ++counts_.free;
  free_.push_back(page);
}

PoolCounts PagePool::Counts() const { return counts_; }

absl::Status PagePool::CheckCounts() const {
  PoolCounts found{.total = static_cast<int>(states_.size())};
  for (const PageState& state : states_) {
    if (state.is_quarantined)
      ++found.quarantined;
    else if (state.leases > 0)
      ++found.leased;
    else if (state.is_cached)
      ++found.cached;
  }
  const int unused = static_cast<int>(free_.size());
  const bool is_sum =
      counts_.free + counts_.booked == unused &&
      unused + counts_.leased + counts_.cached + counts_.quarantined == counts_.total;
  if (is_sum && counts_.free >= 0 && counts_.booked >= 0 && found.leased == counts_.leased &&
      found.cached == counts_.cached && found.quarantined == counts_.quarantined)
    return absl::OkStatus();
  return absl::InternalError(absl::StrFormat(
      "page pool: free %d + booked %d + leased %d + cached %d + quarantined %d of %d; unused %d, "
      "leased %d, cached %d, quarantined %d found",
      counts_.free, counts_.booked, counts_.leased, counts_.cached, counts_.quarantined,
      counts_.total, unused, found.leased, found.cached, found.quarantined));
}

}  // namespace baton::engine
