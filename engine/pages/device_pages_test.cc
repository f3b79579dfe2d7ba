#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>
#include <vector>

#include "engine/pages/page_pool.h"
#include "kernels/test_device.h"

// The pool over memory that only the device may touch.
namespace baton::engine {
namespace {

constexpr int kPages = 4;
constexpr uint64_t kStride = 64, kPayload = 48;

class DevicePagesTest : public testing::Test {
 protected:
  PageLease Take(int pages) {
    absl::StatusOr<Booking> booking = pool_.Book(pages);
    EXPECT_TRUE(booking.ok());
    return pool_.Take(*booking, pages);
  }
  PageLease TakeForSteps(int pages) {
    absl::StatusOr<Booking> booking = pool_.Book(pages);
    EXPECT_TRUE(booking.ok());
    return pool_.TakeForSteps(*booking, pages);
  }
  std::vector<std::byte> Read(PageId page) {
    std::vector<std::byte> bytes(kPayload);
    EXPECT_TRUE(pool_.Read(page, bytes).ok());
    return bytes;
  }
  static std::vector<std::byte> Pattern(int seed) {
    std::vector<std::byte> bytes(kPayload);
    for (size_t i = 0; i < kPayload; ++i) bytes[i] = static_cast<std::byte>(7 * i + size_t(seed));
    return bytes;
  }

  DevicePagesTest() { pool_.UseDevice(device_, *device_.MakeMemoryQueue()); }

  kernels::InvertedDevice device_{kPages * kStride};
  PagePool pool_{*device_.Allocate(kPages * kStride), kPages, kStride, kPayload};
};

TEST_F(DevicePagesTest, PagesForStepsAreZeroedInTheDevicesOrder) {
  const PageLease lease = TakeForSteps(2);
  EXPECT_EQ(device_.num_unsynchronized, 2) << "the step in flight need not end first";
  for (const PageId page : lease.ids()) EXPECT_EQ(Read(page), std::vector<std::byte>(kPayload));
}

TEST_F(DevicePagesTest, PagesThatAreWrittenWholeWaitForNoStep) {
  const PageLease of_steps = TakeForSteps(2);
  const PageLease lease = Take(2);
  EXPECT_EQ(device_.num_unsynchronized, 2);
}

// It would wipe what lands meanwhile.
TEST_F(DevicePagesTest, PagesWaitForAZeroingThatIsNotOver) {
  TakeForSteps(2);
  const PageLease lease = Take(3);
  EXPECT_EQ(device_.num_unsynchronized, 0);
}

TEST_F(DevicePagesTest, PagesThatAnEndedStepHadWaitForNothing) {
  TakeForSteps(kPages);
  const uint64_t count = pool_.num_zeroings();
  const PageLease later = TakeForSteps(1);
  pool_.NoteZeroed(count);
  const PageLease lease = Take(kPages - 1);
  EXPECT_EQ(device_.num_unsynchronized, kPages + 1);
}

TEST_F(DevicePagesTest, PagesAreReadWrittenAndCopied) {
  const PageLease lease = Take(2);
  ASSERT_TRUE(pool_.Write(lease.ids()[0], Pattern(1)).ok());
  ASSERT_TRUE(pool_.Copy(lease.ids()[1], lease.ids()[0]).ok());
  EXPECT_EQ(Read(lease.ids()[1]), Pattern(1));
}

TEST_F(DevicePagesTest, DigestsAreThoseOfHostMemoryInTheOrderAsked) {
  std::vector<std::byte> host(kPages * kStride);
  PagePool host_pool(host.data(), kPages, kStride, kPayload);
  absl::StatusOr<Booking> booking = host_pool.Book(kPages);
  ASSERT_TRUE(booking.ok());
  const PageLease host_lease = host_pool.Take(*booking, kPages);
  const PageLease lease = Take(kPages);
  std::vector<PageId> order(lease.ids().begin(), lease.ids().end());
  std::reverse(order.begin(), order.end());
  std::vector<std::vector<std::byte>> headers;
  for (const PageId page : order) {
    ASSERT_TRUE(pool_.Write(page, Pattern(page)).ok());
    ASSERT_TRUE(host_pool.Write(page, Pattern(page)).ok());
    headers.push_back({std::byte{1}, static_cast<std::byte>(page)});
  }
  const Secret secret{{1, 2, 3}};
  const auto digests = pool_.Digests(secret, order, headers);
  ASSERT_TRUE(digests.ok()) << digests.status();
  EXPECT_EQ(*digests, *host_pool.Digests(secret, order, headers));
  EXPECT_NE((*digests)[0], (*digests)[1]);
}

TEST_F(DevicePagesTest, AFailureWhileNobodyAsksIsKept) {
  device_.failure = absl::InternalError("lost");
  TakeForSteps(1);
  const PageLease lease = Take(1);
  device_.failure = absl::OkStatus();
  EXPECT_EQ(pool_.device_status(), absl::InternalError("lost"));
}

TEST_F(DevicePagesTest, AFailureOfTheDeviceIsReported) {
  const PageLease lease = Take(1);
  EXPECT_TRUE(pool_.device_status().ok());
  device_.failure = absl::InternalError("lost");
  std::vector<std::byte> bytes(kPayload);
  EXPECT_EQ(pool_.Read(lease.ids()[0], bytes), device_.failure);
  EXPECT_EQ(pool_.Write(lease.ids()[0], bytes), device_.failure);
  const std::vector<std::vector<std::byte>> headers(1);
  EXPECT_EQ(pool_.Digests({}, lease.ids(), headers).status(), device_.failure);
}

}  // namespace
}  // namespace baton::engine
