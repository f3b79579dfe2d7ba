#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "common/ids.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

using DigestJob = StrongId<struct DigestJobTag, uint64_t>;

struct DigestDone {
  DigestJob job;
  absl::StatusOr<Digest128> digest;
};

// Takes digests (contracts.md 3.5) of registered memory on the device where it lies. Transfer
// thread only.
class Digester {
 public:
  virtual ~Digester() = default;
  // `header` (at most 1,024 bytes) is copied; `place` must not change until the job is done. Never
  // blocks.
  virtual void Begin(DigestJob job, const Place& place, const Secret& secret,
                     std::span<const std::byte> header) = 0;
  // Appends what has finished since the last call, each job exactly once.
  virtual void Poll(std::vector<DigestDone>& done) = 0;
};

// Host memory: computes in Begin, on the calling thread.
class CpuDigester final : public Digester {
 public:
  // The bytes of a region, as registered with the transport.
  void AddRegion(RegionId region, std::span<const std::byte> memory);

  void Begin(DigestJob job, const Place& place, const Secret& secret,
             std::span<const std::byte> header) override;
  void Poll(std::vector<DigestDone>& done) override;

 private:
  std::vector<std::span<const std::byte>> regions_;  // by RegionId; empty: unknown
  std::vector<DigestDone> done_;
};

}  // namespace baton::kvtransfer
