#include "router/http/file_limit.h"

#include <sys/resource.h>

#include "absl/strings/str_format.h"

namespace baton::router {
namespace {

// Listeners, event queues, wake-up pipes, sessions with workers, logs.
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

absl::Status CheckFileLimit(int max_connections, uint64_t limit) {
  if (static_cast<uint64_t>(max_connections) + kOwnFiles <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "http.max_connections is %d, this process may open %d files (ulimit -Hn) and needs %d itself",
      max_connections, limit, kOwnFiles));
}

}  // namespace baton::router
