#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"

namespace baton::router {

// The planner's limits and times (contracts.md 4.2, 4.5; protocol.md 5.2).
struct PlanConfig {
  // Admission: what may wait, and what may be alive at all. Beyond it: 429.
  size_t max_queued_requests = 1024;
  uint64_t max_queued_tokens = 8u << 20;  // prompt tokens of queued requests
  uint64_t max_live_bytes = 1u << 30;     // prompts, emitted ids, prompt logprobs of live requests
  absl::Duration min_retry_after = absl::Seconds(1);
  absl::Duration max_retry_after = absl::Seconds(60);

  // No worker that could serve is known: wait this long, then 503. Also the wait for a worker of
  // the request's class to come back before a continuation becomes inexact.
  absl::Duration no_worker_grace = absl::Seconds(3);
  absl::Duration recovery_wait =
      absl::Seconds(600);  // request_deadline, from the loss to the next token

  Attempt max_attempts = 3;  // since the last new token
  // Decode workers lost under a request before its first token: one more, and it is taken for what
  // ends them.
  int max_lost_bookings = 3;
  absl::Duration answer_timeout = absl::Seconds(10);  // Reserved, Retargeted
  absl::Duration progress_floor = absl::Seconds(1);   // max(this, 4 x predicted chunk)
  double progress_factor = 4;
  uint32_t chunk_tokens = 2048;  // for the prediction only
  absl::Duration max_parked = absl::Seconds(30);
  absl::Duration max_wedged = absl::Seconds(10);  // then its work moves, if there is another worker
  absl::Duration suspect_after = absl::Seconds(1.5);     // since the last word of a worker
  absl::Duration min_backoff = absl::Milliseconds(100);  // of a worker that refused

  // Sequences that leave a draining worker at once: each stands still while it moves, and a few
  // fill the worker's link, so more would only stand still longer.
  uint32_t max_moves_per_worker = 4;

  // Prefill slots: the router keeps the queue, workers keep little.
  uint32_t max_prefills_per_worker = 4;
  absl::Duration max_worker_queue = absl::Seconds(0.5);  // queued tokens at the measured rate
  double assumed_prefill_tokens_per_s = 500;             // until a worker has measured its own
  uint32_t prefill_on_decode_max_tokens =
      0;  // uncached tokens up to which a decode worker prefills; 0: off

  uint32_t headroom_tokens = 512;  // booked per sequence beyond the prompt, at most
  double nominal_step_us = 5'000;  // of an idle decode worker
  absl::Duration view_interval = absl::Milliseconds(50);

  // kInvalidArgument naming the field, the value and the limit.
  absl::Status Validate() const;
};

}  // namespace baton::router
