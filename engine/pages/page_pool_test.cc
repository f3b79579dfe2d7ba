#include "engine/pages/page_pool.h"

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <vector>

namespace baton::engine {
namespace {

constexpr int kPages = 8;
constexpr uint64_t kStride = 64;
constexpr uint64_t kPayload = 48;

class PagePoolTest : public testing::Test {
 protected:
  void TearDown() override { EXPECT_TRUE(pool_.CheckCounts().ok()) << pool_.CheckCounts(); }

  PageLease Take(int pages) {
    absl::StatusOr<Booking> booking = pool_.Book(pages);
    EXPECT_TRUE(booking.ok());
    return pool_.Take(*booking, pages);
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kStride, std::byte{0xAA});
  PagePool pool_{memory_.data(), kPages, kStride, kPayload};
};

TEST_F(PagePoolTest, BookingIsACountThatReturnsWhenDestroyed) {
  {
    absl::StatusOr<Booking> booking = pool_.Book(5);
    ASSERT_TRUE(booking.ok());
    EXPECT_EQ(pool_.Counts().booked, 5);
    EXPECT_EQ(pool_.Counts().free, 3);
    const Booking moved = std::move(*booking);
    EXPECT_EQ(moved.remaining(), 5);
    EXPECT_EQ(booking->remaining(), 0);
  }
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_F(PagePoolTest, RefusesMoreThanIsFreeAndNamesTheNumbers) {
  const absl::StatusOr<Booking> all = pool_.Book(6);
  const absl::StatusOr<Booking> more = pool_.Book(3);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(more.status().message(), "page pool: 3 pages asked, 2 free of 8");
}

TEST_F(PagePoolTest, PagesForStepsAreZeroedAndPaddingIsLeftAlone) {
  absl::StatusOr<Booking> booking = pool_.Book(2);
  const PageLease lease = pool_.TakeForSteps(*booking, 2);
  for (const PageId page : lease.ids()) {
    const std::byte* data = pool_.Data(page);
    EXPECT_TRUE(std::all_of(data, data + kPayload, [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_EQ(data[kPayload], std::byte{0xAA});
  }
}

TEST_F(PagePoolTest, LeaseReturnsPagesWhenDestroyed) {
  {
    PageLease lease = Take(3);
    lease.Append(Take(2));
    EXPECT_EQ(lease.size(), 5);
    const PageLease rest = lease.Split(1);
    EXPECT_EQ(rest.size(), 4);
    EXPECT_EQ(pool_.Counts().leased, 5);
  }
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_F(PagePoolTest, SharedPageStaysUntilItsLastLeaseEnds) {
  PageLease first = Take(2);
  const PageId page = first.ids()[0];
  PageLease second = pool_.Share(first, 1);
  EXPECT_EQ(second.ids()[0], page);
  EXPECT_EQ(pool_.leases(page), 2);
  first = PageLease();
  EXPECT_EQ(pool_.Counts().leased, 1);
  second = PageLease();
  EXPECT_EQ(pool_.Counts().leased, 0);
}

TEST_F(PagePoolTest, CachedPageIsCachedOnlyWhileNobodyHoldsIt) {
  PageLease lease = Take(1);
  const PageId page = lease.ids()[0];
  pool_.Cache(page);
  EXPECT_EQ(pool_.Counts().cached, 0);
  lease = PageLease();
  EXPECT_EQ(pool_.Counts().cached, 1);
  EXPECT_EQ(pool_.Counts().free, kPages - 1);
  lease = pool_.ShareIds({{page}});
  EXPECT_EQ(pool_.Counts().leased, 1);
  pool_.Uncache(page);
  EXPECT_FALSE(pool_.IsCached(page));
  EXPECT_EQ(pool_.Counts().leased, 1);
  lease = PageLease();
  EXPECT_EQ(pool_.Counts().free, kPages);
}

TEST_F(PagePoolTest, QuarantinedPageReturnsOnlyWhenItsReceiveIsDone) {
  PageLease lease = Take(2);
  const PageId page = lease.ids()[1];
  pool_.Quarantine(lease.Split(1));
  EXPECT_EQ(pool_.Counts().quarantined, 1);
  EXPECT_EQ(pool_.Counts().leased, 1);
  const PageLease others = Take(6);
  EXPECT_EQ(std::count(others.ids().begin(), others.ids().end(), page), 0);
  EXPECT_FALSE(pool_.Book(1).ok());
  pool_.ReturnQuarantined(page);
  EXPECT_TRUE(pool_.Book(1).ok());
}

TEST_F(PagePoolTest, ChecksBugs) {
  absl::StatusOr<Booking> booking = pool_.Book(1);
  EXPECT_DEATH(pool_.Take(*booking, 2), "remaining_");
  EXPECT_DEATH(pool_.ReturnQuarantined(0), "is_quarantined");
  EXPECT_DEATH(pool_.ShareIds({{3}}), "leases > 0");
}

}  // namespace
}  // namespace baton::engine
