#include "worker/device_memory.h"

#include <gtest/gtest.h>
#include <map>

#include "common/digest.h"
#include "kernels/test_device.h"

namespace baton::worker {
namespace {

using kvtransfer::CopyJob;
using kvtransfer::DigestJob;
using kvtransfer::RegionId;

constexpr size_t kBytes = 3000;

std::vector<std::byte> Pattern() {
  std::vector<std::byte> bytes(kBytes);
  for (size_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<std::byte>(i * i + 3 * i);
  return bytes;
}

class DeviceMemoryTest : public testing::Test {
 protected:
  std::span<std::byte> memory() { return {*device_.Allocate(kBytes), kBytes}; }
  kernels::InvertedDevice device_{kBytes};
};

TEST_F(DeviceMemoryTest, CopiesGoBothWays) {
  DeviceCopier copier(*device_.MakeMemoryQueue());
  const std::vector<std::byte> sent = Pattern();
  std::vector<std::byte> received(kBytes);
  copier.Begin(CopyJob{7}, memory().data(), sent.data(), kBytes);
  copier.Begin(CopyJob{9}, received.data(), memory().data(), kBytes);
  std::vector<kvtransfer::CopyDone> done;
  for (int i = 0; i < 4; ++i) copier.Poll(done);
  ASSERT_EQ(done.size(), 2);
  EXPECT_EQ(done[0].job, CopyJob{7});
  EXPECT_EQ(done[1].job, CopyJob{9});
  EXPECT_TRUE(done[1].status.ok());
  EXPECT_EQ(received, sent);
}

TEST_F(DeviceMemoryTest, DigestsOfBothKindsOfRegionsAreEqual) {
  DeviceDigester digester(*device_.MakeMemoryQueue());
  std::vector<std::byte> host = Pattern();
  ASSERT_TRUE(device_.Copy(memory().data(), host.data(), kBytes).ok());
  digester.AddDeviceRegion(RegionId{0}, memory());
  digester.AddHostRegion(RegionId{1}, host);
  const Secret secret{{9, 8, 7}};
  const std::vector<std::byte> header(24, std::byte{5});
  for (const uint32_t region : {0u, 1u}) {
    digester.Begin(DigestJob{region + 1},
                   {.region = RegionId{region}, .offset = 100, .bytes = 2000}, secret, header);
  }
  std::vector<kvtransfer::DigestDone> done;
  for (int i = 0; i < 2; ++i) digester.Poll(done);
  std::map<uint64_t, Digest128> digests;
  for (const kvtransfer::DigestDone& one : done) {
    ASSERT_TRUE(one.digest.ok());
    digests[one.job.value] = *one.digest;
  }
  ASSERT_EQ(digests.size(), 2);
  EXPECT_EQ(digests[1], digests[2]);
  EXPECT_EQ(digests[1], NhDigest(secret).Of(header, std::span(host).subspan(100, 2000)));
}

TEST_F(DeviceMemoryTest, HostRegionsNeedNoQueue) {
  DeviceDigester digester(nullptr);
  const std::vector<std::byte> host = Pattern();
  digester.AddHostRegion(RegionId{0}, host);
  digester.Begin(DigestJob{1}, {.region = RegionId{0}, .offset = 0, .bytes = kBytes}, {}, {});
  std::vector<kvtransfer::DigestDone> done;
  digester.Poll(done);
  ASSERT_EQ(done.size(), 1);
  EXPECT_EQ(*done[0].digest, NhDigest({}).Of({}, host));
}

TEST_F(DeviceMemoryTest, AFailureFailsTheJob) {
  DeviceDigester digester(*device_.MakeMemoryQueue());
  digester.AddDeviceRegion(RegionId{0}, memory());
  device_.failure = absl::InternalError("lost");
  digester.Begin(DigestJob{1}, {.region = RegionId{0}, .offset = 0, .bytes = 16}, {}, {});
  std::vector<kvtransfer::DigestDone> done;
  for (int i = 0; i < 2; ++i) digester.Poll(done);
  ASSERT_EQ(done.size(), 1);
  EXPECT_EQ(done[0].digest.status(), device_.failure);
}

}  // namespace
}  // namespace baton::worker
