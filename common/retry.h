#pragma once

#include "absl/status/status.h"

namespace baton {

// What follows an error on a worker: the one place that turns a code into the next move.
enum class NextMove { kRetryElsewhere, kFail };

constexpr NextMove AfterError(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kFailedPrecondition:
      return NextMove::kRetryElsewhere;
    default:
      return NextMove::kFail;
  }
}

}  // namespace baton
