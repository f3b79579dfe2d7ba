#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace baton::router {

// Raises the soft limit of open files to the hard one; returns what holds then. Call at start.
uint64_t RaiseFileLimit();

// The connections to allow: `max_connections` if that many, a session per configured worker and
// what the process itself opens fit under `limit` open files. If they do not: as many as fit where
// `may_lower` (nobody asked for that many), else kInvalidArgument naming http.max_connections and
// the value that would fit.
absl::StatusOr<int> FitConnections(int max_connections, size_t num_workers, bool may_lower,
                                   uint64_t limit);

}  // namespace baton::router
