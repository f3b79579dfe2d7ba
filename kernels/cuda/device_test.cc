#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_format.h"

#include "common/digest.h"
#include "kernels/cuda/gpu_test_model.h"

// Memory of the GPU: uploads, copies, and the queue beside the engine's stream.
namespace baton::kernels::cuda {
namespace {

std::vector<std::byte> Pattern(size_t bytes, uint32_t seed) {
  std::vector<std::byte> pattern(bytes);
  std::mt19937 random(seed);
  for (std::byte& b : pattern) b = static_cast<std::byte>(random());
  return pattern;
}

std::vector<std::byte> Read(Device& device, const std::byte* data, size_t bytes) {
  std::vector<std::byte> read(bytes);
  CHECK(device.Copy(read.data(), data, bytes).ok());
  return read;
}

// Larger than a pinned piece, so that pieces follow one another; parts from several threads.
TEST(CudaDeviceTest, UploadsArriveWhole) {
  std::atomic<int> parts_run = 0;
  const ParallelFor parallel = [&](int parts, const std::function<void(int)>& fn) {
    std::thread other([&] {
      for (int i = 1; i < parts; i += 2) fn(i);
    });
    for (int i = 0; i < parts; i += 2) fn(i);
    other.join();
    parts_run += parts;
  };
  if (testing::DeviceOrSkip() == nullptr) return;
  auto device = CudaDevice::Create(0, parallel);
  ASSERT_TRUE(device.ok());
  for (const size_t bytes : {size_t{1}, size_t{4097}, (size_t{70} << 20) + 13}) {
    const std::vector<std::byte> sent = Pattern(bytes, 3);
    const auto uploaded = (*device)->UploadBytes(sent.data(), bytes);
    ASSERT_TRUE(uploaded.ok());
    EXPECT_EQ(Read(**device, reinterpret_cast<const std::byte*>(*uploaded), bytes), sent) << bytes;
  }
  EXPECT_EQ(parts_run, 71);
}

TEST(CudaDeviceTest, MemoryIsZeroedAndCounted) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  EXPECT_FALSE(device->is_host());
  const DeviceMemory before = device->memory();
  EXPECT_GT(before.total_bytes, before.free_bytes);
  std::byte* const data = *device->Allocate(size_t{1} << 26);
  EXPECT_EQ(Read(*device, data, 1000), std::vector<std::byte>(1000));
  EXPECT_LE(device->memory().free_bytes, before.free_bytes - (size_t{1} << 26));
  ASSERT_TRUE(device->Copy(data, Pattern(1000, 1).data(), 1000).ok());
  device->Zero(data + 100, 800);
  std::vector<std::byte> expected = Pattern(1000, 1);
  std::fill(expected.begin() + 100, expected.begin() + 900, std::byte{0});
  EXPECT_EQ(Read(*device, data, 1000), expected);
  EXPECT_EQ(device->Allocate(before.total_bytes * 2).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(device->Synchronize().ok()) << "a refused allocation breaks nothing";
}

// Products take scales inside their operands: what those cannot hold is refused by value.
TEST(CudaDeviceTest, RefusesScalesThatAnOperandCannotHold) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  const auto upload = [&device](testing::StoredMatrix m) {
    m.host.values = m.values.data();
    m.host.scales = m.scales.data();
    return device->Upload(m.host).status();
  };
  testing::StoredMatrix fp8 = testing::RandomFp8(128, 256, 1);
  for (const float scale : {0.3f, 0.0f, 0x1p8f, 0x1p-101f, -1.0f}) {
    fp8.scales[1] = scale;
    const absl::Status status = upload(fp8);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << scale;
    EXPECT_NE(status.message().find("2^-100 .. 2^7"), std::string::npos) << status;
  }
  for (const float scale : {0x1p7f, 0x1p-100f}) {
    fp8.scales[1] = scale;
    EXPECT_TRUE(upload(fp8).ok()) << scale;
  }
  for (size_t row = 0; row < 128; ++row) {
    std::fill_n(fp8.values.begin() + static_cast<std::ptrdiff_t>(256 * row + 128), 128,
                row % 2 == 0 ? std::byte{0} : std::byte{0x80});
  }
  for (const float scale : {0.3f, 0.0f, 0x1p100f, -1.0f, __builtin_inff()}) {
    fp8.scales[1] = scale;
    EXPECT_TRUE(upload(fp8).ok()) << "a block of zeros may have any scale";
  }
  testing::StoredMatrix fp4 = testing::RandomFp4(128, 256, 3, 2);
  for (const float scale : {0x1p2f, 0x1p-101f}) {
    fp4.scales[5] = scale;
    const absl::Status status = upload(fp4);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << scale;
    EXPECT_NE(status.message().find("2^-100 .. 2^1"), std::string::npos) << status;
  }
  cpu::testing::ZeroGroup(fp4, 5, 0x1p100f);
  EXPECT_TRUE(upload(fp4).ok()) << "a group of zeros may have any scale";
}

TEST(CudaDeviceTest, NamesTheOperatorsThatAGpuLacks) {
  EXPECT_TRUE(CheckCapability("GPU 0 (H200)", 9, 0).ok());
  for (const auto& [major, minor] : {std::pair{8, 9}, {10, 0}, {12, 0}}) {
    const absl::Status status = CheckCapability("GPU 3 (other)", major, minor);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    const std::string message(status.message());
    EXPECT_NE(
        message.find(absl::StrFormat("GPU 3 (other) has compute capability %d.%d", major, minor)),
        std::string::npos);
    EXPECT_NE(message.find("Attend, ProjectOut, Experts and Head"), std::string::npos);
  }
}

// More digests than the queue has places, and copies in between.
TEST(CudaDeviceTest, TheQueueDigestsAndCopiesInOrder) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  constexpr size_t kBytes = 300'000;
  constexpr int kJobs = 200;
  const std::vector<std::byte> content = Pattern(kBytes, 5);
  std::byte* const data = *device->Allocate(kBytes);
  std::byte* const host = *device->AllocateHost(kBytes);
  ASSERT_TRUE(device->Copy(data, content.data(), kBytes).ok());
  const auto queue = *device->MakeMemoryQueue();
  const Secret secret{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
  const std::vector<std::byte> header = Pattern(77, 6);
  const auto size_of = [](int job) { return static_cast<size_t>(1 + job * 1490); };
  queue->Copy(kJobs, host, data, kBytes);
  for (int job = 0; job < kJobs; ++job) {
    queue->Digest(static_cast<uint64_t>(job), secret, header, {data, size_of(job)});
  }
  std::vector<MemoryQueue::Done> done;
  while (done.size() < kJobs + 1) queue->Poll(done);
  std::vector<int> times(kJobs + 1);
  const NhDigest digest(secret);
  for (const MemoryQueue::Done& one : done) {
    ASSERT_TRUE(one.status.ok()) << one.status;
    ++times[one.job];
    if (one.job == kJobs) continue;
    const std::span<const std::byte> part(content.data(), size_of(static_cast<int>(one.job)));
    EXPECT_EQ(one.digest, digest.Of(header, part)) << "job " << one.job;
  }
  EXPECT_EQ(times, std::vector<int>(kJobs + 1, 1)) << "each job exactly once";
  EXPECT_TRUE(std::equal(content.begin(), content.end(), host));
}

}  // namespace
}  // namespace baton::kernels::cuda
