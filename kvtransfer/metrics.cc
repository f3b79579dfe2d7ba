#include "kvtransfer/metrics.h"

#include <algorithm>

namespace baton::kvtransfer {

std::string_view StaleReasonName(StaleReason reason) {
  static constexpr std::string_view kNames[kNumStaleReasons] = {
      "transfer", "attempt", "secret", "incarnation", "block", "duplicate", "layout"};
  return kNames[static_cast<size_t>(reason)];
}

void ObserveBlockSeconds(TransferMetrics& metrics, double seconds) {
  const auto bucket = std::ranges::lower_bound(kBlockSecondsBounds, seconds);
  ++metrics.block_seconds[static_cast<size_t>(bucket - kBlockSecondsBounds.begin())];
  metrics.block_micros_sum += static_cast<uint64_t>(std::max(0.0, seconds) * 1e6);
}

}  // namespace baton::kvtransfer
