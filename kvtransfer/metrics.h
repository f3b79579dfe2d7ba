#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvtransfer/frame.h"

namespace baton::kvtransfer {

// Why a well-formed frame was dropped or refused: it does not match all it names.
enum class StaleReason : uint8_t {
  kTransfer,  // no such transfer here
  kAttempt,
  kSecret,
  kIncarnation,  // meant for, or from, another start of a process
  kBlock,        // a block outside the transfer, or one that was not offered
  kDuplicate,    // a block that is verified, or on its way
  kLayout,       // layout, shard or length differ
};
inline constexpr size_t kNumStaleReasons = 7;
std::string_view StaleReasonName(StaleReason reason);

// Upper bounds of the buckets of seconds per block, offer to digest held; one more bucket has no
// bound.
inline constexpr std::array<double, 10> kBlockSecondsBounds = {50e-6, 100e-6, 250e-6, 500e-6, 1e-3,
                                                               5e-3,  20e-3,  100e-3, 500e-3, 2.0};

// Counters of one transfer agent. Written by its thread, read by any: each value is exact, the set
// is not one instant.
struct TransferMetrics {
  template <size_t kSize>
  using Counts = std::array<std::atomic<uint64_t>, kSize>;

  std::atomic<uint64_t> blocks_offered = 0;  // sending side, re-offers included
  std::atomic<uint64_t> bytes_offered = 0;
  std::atomic<uint64_t> blocks_acked = 0;
  std::atomic<uint64_t> block_retries = 0;  // offered again after data_loss
  std::atomic<uint64_t> blocks_pulled = 0;  // receiving side, before the digest
  std::atomic<uint64_t> bytes_pulled = 0;
  std::atomic<uint64_t> blocks_landed = 0;  // digest held
  std::atomic<uint64_t> digest_failures = 0;
  std::atomic<uint64_t> pull_failures = 0;
  Counts<7> refusals_sent{};  // by RefuseReason
  Counts<7> refusals_received{};
  Counts<kNumStaleReasons> stale_frames{};
  Counts<kNumFrameErrors> bad_frames{};
  std::atomic<uint64_t> peers_lost = 0;      // down or silent
  std::atomic<uint64_t> frames_dropped = 0;  // not sent: the peer's queue was full
  std::atomic<int64_t> quarantined = 0;      // pieces of memory now
  std::atomic<int64_t> open_receives = 0;    // now
  std::atomic<int64_t> open_landings = 0;    // now
  std::atomic<int64_t> open_sends = 0;       // transfers now
  std::atomic<bool> is_wedged = false;
  Counts<kBlockSecondsBounds.size() + 1> block_seconds{};
  std::atomic<uint64_t> block_micros_sum = 0;
};

// Adds one observation to the buckets.
void ObserveBlockSeconds(TransferMetrics& metrics, double seconds);

}  // namespace baton::kvtransfer
