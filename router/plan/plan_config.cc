#include "router/plan/plan_config.h"

#include "absl/strings/str_format.h"

namespace baton::router {
namespace {

absl::Status AtLeast(const char* field, double value, double least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("plan.%s is %g, at least %g", field, value, least));
}

absl::Status Positive(const char* field, absl::Duration value) {
  if (value > absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("plan.%s is %s, must be above 0", field, absl::FormatDuration(value)));
}

}  // namespace

absl::Status PlanConfig::Validate() const {
  const absl::Status checks[] = {
      AtLeast("max_queued_requests", static_cast<double>(max_queued_requests), 1),
      AtLeast("max_queued_tokens", static_cast<double>(max_queued_tokens), 1),
      AtLeast("max_live_bytes", static_cast<double>(max_live_bytes), 1),
      AtLeast("max_attempts", max_attempts, 1),
      AtLeast("max_lost_bookings", max_lost_bookings, 0),
      AtLeast("max_moves_per_worker", max_moves_per_worker, 0),
      AtLeast("progress_factor", progress_factor, 1),
      AtLeast("chunk_tokens", chunk_tokens, 1),
      AtLeast("max_prefills_per_worker", max_prefills_per_worker, 1),
      AtLeast("assumed_prefill_tokens_per_s", assumed_prefill_tokens_per_s, 1),
      AtLeast("nominal_step_us", nominal_step_us, 1),
      Positive("min_retry_after", min_retry_after),
      Positive("recovery_wait", recovery_wait),
      Positive("answer_timeout", answer_timeout),
      Positive("progress_floor", progress_floor),
      Positive("max_parked", max_parked),
      Positive("max_wedged", max_wedged),
      Positive("suspect_after", suspect_after),
      Positive("min_backoff", min_backoff),
      Positive("max_worker_queue", max_worker_queue),
      Positive("view_interval", view_interval),
  };
  for (const absl::Status& status : checks)
    if (!status.ok()) return status;
  if (max_retry_after < min_retry_after)
    return absl::InvalidArgumentError(absl::StrFormat(
        "plan.max_retry_after is %s, at least min_retry_after %s",
        absl::FormatDuration(max_retry_after), absl::FormatDuration(min_retry_after)));
  return absl::OkStatus();
}

}  // namespace baton::router
