#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

// What the planner counts. Plain values, bumped by the core on the planner thread; other threads
// read copies published with the view. router/http turns them into Prometheus.
namespace baton::router {

// Upper borders in seconds; the last bucket is +Inf.
inline constexpr std::array<double, 16> kSecondsBorders = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};

struct SecondsHistogram {
  std::array<uint64_t, kSecondsBorders.size() + 1> buckets{};  // not cumulative
  uint64_t count = 0;
  double sum = 0;

  void Observe(absl::Duration value) {
    const double seconds = absl::ToDoubleSeconds(value);
    size_t bucket = 0;
    while (bucket < kSecondsBorders.size() && seconds > kSecondsBorders[bucket]) ++bucket;
    ++buckets[bucket];
    ++count;
    sum += seconds;
  }
};

// How requests ended.
struct OutcomeCounts {
  uint64_t ok = 0, cancelled = 0, rejected = 0, no_worker = 0, deadline = 0, failed = 0;
  uint64_t Total() const { return ok + cancelled + rejected + no_worker + deadline + failed; }
};

// How moves off draining decode workers ended.
struct MoveCounts {
  uint64_t moved = 0;      // decoding goes on at the new worker
  uint64_t recovered = 0;  // given up, replayed elsewhere
  uint64_t ended = 0;      // the request ended first
  uint64_t refused = 0;    // decoding goes on at the old worker
};

// The stages of StageTimes (request.h).
struct StageHistograms {
  SecondsHistogram parse, queue, booking, prefill_queue, prefill, emit;
  SecondsHistogram transfer, decode_queue, first_step;
  SecondsHistogram first_token, second_token;  // the sums of the two groups
};

struct RouterFacts {
  // Counters.
  uint64_t requests = 0;
  OutcomeCounts outcomes;
  uint64_t prompt_tokens = 0, cached_tokens = 0, tokens_emitted = 0;
  MoveCounts moves;
  uint64_t recoveries = 0;  // a decode worker's loss survived by replay, begun
  uint64_t retargets = 0;   // a landing given to another prefill worker
  uint64_t rebookings = 0;  // a landing given up before its first step
  uint64_t refusals = 0;    // workers' "no" to Reserve or Run
  uint64_t repeats_dropped = 0;
  uint64_t repeat_mismatches = 0;  // alarm: a repeat that differs
  uint64_t position_gaps = 0;      // alarm: a worker skipped a position
  uint64_t inexact_continuations = 0;
  uint64_t prefill_on_decode = 0;  // because no prefill worker was ready
  uint64_t stale_messages = 0;     // of transfers or handles given up before
  uint64_t cancels_sent = 0;
  uint64_t workers_lost = 0;

  // Gauges.
  uint64_t queued_requests = 0, queued_tokens = 0, live_requests = 0, live_bytes = 0;
  double prefill_queue_seconds = 0;  // queued prompt tokens / measured rate of the pool
  double decode_queue_seconds = 0;   // how long the queue's head has lacked room at decode workers
  double decode_page_use = 0;        // 0..1, the pool's pages in use
  uint32_t decode_step_us = 0;       // the slowest ready decode worker's last step

  StageHistograms stages;
};

}  // namespace baton::router
