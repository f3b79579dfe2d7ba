#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/memory_queue.h"
#include "kvtransfer/block_copier.h"
#include "kvtransfer/digester.h"

// What the transfer thread does with pages that lie in a device's memory. Transfer thread only.
namespace baton::worker {

class DeviceCopier final : public kvtransfer::BlockCopier {
 public:
  explicit DeviceCopier(std::unique_ptr<kernels::MemoryQueue> queue) : queue_(std::move(queue)) {}
  void Begin(kvtransfer::CopyJob job, std::byte* to, const std::byte* from, size_t bytes) override;
  void Poll(std::vector<kvtransfer::CopyDone>& done) override;

 private:
  std::unique_ptr<kernels::MemoryQueue> queue_;
  std::vector<kernels::MemoryQueue::Done> finished_;
};

// Digests of device regions on the device, of host regions by the CPU. Without a queue there are
// host regions only.
class DeviceDigester final : public kvtransfer::Digester {
 public:
  explicit DeviceDigester(std::unique_ptr<kernels::MemoryQueue> queue) : queue_(std::move(queue)) {}
  // The bytes of a region, as registered with the transport.
  void AddHostRegion(kvtransfer::RegionId region, std::span<const std::byte> memory) {
    host_.AddRegion(region, memory);
  }
  void AddDeviceRegion(kvtransfer::RegionId region, std::span<const std::byte> memory);

  void Begin(kvtransfer::DigestJob job, const kvtransfer::Place& place, const Secret& secret,
             std::span<const std::byte> header) override;
  void Poll(std::vector<kvtransfer::DigestDone>& done) override;

 private:
  struct Region {
    kvtransfer::RegionId id;
    std::span<const std::byte> memory;
  };
  std::unique_ptr<kernels::MemoryQueue> queue_;
  kvtransfer::CpuDigester host_;
  std::vector<Region> device_;
  std::vector<kernels::MemoryQueue::Done> finished_;
};

}  // namespace baton::worker
