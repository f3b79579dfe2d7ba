#pragma once

#include <cstdint>
#include <set>
#include <tuple>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "router/plan/plan_config.h"
#include "router/plan/request_state.h"

namespace baton::router {

// The queue: earliest deadline first within a priority, continuations before everything; bounded in
// requests, tokens and bytes. Planner thread.
class Admission {
 public:
  explicit Admission(const PlanConfig& config) : config_(config) {}

  // kResourceExhausted if a new request does not fit; otherwise its bytes are counted until
  // Release.
  absl::Status Admit(Request& request);
  void Release(Request& request);
  // Queues a request; one that comes back is never refused.
  void Push(Request& request);
  void Remove(Request& request);  // no effect if it is not queued

  struct Order {
    bool operator()(const Request* a, const Request* b) const;
  };
  const std::set<Request*, Order>& queue() const { return queue_; }
  uint64_t queued_tokens() const { return queued_tokens_; }
  uint64_t live_bytes() const { return live_bytes_; }
  // Seconds until a request of today's end of the queue would start, at `tokens_per_s` of the pool.
  absl::Duration QueueTime(double tokens_per_s) const;
  absl::Duration RetryAfter(double tokens_per_s) const;  // whole seconds

 private:
  const PlanConfig& config_;
  std::set<Request*, Order> queue_;
  uint64_t queued_tokens_ = 0;
  uint64_t live_bytes_ = 0;
};

}  // namespace baton::router
