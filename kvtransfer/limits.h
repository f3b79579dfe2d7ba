#pragma once

#include <cstddef>

#include "absl/time/time.h"

namespace baton::kvtransfer {

// Timers and bounds of the transfer agent (contracts.md 4.5).
struct TransferLimits {
  absl::Duration beat = absl::Seconds(0.5);         // ping on an active link
  absl::Duration silence = absl::Seconds(2);        // nothing heard that long: the peer is dead
  absl::Duration force_close = absl::Seconds(2);    // after Closing, with a receive or send open
  absl::Duration wedged_after = absl::Seconds(10);  // after Closing, with a receive still open
  absl::Duration idle_close = absl::Seconds(60);    // an unused outgoing connection is closed
  size_t max_queued_frames = 4096;                  // per peer, beyond what the transport takes
  size_t max_peers = 1024;                          // connections of either direction

  static TransferLimits Dev() {  // 2 cores, sanitizers
    TransferLimits limits;
    limits.beat = absl::Seconds(1);
    limits.silence = absl::Seconds(10);
    limits.force_close = absl::Seconds(10);
    limits.wedged_after = absl::Seconds(30);
    return limits;
  }
};

}  // namespace baton::kvtransfer
