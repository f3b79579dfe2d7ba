#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace baton::router {

// Raises the soft limit of open files to the hard one; returns what holds then. Call at start.
uint64_t RaiseFileLimit();

// kInvalidArgument naming http.max_connections if that many connections and what the process itself
// opens do not fit under `limit` open files.
absl::Status CheckFileLimit(int max_connections, uint64_t limit);

}  // namespace baton::router
