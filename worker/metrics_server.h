#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace baton::worker {

struct ProbeAnswer {
  int code = 200;
  std::string body;  // text
};

// The pages of a program's metrics port. The functions are called on threads of the server.
struct ProbePages {
  std::function<std::string()> metrics;  // /metrics, Prometheus text format
  std::function<ProbeAnswer()> health;   // /health: the process answers
  std::function<ProbeAnswer()> ready;    // /ready: it wants work
};

// A small HTTP server for probes and scrapers. Start and stop: one thread.
class MetricsServer {
 public:
  // `listen` is host:port, port 0: any. kUnavailable names an address that cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen,
                                                              ProbePages pages);
  ~MetricsServer();
  int port() const;

 private:
  struct State;
  explicit MetricsServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace baton::worker
