#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace baton::bench {

struct LoadResult {
  // As they came; `first` and `whole` from when the request was due.
  std::vector<absl::Duration> first, whole;
  std::vector<absl::Duration> first_from_send;  // from the request's first byte
  std::vector<size_t> order;                    // which body each of `first` belongs to
  size_t num_events = 0;                        // "data:" lines
  absl::Duration wall;
};

// Sends the bodies to a path of 127.0.0.1:port over so many connections, each the next one when its
// answer is complete. Body i has the id "load-i". One thread. An answer that is no stream of a 200
// ends the program.
LoadResult RunLoad(int port, size_t connections, const std::string& path,
                   const std::vector<std::string>& bodies);

// The same, but the requests come by themselves, `per_second` of them at random times (a Poisson
// process); times are from when a request was due, not from when a connection was free for it.
LoadResult RunOpenLoad(int port, size_t connections, double per_second, const std::string& path,
                       const std::vector<std::string>& bodies);

}  // namespace baton::bench
