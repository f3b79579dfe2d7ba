#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "common/digest.h"
#include "kernels/device.h"

// For tests: a device whose memory may be touched only through it. It is host memory, every byte of
// which is kept inverted, so that whoever reads or writes it directly gets or leaves wrong bytes.
namespace baton::kernels {

class InvertedDevice final : public Device {
 public:
  static constexpr std::byte kMask{0xff};

  explicit InvertedDevice(size_t bytes) : memory_(bytes, kMask) {}

  absl::StatusOr<const Matrix*> Upload(const HostMatrix&) override { return Unused(); }
  absl::StatusOr<Vector> UploadVector(std::span<const float>) override { return Unused(); }
  absl::StatusOr<const int32_t*> UploadIndices(std::span<const int32_t>) override {
    return Unused();
  }
  absl::StatusOr<std::byte*> Allocate(size_t bytes) override {
    if (bytes > memory_.size()) return absl::ResourceExhaustedError("no memory");
    return memory_.data();
  }
  size_t allocated_bytes() const override { return memory_.size(); }
  void Zero(std::byte* data, size_t bytes) override {
    std::memset(data, static_cast<int>(kMask), bytes);
    ++num_unsynchronized;
  }
  std::string Describe() const override { return "inverted memory"; }
  bool is_host() const override { return false; }
  void EnterThread() override {}
  DeviceMemory memory() const override { return {}; }
  absl::StatusOr<std::byte*> AllocateHost(size_t) override { return Unused(); }
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override {
    const std::byte flip = IsMine(to) == IsMine(from) ? std::byte{0} : kMask;
    for (size_t i = 0; i < bytes; ++i) to[i] = from[i] ^ flip;
    return failure;
  }
  absl::Status Synchronize() override {
    num_unsynchronized = 0;
    return failure;
  }
  absl::StatusOr<std::unique_ptr<MemoryQueue>> MakeMemoryQueue() override {
    return std::make_unique<Queue>(*this);
  }

  int num_unsynchronized = 0;  // Zero since the last Synchronize
  absl::Status failure;        // of every copy and digest from now on

 private:
  // One job is done with every second Poll.
  class Queue final : public MemoryQueue {
   public:
    explicit Queue(InvertedDevice& device) : device_(device) {}
    void Copy(uint64_t job, std::byte* to, const std::byte* from, size_t bytes) override {
      open_.push_back({.job = job, .status = device_.Copy(to, from, bytes), .digest = {}});
    }
    void Digest(uint64_t job, const Secret& secret, std::span<const std::byte> header,
                std::span<const std::byte> data) override {
      std::vector<std::byte> plain(data.size());
      const absl::Status status = device_.Copy(plain.data(), data.data(), data.size());
      open_.push_back({.job = job, .status = status, .digest = NhDigest(secret).Of(header, plain)});
    }
    void Poll(std::vector<Done>& done) override {
      if (open_.empty() || ++polls_ % 2 != 0) return;
      done.push_back(std::move(open_.front()));
      open_.pop_front();
    }

   private:
    InvertedDevice& device_;
    std::deque<Done> open_;
    int polls_ = 0;
  };

  static absl::Status Unused() { return absl::UnimplementedError("not part of this test"); }
  bool IsMine(const std::byte* data) const {
    return data >= memory_.data() && data < memory_.data() + memory_.size();
  }
  std::vector<std::byte> memory_;
};

}  // namespace baton::kernels
