#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench_load.h"
#include "cli/bench_stats.h"
#include "cli/http_client.h"

#include "common/clock.h"

namespace baton::cli {

struct BenchTarget {
  HttpUrl url;  // with the endpoint's path
  std::string api_key{};
  int concurrency = 0;                          // requests at once; 0: no limit
  absl::Duration timeout = absl::Seconds(600);  // of each wait for the server
};

struct BenchProgress {
  size_t num_planned = 0, num_ended = 0, num_failed = 0, num_running = 0;
  int64_t chunks = 0;
  absl::Duration elapsed;
};

struct BenchOutcome {
  std::vector<RequestRecord> records;  // of what ended
  absl::Duration duration;
  bool was_interrupted = false;  // by SIGINT or SIGTERM
};

// Sends the load and reads its streams, all on one event loop in the calling thread. `on_progress`
// is called five times a second. kUnavailable: the host has no address.
absl::StatusOr<BenchOutcome> RunLoad(const BenchTarget& target,
                                     const std::vector<PlannedRequest>& load, const Clock& clock,
                                     const std::function<void(const BenchProgress&)>& on_progress);

// What one stream says, kept as it comes; apart from the sockets for its tests.
class StreamRecorder {
 public:
  // `sent` is when the request went out.
  StreamRecorder(absl::Time sent, RequestRecord& record) : sent_(sent), record_(record) {}
  void OnData(std::string_view data, absl::Time now);
  // After the answer's end: an answer without tokens or without its end is an error.
  void Finish();
  int64_t chunks() const { return chunks_; }

 private:
  void ReadUsage(std::string_view data);

  const absl::Time sent_;
  RequestRecord& record_;
  absl::Time last_;
  int64_t chunks_ = 0;
  bool has_usage_ = false, is_done_ = false;
};

}  // namespace baton::cli
