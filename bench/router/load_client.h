#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace baton::bench {

struct LoadResult {
  std::vector<absl::Duration> first, whole;  // from the request's first byte, by request
  size_t num_events = 0;                     // "data:" lines
  absl::Duration wall;
};

// Sends the bodies to a path of 127.0.0.1:port over so many connections, each the next one when its
// answer is complete. One thread. An answer that is no stream of a 200 ends the program.
LoadResult RunLoad(int port, size_t connections, const std::string& path,
                   const std::vector<std::string>& bodies);

}  // namespace baton::bench
