#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/clock.h"
#include "kvtransfer/ucx/ucx_transport.h"

namespace baton::kvtransfer {

struct SelfTestConfig {
  uint64_t total_bytes = 64 << 20;
  uint64_t block_bytes = 1 << 20;
  int window = 8;
  double min_gbps = 0;  // below it the transport is not what was asked for, e.g. 20 with cuda_ipc
  absl::Duration limit = absl::Seconds(20);
};

// Before the agent takes the transport over, on its thread: connects to itself, pulls one block to
// warm up, then `total_bytes`, checks the bytes and leaves GB/s in Facts. kDeadlineExceeded,
// kUnavailable (no connection), kDataLoss, kFailedPrecondition (too slow).
absl::Status SelfTest(UcxTransport& transport, const Clock& clock, const SelfTestConfig& config);

}  // namespace baton::kvtransfer
