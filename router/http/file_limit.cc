#include "router/http/file_limit.h"

#include <sys/resource.h>

#include "absl/strings/str_format.h"

namespace baton::router {
namespace {

// Listeners, event queues, wake-up pipes, logs.
constexpr uint64_t kOwnFiles = 64;

}  // namespace

uint64_t RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  rlimit raised = limit;
  raised.rlim_cur = raised.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &raised) == 0) return raised.rlim_cur;
  return limit.rlim_cur;
}

absl::StatusOr<int> FitConnections(int max_connections, size_t num_workers, bool may_lower,
                                   uint64_t limit) {
  const uint64_t own = kOwnFiles + num_workers;
  if (static_cast<uint64_t>(max_connections) + own <= limit) return max_connections;
  const uint64_t fitting = limit > own ? limit - own : 0;
  if (may_lower && fitting > 0) return static_cast<int>(fitting);
  return absl::InvalidArgumentError(absl::StrFormat(
      "http.max_connections is %d, at most %d: this process may open %d files (ulimit -Hn) and "
      "needs %d itself, with %d workers",
      max_connections, fitting, limit, own, num_workers));
}

}  // namespace baton::router
